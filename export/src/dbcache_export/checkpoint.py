"""Where each parameter lies in a folder of safetensors files. Reads headers, never weights."""

from __future__ import annotations

__all__ = ["Checkpoint", "Parameter", "Shard", "files", "paths", "read"]

import hashlib
import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnx import TensorProto

from dbcache_export.choice import choose
from dbcache_export.errors import ExportError, listed

#: safetensors' dtype: (ONNX's, bytes per value). Quantised types are refused: their scales have no place in the format.
_STORED = {"F32": (TensorProto.FLOAT, 4), "F16": (TensorProto.FLOAT16, 2), "BF16": (TensorProto.BFLOAT16, 2)}
#: Types of buffers that old checkpoints hold beside the parameters; can be listed, not used.
_OTHER_BYTES = {
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
    "F64": 8,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
}
_MAX_HEADER = 100_000_000  # what the safetensors libraries accept


@dataclass(frozen=True)
class Shard:
    """One safetensors file.

    Attributes:
        name: How the graphs refer to it.
        path: Where it lies, all links resolved.
        bytes: Its length.
        header_sha256: Of the length field and the JSON header.
    """

    name: str
    path: Path
    bytes: int
    header_sha256: str


@dataclass(frozen=True)
class Parameter:
    """A named tensor; `offset` counts from the start of the file, `dtype` is safetensors'."""

    name: str
    shard: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    length: int

    @property
    def onnx_dtype(self) -> int:
        """The stored type in ONNX's numbering."""
        if self.dtype not in _STORED:
            raise ExportError(
                f"{self.name} is stored as {self.dtype}",
                "only F32, F16 and BF16 are supported: convert the checkpoint",
            )
        return _STORED[self.dtype][0]


@dataclass(frozen=True)
class Checkpoint:
    """The files and parameters of one component of a model."""

    folder: Path
    shards: tuple[Shard, ...]
    parameters: Mapping[str, Parameter]

    def values(self) -> int:
        """How many numbers the parameters have together."""
        return sum(math.prod(p.shape) for p in self.parameters.values())


def read(folder: Path, component: str) -> Checkpoint:
    """Reads the headers of all shards in `folder`; the shards get names that begin with `component`.

    Raises:
        ExportError: A file is missing or damaged, two shards disagree, or there is more than one checkpoint.
    """
    names, index = files(folder)
    shards: list[Shard] = []
    parameters: dict[str, Parameter] = {}
    for number, file in enumerate(names, 1):
        suffix = "" if len(names) == 1 else f"-{number:05}-of-{len(names):05}"
        shard, tensors = _read_shard(folder / file, f"{component}{suffix}.safetensors")
        shards.append(shard)
        for parameter in tensors:
            if parameter.name in parameters:
                raise ExportError(f"{folder}: {parameter.name} is in two shards", "repair the checkpoint")
            if index is not None and index.get(parameter.name) != file:
                raise ExportError(
                    f"{folder}: {parameter.name} is in {file}, the index says {index.get(parameter.name)}",
                    "repair the checkpoint",
                )
            parameters[parameter.name] = parameter
    missing = set(index or ()) - set(parameters)
    if missing:
        raise ExportError(f"{folder}: the index lists {listed(missing)}, no shard has it", "repair the checkpoint")
    return Checkpoint(folder, tuple(shards), parameters)


def files(folder: Path, name: str | None = None) -> tuple[list[str], dict[str, str] | None]:
    """Names of the shards in order, and the index if there is one: of the checkpoint that diffusers would load.

    `name` is another checkpoint's file or index.

    Raises:
        ExportError: There is none, or the index and the files disagree.
    """
    name = name or choose(folder).name
    if not name.endswith(".json"):
        return [name], None
    try:
        index = json.loads((folder / name).read_text("utf-8"))["weight_map"]
        named = sorted(set(index.values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ExportError(f"{folder / name} is not an index of shards ({error})", "repair the checkpoint") from error
    if any(Path(file).name != file for file in named):
        raise ExportError(f"{folder / name} names files outside its folder", "repair the checkpoint")
    if missing := [file for file in named if not (folder / file).exists()]:
        raise ExportError(f"{folder} lacks {listed(missing)}, which {name} names", "download the missing files")
    return named, index


def paths(folder: Path) -> list[Path]:
    """The files of the checkpoint."""
    return [folder / name for name in files(folder)[0]]


def _read_shard(path: Path, name: str) -> tuple[Shard, list[Parameter]]:
    """Reads and checks one header."""
    try:
        real = path.resolve(strict=True)
        size = real.stat().st_size
        with real.open("rb") as file:
            prefix = file.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else _MAX_HEADER + 1
            if length > min(_MAX_HEADER, size - 8):
                raise _damaged(path, "no safetensors header")
            header = file.read(length)
        entries = json.loads(header)
        entries.pop("__metadata__", None)
        tensors = [_parameter(path, name, 8 + length, key, entry) for key, entry in entries.items()]
    except OSError as error:
        raise ExportError(f"cannot read {path} ({error.strerror})", "download the missing file") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(path, f"header: {error}") from error
    tensors.sort(key=lambda p: (p.offset, p.length))
    end = 8 + length
    for parameter in tensors:
        if parameter.offset != end:
            raise _damaged(path, f"{parameter.name} overlaps its neighbour or leaves a gap")
        end = parameter.offset + parameter.length
    if end != size:
        raise _damaged(path, f"{size} bytes, its header describes {end}")
    return Shard(name, real, size, hashlib.sha256(prefix + header).hexdigest()), tensors


def _parameter(path: Path, shard: str, base: int, name: str, entry: dict[str, Any]) -> Parameter:
    begin, end = entry["data_offsets"]
    shape = tuple(int(n) for n in entry["shape"])
    dtype = str(entry["dtype"])
    width = _STORED[dtype][1] if dtype in _STORED else _OTHER_BYTES.get(dtype)
    if width is None or begin < 0 or min(shape, default=0) < 0 or math.prod(shape) * width != end - begin:
        raise _damaged(path, f"{name}: {dtype} {list(shape)} in {end - begin} bytes")
    return Parameter(name, shard, dtype, shape, base + begin, end - begin)


def _damaged(path: Path, what: str) -> ExportError:
    return ExportError(f"{path} is damaged: {what}", "download it again")
