"""Adapters of low rank: W + weight · alpha / rank · B A, merged into a copy of the transformer's files.

Only shards that an adapter changes are written anew, tensor by tensor; the other files of the model are linked.
Which layer a key means is `lora_keys`' matter, how strongly it is added that of `lora_settings` and `lora_strength`.
"""

from __future__ import annotations

__all__ = ["merged", "provenance"]

import hashlib
import json
import os
import shutil
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from dbcache_export import checkpoint
from dbcache_export.checkpoint import Checkpoint, Parameter, Shard
from dbcache_export.errors import ExportError, listed
from dbcache_export.folder import model_name
from dbcache_export.lora_keys import read_layers
from dbcache_export.lora_settings import CONFIG, read_places
from dbcache_export.lora_strength import Strength, strengths
from dbcache_export.whole import scratch

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True, eq=False)
class _Change:
    """What an adapter adds to a weight: factor · up down."""

    adapter: Path
    factor: float
    up: torch.Tensor
    down: torch.Tensor

    def delta(self, shape: tuple[int, ...]) -> torch.Tensor:
        """The summand, float32."""
        return self.factor * (self.up.flatten(1) @ self.down.flatten(1)).reshape(shape)


def provenance(adapters: Sequence[tuple[Path, float]]) -> dict[str, str]:
    """What the manifest records of each adapter: its weight, and the SHA-256 of its file and of PEFT's settings."""

    def digests(path: Path) -> str:
        files = [file for file in (path, path.with_name(CONFIG)) if file.is_file()]
        return " ".join(hashlib.sha256(file.read_bytes()).hexdigest() for file in files)

    return {
        f"lora {number} {path.name}": f"{weight:g} {digests(path)}" for number, (path, weight) in enumerate(adapters, 1)
    }


@contextmanager
def merged(
    model: Path,
    adapters: Sequence[tuple[Path, float]],
    beside: Path,
    progress: Callable[[str], None] = lambda _: None,
) -> Iterator[Path]:
    """A model folder like `model`, whose transformer has the adapters in it; it vanishes when the block ends.

    `progress` is told the scale of each adapter.

    Raises:
        ExportError: An adapter cannot be read, has an unknown key, does not fit the transformer, is said to have two
            scales, changes nothing, or makes a weight NaN or infinite.
    """
    if (model / "transformer_2").is_dir():
        raise ExportError(
            f"{model} has two transformers, and an adapter belongs to one of them",
            "merge it into that transformer's files beforehand",
        )
    inside = (model / "transformer").is_dir()
    original = model / "transformer" if inside else model
    stored = checkpoint.read(original, "transformer")
    changes = _changes(stored, adapters, progress)
    with scratch(beside, "lora") as space:
        copy = space / model_name(model)
        target = copy / "transformer" if inside else copy
        target.mkdir(parents=True)
        if inside:
            _link_others(model, copy, {"transformer"})
        _link_others(original, target, {file.name for file in original.glob("*.safetensors")})
        names, _ = checkpoint.files(original)
        digest = json.dumps(provenance(adapters), sort_keys=True)
        has_changed = False
        for shard, name in zip(stored.shards, names, strict=True):
            touched = {p.name: p for p in stored.parameters.values() if p.shard == shard.name and p.name in changes}
            if touched:
                has_changed |= _rewrite(shard, target / name, touched, changes, digest)
            else:
                (target / name).symlink_to(shard.path)
        if not has_changed:
            raise ExportError(
                f"merging {listed(str(path) for path, _ in adapters)} changes nothing once rounded to the stored type",
                "give a larger weight, or leave --lora out",
            )
        yield copy


def _link_others(source: Path, target: Path, left_out: set[str]) -> None:
    for path in source.iterdir():
        if path.name not in left_out:
            (target / path.name).symlink_to(path.resolve())


def _changes(
    stored: Checkpoint, adapters: Sequence[tuple[Path, float]], progress: Callable[[str], None]
) -> dict[str, list[_Change]]:
    """For each parameter its summands."""
    changes: dict[str, list[_Change]] = {}
    for path, weight in adapters:
        try:
            with safe_open(path, "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.offset_keys()}
                metadata = file.metadata() or {}
        except (OSError, SafetensorError) as error:
            raise ExportError(f"cannot read {path} ({error})", "give an adapter's safetensors file") from error
        places = read_places(path, metadata)
        layers = read_layers(path, tensors, stored)
        scales = strengths(path, layers, places)
        progress(f"merging {path.name} (layers: {len(layers)}), weight {weight:g} · {_described(scales)}")
        if not any(
            strength.scale and layer.up.any() and layer.down.any()
            for layer, strength in zip(layers, scales, strict=True)
        ):
            raise ExportError(f"{path} changes nothing: its factors, or its scale, are 0", "leave this --lora out")
        for layer, strength in zip(layers, scales, strict=True):
            for name, up in layer.parts(stored.parameters).items():
                changes.setdefault(name, []).append(_Change(path, weight * strength.scale, up, layer.down))
    return changes


def _described(scales: Sequence[Strength]) -> str:
    """Scale or range of scales, and where alpha stands."""
    values = sorted({strength.scale for strength in scales})
    extent = f"{values[0]:g}" if len(values) == 1 else f"{values[0]:g} to {values[-1]:g}"
    return f"scale {extent} (alpha: {listed({strength.source for strength in scales})})"


def _rewrite(
    shard: Shard,
    target: Path,
    touched: Mapping[str, Parameter],
    changes: Mapping[str, list[_Change]],
    digest: str,
) -> bool:
    """A copy of a shard with changed tensors, and whether their bytes changed.

    Its header tells it from the original, which has the same layout.
    """
    has_changed = False
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
            before = torch.frombuffer(raw, dtype=dtype).reshape(parameter.shape)
            deltas = [(change.adapter, change.delta(parameter.shape)) for change in changes[parameter.name]]
            value = before.float()
            for _, delta in deltas:
                value = value + delta
            after = value.to(dtype)
            if not after.isfinite().all():
                raise _not_finite(parameter, before, deltas)
            has_changed |= not torch.equal(after, before)
            written.seek(parameter.offset + shift)
            written.write(after.contiguous().view(torch.uint8).numpy().astype(np.uint8).tobytes())
        os.fsync(written.fileno())
    return has_changed


def _not_finite(parameter: Parameter, before: torch.Tensor, deltas: Sequence[tuple[Path, torch.Tensor]]) -> ExportError:
    if not before.isfinite().all():
        return ExportError(f"{parameter.name} of the transformer holds NaN or infinity", "repair the checkpoint")
    worst = max(deltas, key=lambda delta: float(delta[1].abs().nan_to_num(nan=torch.inf).max()))[0]
    return ExportError(
        f"{worst} makes {parameter.name} NaN or infinite, which is stored as {parameter.dtype}",
        "give a smaller weight, or an adapter of this model",
    )
