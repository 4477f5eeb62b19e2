"""The models that can be exported: a model folder becomes a Plan by its family, which its class names."""

from __future__ import annotations

__all__ = ["plan"]

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch._subclasses.fake_tensor import FakeTensorMode

from dbcache_export.errors import ExportError
from dbcache_export.families import emoji, pipeline
from dbcache_export.families.catalogue import FAMILIES, closest, transformer_class
from dbcache_export.folder import read_json
from dbcache_export.spec import Options, Plan


def plan(folder: Path, options: Options, fake: FakeTensorMode) -> Plan:
    """The plan for a model folder: a diffusers pipeline, or its transformer alone.

    Raises:
        ExportError: The folder holds no model, one of an unknown class, or a pipeline that does more than the engine.
    """
    index = _index(folder)
    does = _class(index) if index else None
    path = _config(folder, does)
    config = read_json(path)
    name = transformer_class(config)
    if name not in FAMILIES:
        described = f"the model class {name}" if "_class_name" in config else f"{path.name} without a _class_name"
        raise ExportError(
            f"{folder}: {described} is not supported; {closest(name, config)}",
            "dbcache-export --list shows the families",
        )
    family = FAMILIES[name]
    if does and does not in family.pipelines:
        raise ExportError(
            f"{folder}: a {does} is not supported, the engine makes pictures and videos from words alone",
            f"supported with this transformer: {', '.join(family.pipelines)}",
        )
    _refuse_quantised(folder)
    _refuse_left_out(folder, index)
    if emoji.recognises(folder):
        return emoji.plan(folder, options, fake)
    try:
        return pipeline.plan(family, folder, options, fake)
    except _MISFITS as error:  # what the classes of diffusers and transformers raise at settings that do not fit
        first = next(iter(str(error).splitlines()), "")
        raise ExportError(
            f"{folder}: its settings make no model ({type(error).__name__}: {first})",
            "compare its config.json files with those of the published model",
        ) from error


#: Folders that hold weights, the given one itself among them.
_PARTS = ("", "transformer", "transformer_2", "text_encoder", "text_encoder_2", "text_encoder_3", "vae")

#: Types of errors of constructors.
_MISFITS = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


def _index(folder: Path) -> dict[str, Any]:
    """What describes a pipeline; empty for a transformer alone."""
    found = [path for path in (folder / "model_index.json", folder / "modular_model_index.json") if path.is_file()]
    return read_json(found[0]) if found else {}


def _class(index: Mapping[str, Any]) -> str | None:
    """The pipeline's class; one whose code the repository brings along has its module in front."""
    name = index.get("_class_name") or None
    return ".".join(map(str, name)) if isinstance(name, list) else name


def _config(folder: Path, pipeline: str | None) -> Path:
    for config in (folder / "transformer" / "config.json", folder / "config.json"):
        if config.is_file():
            return config
    raise ExportError(
        f"{folder}{f', a {pipeline},' if pipeline else ''} has neither transformer/config.json nor config.json",
        "give the folder of a diffusers pipeline or of its transformer",
    )


def _refuse_quantised(folder: Path) -> None:
    """The scales of quantised weights have no place in the graphs."""
    for path in (folder / part / "config.json" for part in _PARTS):
        if path.is_file() and (quantised := read_json(path).get("quantization_config")):
            method = quantised.get("quant_method") if isinstance(quantised, dict) else None
            raise ExportError(
                f"{path}: quantised weights (quantization_config{f': {method}' if method else ''}) are not supported",
                "take the checkpoint in float32, float16 or bfloat16",
            )


def _refuse_left_out(folder: Path, index: Mapping[str, Any]) -> None:
    """A part of a pipeline that its index leaves out is not read by diffusers, though its folder lies there."""
    for name, part in index.items():
        if isinstance(part, list) and len(part) >= 2 and part[1] is None and (folder / name).is_dir():
            raise ExportError(
                f"{folder}: model_index.json says that the pipeline has no {name}, but there is a folder",
                f"take {name} out of a copy of the folder, or name its class in model_index.json",
            )
