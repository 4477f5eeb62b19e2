"""Adapters of low rank: W + weight · alpha / rank · B A, merged into a copy of the transformer's files.

Only shards that an adapter changes are written anew, tensor by tensor; the other files of the model are linked.
"""

from __future__ import annotations

__all__ = ["merged", "provenance"]

import hashlib
import json
import os
import shutil
import struct
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from dbcache_export import checkpoint
from dbcache_export.checkpoint import Checkpoint, Parameter, Shard
from dbcache_export.errors import ExportError, listed
from dbcache_export.folder import model_name
from dbcache_export.lora_keys import Pair, read_pairs

Change = torch.Tensor
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def provenance(adapters: Sequence[tuple[Path, float]]) -> dict[str, str]:
    """What the manifest records of each adapter: its weight and the SHA-256 of its file."""
    return {
        f"lora {number} {path.name}": f"{weight:g} {hashlib.sha256(path.read_bytes()).hexdigest()}"
        for number, (path, weight) in enumerate(adapters, 1)
    }


@contextmanager
def merged(model: Path, adapters: Sequence[tuple[Path, float]], beside: Path) -> Iterator[Path]:
    """A model folder like `model`, whose transformer has the adapters in it; it vanishes when the block ends.

    Raises:
        ExportError: An adapter cannot be read, has an unknown key, or does not fit the transformer.
    """
    if (model / "transformer_2").is_dir():
        raise ExportError(
            f"{model} has two transformers, and an adapter belongs to one of them",
            "merge it into that transformer's files beforehand",
        )
    inside = (model / "transformer").is_dir()
    original = model / "transformer" if inside else model
    stored = checkpoint.read(original, "transformer")
    changes = _changes(stored, adapters)
    scratch = Path(tempfile.mkdtemp(prefix=".lora.", dir=beside))
    try:
        copy = scratch / model_name(model)
        target = copy / "transformer" if inside else copy
        target.mkdir(parents=True)
        if inside:
            _link_others(model, copy, {"transformer"})
        _link_others(original, target, {file.name for file in original.glob("*.safetensors")})
        names, _ = checkpoint.files(original)
        digest = json.dumps(provenance(adapters), sort_keys=True)
        for shard, name in zip(stored.shards, names, strict=True):
            touched = {p.name: p for p in stored.parameters.values() if p.shard == shard.name and p.name in changes}
            if touched:
                _rewrite(shard, target / name, touched, changes, digest)
            else:
                (target / name).symlink_to(shard.path)
        yield copy
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _link_others(source: Path, target: Path, left_out: set[str]) -> None:
    for path in source.iterdir():
        if path.name not in left_out:
            (target / path.name).symlink_to(path.resolve())


def _changes(stored: Checkpoint, adapters: Sequence[tuple[Path, float]]) -> dict[str, list[tuple[float, Pair]]]:
    """For each parameter its summands: the factor, and the two matrices."""
    changes: dict[str, list[tuple[float, Pair]]] = {}
    for path, weight in adapters:
        try:
            with safe_open(path, "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.offset_keys()}
                metadata = file.metadata() or {}
        except (OSError, SafetensorError) as error:
            raise ExportError(f"cannot read {path} ({error})", "give an adapter's safetensors file") from error
        pairs, unknown = read_pairs(tensors, metadata, stored.parameters)
        if unknown:
            raise ExportError(
                f"{path}: keys that belong to no layer of {stored.folder}: {listed(unknown)}",
                "give an adapter of this transformer alone, in the layout of diffusers, PEFT or kohya",
            )
        if not pairs:
            raise ExportError(f"{path} holds no layers", "give an adapter's safetensors file")
        for name, pair in pairs:
            shape = stored.parameters[name].shape
            got = (pair.up.shape[0], *pair.down.shape[1:])
            if got != shape or pair.up.shape[1] != pair.down.shape[0]:
                raise ExportError(
                    f"{path}: {name} would change by {list(got)}, the transformer has {list(shape)}",
                    "give an adapter of this model",
                )
            changes.setdefault(name, []).append((weight * pair.scale, pair))
    return changes


def _rewrite(
    shard: Shard,
    target: Path,
    touched: Mapping[str, Parameter],
    changes: Mapping[str, list[tuple[float, Pair]]],
    digest: str,
) -> None:
    """A copy of a shard with changed tensors. Its header tells it from the original, which has the same layout."""
    with shard.path.open("rb") as source, target.open("w+b") as written:
        length = struct.unpack("<Q", source.read(8))[0]
        header: dict[str, Any] = json.loads(source.read(length))
        header["__metadata__"] = (header.get("__metadata__") or {}) | {"dbcache_lora": digest}
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        written.write(struct.pack("<Q", len(text)) + text)
        shift = len(text) - length
        shutil.copyfileobj(source, written, 1 << 20)
        for parameter in touched.values():
            source.seek(parameter.offset)
            raw = bytearray(source.read(parameter.length))
            dtype = _DTYPES.get(parameter.dtype)
            if dtype is None:
                raise ExportError(f"{parameter.name} is stored as {parameter.dtype}", "convert the checkpoint")
            value = torch.frombuffer(raw, dtype=dtype).reshape(parameter.shape).float()
            for factor, pair in changes[parameter.name]:
                value = value + factor * (pair.up @ pair.down)
            written.seek(parameter.offset + shift)
            written.write(value.to(dtype).contiguous().view(torch.uint8).numpy().astype(np.uint8).tobytes())
        os.fsync(written.fileno())
