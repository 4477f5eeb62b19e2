import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dbcache_export.checkpoint import Checkpoint, read
from dbcache_export.errors import ExportError
from dbcache_export.place import place


@pytest.fixture
def linked(tmp_path: Path) -> Checkpoint:
    """A checkpoint as in a Hugging Face cache: a link to a blob."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "engine").mkdir()
    save_file({"a": torch.zeros(3)}, tmp_path / "blobs" / "abc")
    (tmp_path / "snapshot" / "model.safetensors").symlink_to("../blobs/abc")
    return read(tmp_path / "snapshot", "part")


def test_references_name_the_real_file(tmp_path: Path, linked: Checkpoint) -> None:
    ((_, fields),) = place([linked], tmp_path / "engine", pack=False)
    assert fields == {"name": "part.safetensors", "folder": str(tmp_path / "blobs"), "file": "abc"}
    assert not list((tmp_path / "engine").iterdir())


@pytest.mark.parametrize("can_link", [True, False])
def test_packed_weights_are_real_files(
    tmp_path: Path, linked: Checkpoint, monkeypatch: pytest.MonkeyPatch, can_link: bool
) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise OSError(18, "cross-device link")

    if not can_link:
        monkeypatch.setattr(os, "link", refuse)
    ((_, fields),) = place([linked], tmp_path / "engine", pack=True)
    packed = tmp_path / "engine" / "part.safetensors"
    assert fields == {"name": "part.safetensors", "folder": None, "file": "part.safetensors"}
    assert not packed.is_symlink()
    assert packed.samefile(tmp_path / "blobs" / "abc") == can_link
    assert packed.read_bytes() == (tmp_path / "blobs" / "abc").read_bytes()


def test_scattered_shards_must_be_packed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "engine").mkdir()
    save_file({"a": torch.zeros(1)}, tmp_path / "x-1.safetensors")
    save_file({"b": torch.zeros(1)}, tmp_path / "elsewhere" / "x")
    (tmp_path / "x-2.safetensors").symlink_to("elsewhere/x")
    index = '{"weight_map": {"a": "x-1.safetensors", "b": "x-2.safetensors"}}'
    (tmp_path / "x.safetensors.index.json").write_text(index)
    checkpoint = read(tmp_path, "part")
    with pytest.raises(ExportError, match="--pack"):
        place([checkpoint], tmp_path / "engine", pack=False)
    assert len(place([checkpoint], tmp_path / "engine", pack=True)) == 2
