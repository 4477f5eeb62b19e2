"""The models that can be exported. A family turns a model folder into a Plan; it is found by the model's class."""

from __future__ import annotations

__all__ = ["CLASSES", "plan"]

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch._subclasses.fake_tensor import FakeTensorMode

from dbcache_export.errors import ExportError
from dbcache_export.families import (
    cogvideox,
    dit,
    emoji,
    flux,
    flux2,
    hunyuan_video,
    ltx,
    mochi,
    pixart,
    qwen_image,
    sd3,
    wan,
    z_image,
)
from dbcache_export.families.catalogue import closest
from dbcache_export.folder import read_json
from dbcache_export.spec import Options, Plan

#: By the class of the transformer.
CLASSES: dict[str, Callable[[Path, Options, FakeTensorMode], Plan]] = {
    "FluxTransformer2DModel": flux.plan,
    "Flux2Transformer2DModel": flux2.plan,
    "SD3Transformer2DModel": sd3.plan,
    "PixArtTransformer2DModel": pixart.plan,
    "DiTTransformer2DModel": dit.plan,
    "QwenImageTransformer2DModel": qwen_image.plan,
    "ZImageTransformer2DModel": z_image.plan,
    "CogVideoXTransformer3DModel": cogvideox.plan,
    "MochiTransformer3DModel": mochi.plan,
    "WanTransformer3DModel": wan.plan,
    "LTXVideoTransformer3DModel": ltx.plan,
    "HunyuanVideoTransformer3DModel": hunyuan_video.plan,
}


def plan(folder: Path, options: Options, fake: FakeTensorMode) -> Plan:
    """The plan for a model folder: a diffusers pipeline, or its transformer alone.

    Raises:
        ExportError: The folder holds no model, or one of an unknown class.
    """
    config = _config(folder)
    name = str(config.get("_class_name"))
    if name not in CLASSES:
        raise ExportError(
            f"{folder}: the model class {name} is not supported; {closest(name, config)}",
            "dbcache-export --list shows the families",
        )
    if emoji.recognises(folder):
        return emoji.plan(folder, options, fake)
    return CLASSES[name](folder, options, fake)


def _config(folder: Path) -> dict[str, Any]:
    for config in (folder / "transformer" / "config.json", folder / "config.json"):
        if config.is_file():
            return read_json(config)
    raise ExportError(
        f"{folder} has neither transformer/config.json nor config.json",
        "give the folder of a diffusers pipeline or of its transformer",
    )
