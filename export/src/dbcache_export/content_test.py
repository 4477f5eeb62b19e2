import hashlib
from pathlib import Path

from dbcache_export.content import ContentHashes


def test_hashes_are_those_of_the_files(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in "ab"]
    for path in paths:
        path.write_bytes(path.name.encode() * 3_000_000)
    with ContentHashes(paths) as hashes:
        assert [hashes[path] for path in paths] == [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]


def test_leaving_early_stops(tmp_path: Path) -> None:
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate(1 << 40)
    with ContentHashes([large, large]):
        pass
