"""The models that can be exported. A family turns a model folder into a Plan; it is found by the model's class."""

from __future__ import annotations

__all__ = ["plan"]

from collections.abc import Callable
from pathlib import Path

from torch._subclasses.fake_tensor import FakeTensorMode

from dbcache_export.errors import ExportError, listed
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
from dbcache_export.folder import read_json
from dbcache_export.spec import Options, Plan

_FAMILIES: dict[str, Callable[[Path, Options, FakeTensorMode], Plan]] = {
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
    name = _class_name(folder)
    if name not in _FAMILIES:
        raise ExportError(f"{folder}: the model class {name} is not supported", f"supported: {listed(_FAMILIES)}")
    if emoji.recognises(folder):
        return emoji.plan(folder, options, fake)
    return _FAMILIES[name](folder, options, fake)


def _class_name(folder: Path) -> str:
    for config in (folder / "transformer" / "config.json", folder / "config.json"):
        if config.is_file():
            return str(read_json(config).get("_class_name"))
    raise ExportError(
        f"{folder} has neither transformer/config.json nor config.json",
        "give the folder of a diffusers pipeline or of its transformer",
    )
