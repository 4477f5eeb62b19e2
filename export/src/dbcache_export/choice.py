"""Which of several checkpoints in one folder is the model's: the one that diffusers or transformers would load.

Their files are called `diffusion_pytorch_model.safetensors` and `model.safetensors`, or have an index of that name with
`.index.json` behind it. A variant has its name inside: `model.fp16.safetensors`, `model.safetensors.index.fp16.json`.
"""

from __future__ import annotations

__all__ = ["Choice", "choose", "plain_name"]

import json
import re
from dataclasses import dataclass
from pathlib import Path

from dbcache_export.errors import ExportError, listed

_DIFFUSERS, _TRANSFORMERS = "diffusion_pytorch_model", "model"
_SINGLE = re.compile(rf"({_DIFFUSERS}|{_TRANSFORMERS})(?:\.([^.]+))?\.safetensors")
#: The variant stands before `json`, or, as diffusers once wrote it, before `index`.
_INDEX = re.compile(rf"({_DIFFUSERS}|{_TRANSFORMERS})\.safetensors(?:\.([^.]+))?\.index(?:\.([^.]+))?\.json")
_SHARD = re.compile(r"(.+?)(?:\.([^.]+))?-\d{5}-of-\d{5}(?:\.([^.]+))?\.safetensors")
#: Weights in formats that are not read.
_OTHER = (".bin", ".pt", ".pth", ".ckpt", ".gguf", ".msgpack", ".h5", ".flashpack", ".onnx")


@dataclass(frozen=True)
class Choice:
    """A checkpoint.

    Attributes:
        name: Of its index, or of its only file.
        variant: `fp16` and such; None for that without one.
        others: Names of the checkpoints in the folder that were not chosen.
    """

    name: str
    variant: str | None = None
    others: tuple[str, ...] = ()


def choose(folder: Path, variant: str | None = None) -> Choice:
    """The checkpoint in `folder`: of `variant` if it has that, else the one without a variant, else the only one.

    Raises:
        ExportError: There is no checkpoint, shards lack their index, or the choice is the user's.
    """
    names = sorted(path.name for path in folder.glob("*.safetensors*"))
    known = _known(folder, names)
    usual = {choice.name for choice in known}
    unknown = [name for name in names if name.endswith(".safetensors.index.json") and name not in usual]
    shards = [name for name in names if _SHARD.fullmatch(name)]
    strays = [name for name in names if name.endswith(".safetensors") and name not in usual.union(shards)]
    lost = [shard for shard in shards if not unknown and _index_of(shard)[0] not in usual]
    variants = {choice.variant for choice in known}
    there = variants | {_index_of(shard)[1] for shard in lost}
    wanted = variant if variant in there else None
    if wanted in variants:
        taken = next(choice for choice in known if choice.variant == wanted)
    elif lost and (wanted in there or not known):
        lost = [shard for shard in lost if wanted not in there or _index_of(shard)[1] == wanted]
        raise ExportError(
            f"{folder} holds shards of one checkpoint, {listed(lost)}, but not their index",
            f"download {listed({_index_of(shard)[0] for shard in lost})} into the folder",
        )
    elif len(there) > 1 or (known and variant):
        raise ExportError(
            f"{folder} holds {listed(usual)}, nothing without a variant{f' and no {variant}' if variant else ''}",
            f"choose with --variant, for example --variant {sorted(filter(None, variants))[0]}",
        )
    elif known:
        taken = known[0]
    elif len(unknown) == 1:
        taken = Choice(unknown[0])
    elif unknown or len(strays) > 1:
        raise ExportError(
            f"{folder} holds several checkpoints, none under the usual name: {listed(unknown or strays)}",
            f"call the one that config.json describes {plain_name(folder, is_index=bool(unknown))}",
        )
    elif strays:
        taken = Choice(strays[0])
    else:
        raise _nothing(folder)
    others = [choice.name for choice in known] + unknown + strays
    return Choice(taken.name, taken.variant, tuple(name for name in others if name != taken.name))


def plain_name(folder: Path, *, is_index: bool) -> str:
    """What the file or the index is called that the library of the model in `folder` loads."""
    return f"{_stems(folder)[0]}.safetensors{'.index.json' if is_index else ''}"


def _known(folder: Path, names: list[str]) -> list[Choice]:
    """The checkpoints under usual names; of a variant, first that which the model's library would load."""
    found: list[tuple[tuple[int, bool], Choice]] = []
    stems = _stems(folder)
    for name in names:
        for pattern, is_index in ((_SINGLE, False), (_INDEX, True)):
            if (match := pattern.fullmatch(name)) and not _SHARD.fullmatch(name):
                stem, *variants = match.groups()
                # diffusers asks for an index first, transformers for a single file.
                late = is_index != (stem == _DIFFUSERS)
                found.append(((stems.index(stem), late), Choice(name, next(filter(None, variants), None))))
    return [choice for _, choice in sorted(found, key=lambda one: one[0])]


def _stems(folder: Path) -> tuple[str, str]:
    """How files are called, first by the library that wrote config.json: diffusers names a class there."""
    try:
        is_diffusers = "_class_name" in json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError, TypeError):
        is_diffusers = True
    return (_DIFFUSERS, _TRANSFORMERS) if is_diffusers else (_TRANSFORMERS, _DIFFUSERS)


def _index_of(shard: str) -> tuple[str, str | None]:
    """The name of the index to which a shard belongs, and its variant."""
    match = _SHARD.fullmatch(shard)
    stem, *variants = match.groups() if match else (shard,)
    variant = next(filter(None, variants), None)
    return ".".join(filter(None, [stem, "safetensors.index", variant, "json"])), variant


def _nothing(folder: Path) -> ExportError:
    if not folder.is_dir():
        return ExportError(f"{folder} is not there", "complete the model folder")
    other = [path.name for path in folder.iterdir() if path.suffix in _OTHER]
    if not other:
        return ExportError(f"{folder} has no .safetensors file", "download the model's weights into it")
    return ExportError(
        f"{folder} has no .safetensors file, only {listed(other)}",
        "load the model with its own library and save it with save_pretrained, which writes safetensors",
    )
