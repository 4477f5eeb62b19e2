"""Folders that appear whole: two writers at once, and what is left of killed ones."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dbcache_export.conftest import child_environment
from dbcache_export.errors import ExportError
from dbcache_export.whole import new_directory, scratch

#: Writes an engine to the folder of its argument, and is killed where the word says.
_WRITER = """
import os, signal, sys
from pathlib import Path
from dbcache_export.whole import new_directory, scratch
target, place = Path(sys.argv[1]), sys.argv[2]
die = lambda: os.kill(os.getpid(), signal.SIGKILL)
rename = Path.rename
def dying(self, name):
    if place == "first rename": die()
    rename(self, name)
    if place == "second rename": die()
Path.rename = dying
with new_directory(target, overwrite=True) as partial, scratch(target.parent, "lora"):
    (partial / "manifest.json").write_text('{"format_version": 2, "is": "new"}')
    if place == "block": die()
"""


def engine(folder: Path, name: str = "engine") -> Path:
    (folder / name).mkdir()
    (folder / name / "manifest.json").write_text('{"format_version": 2, "is": "old"}')
    return folder / name


def which(target: Path) -> str:
    return json.loads((target / "manifest.json").read_text())["is"]


@pytest.mark.parametrize("place", ["block", "first rename", "second rename", "nowhere"])
def test_a_killed_writer_leaves_the_older_engine(tmp_path: Path, place: str) -> None:
    target = engine(tmp_path)
    command = [sys.executable, "-c", _WRITER, str(target), place]
    code = subprocess.run(command, env=child_environment(), check=False).returncode
    assert code == (0 if place == "nowhere" else -signal.SIGKILL)
    # The next export into the folder puts all in order.
    with new_directory(tmp_path / "other", overwrite=False):
        pass
    assert which(target) == ("new" if place == "nowhere" else "old")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["engine", "other"]


def test_the_second_export_into_one_folder_is_refused(tmp_path: Path) -> None:
    with new_directory(tmp_path / "a", overwrite=False) as partial:
        with (
            pytest.raises(ExportError, match=r"another export is writing .*/a"),
            new_directory(tmp_path / "a", overwrite=False),
        ):
            pass
        # Another name is no trouble, not even one that begins alike.
        for name in ("b", "a.b"):
            with new_directory(tmp_path / name, overwrite=False), scratch(tmp_path, "lora"):
                pass
        assert partial.is_dir()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "a.b", "b"]
    with new_directory(tmp_path / "c", overwrite=False):
        pass
