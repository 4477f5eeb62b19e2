import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dbcache_export.checkpoint import read
from dbcache_export.errors import ExportError


def write(path: Path, header: dict, data: int) -> None:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(data))


def entry(begin: int, end: int, shape: list[int], dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_offsets_are_those_of_the_values(tmp_path: Path) -> None:
    tensors = {"b": torch.arange(6, dtype=torch.float32).reshape(2, 3), "a": torch.tensor([7.0])}
    save_file(tensors, tmp_path / "model.safetensors")
    checkpoint = read(tmp_path, "part")
    content = (tmp_path / "model.safetensors").read_bytes()
    for name, tensor in tensors.items():
        parameter = checkpoint.parameters[name]
        assert parameter.shape == tuple(tensor.shape)
        assert content[parameter.offset : parameter.offset + parameter.length] == tensor.numpy().tobytes()
    assert [shard.name for shard in checkpoint.shards] == ["part.safetensors"]
    assert checkpoint.values() == 7


def test_shards_are_numbered_and_links_resolved(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir()
    snapshot.mkdir()
    for blob, name, key in (("123", "x-1.safetensors", "a"), ("456", "x-2.safetensors", "b")):
        save_file({key: torch.zeros(1)}, blobs / blob)
        (snapshot / name).symlink_to(Path("../blobs") / blob)
    index = {"weight_map": {"a": "x-1.safetensors", "b": "x-2.safetensors"}}
    (snapshot / "x.safetensors.index.json").write_text(json.dumps(index))
    shards = read(snapshot, "part").shards
    assert [shard.name for shard in shards] == ["part-00001-of-00002.safetensors", "part-00002-of-00002.safetensors"]
    assert [shard.path.name for shard in shards] == ["123", "456"]


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        ({"a": entry(0, 8, [2])}, 4, "describes"),  # cut off
        ({"a": entry(0, 8, [2])}, 12, "describes"),  # something behind
        ({"a": entry(0, 8, [3])}, 8, "in 8 bytes"),  # shape and length disagree
        ({"a": entry(0, 8, [-2])}, 8, "in 8 bytes"),
        ({"a": entry(0, 4, [1]), "b": entry(0, 4, [1])}, 4, "overlaps"),
        ({"a": entry(0, 4, [1]), "b": entry(8, 12, [1])}, 12, "gap"),
        ({"a": entry(0, 4, [1], "Q4")}, 4, "Q4"),
        ({"a": {"dtype": "F32"}}, 4, "header"),
        ({"a": 5}, 4, "header"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, header: dict, data: int, message: str) -> None:
    write(tmp_path / "model.safetensors", header, data)
    with pytest.raises(ExportError, match=message):
        read(tmp_path, "part")


@pytest.mark.parametrize("content", [b"", b"1234567", struct.pack("<Q", 1 << 40), struct.pack("<Q", 3) + b"{]}"])
def test_files_without_a_header_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ExportError, match="damaged"):
        read(tmp_path, "part")


def test_an_index_must_agree_with_its_shards(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "x-1.safetensors")
    save_file({"b": torch.zeros(1)}, tmp_path / "x-2.safetensors")
    index = tmp_path / "x.safetensors.index.json"

    def refused(weight_map: object, message: str) -> None:
        index.write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(ExportError, match=message):
            read(tmp_path, "part")

    refused({"a": "x-1.safetensors", "b": "x-3.safetensors"}, r"lacks x-3\.safetensors, which .* download")
    refused({"a": "x-2.safetensors", "b": "x-1.safetensors"}, "the index says")
    refused({"a": "x-1.safetensors", "b": "x-2.safetensors", "c": "x-2.safetensors"}, "lists c")
    refused({"a": "../x-1.safetensors"}, "outside")
    refused("nonsense", "not an index")
    save_file({"a": torch.zeros(1)}, tmp_path / "x-2.safetensors")
    refused({"a": "x-1.safetensors", "b": "x-2.safetensors"}, "two shards")


def test_quantised_parameters_are_listed_but_not_used(tmp_path: Path) -> None:
    write(tmp_path / "model.safetensors", {"a": entry(0, 2, [2], "F8_E4M3")}, 2)
    parameter = read(tmp_path, "part").parameters["a"]
    with pytest.raises(ExportError, match="F8_E4M3"):
        _ = parameter.onnx_dtype
