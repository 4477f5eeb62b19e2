"""Which families there are, what was checked of each, and which is the closest to a model that is none of them."""

from __future__ import annotations

__all__ = ["CHECKED", "PIPELINES", "closest", "table", "transformer_class"]

import difflib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import diffusers

from dbcache_export.errors import listed

_GRAPHS = "every graph and the chain of all blocks, two sizes, batches of 1 and 2"
_TEXT = "; text encoders; decoder"

#: Class of the transformer: the family's name, and what its tests compare with diffusers and transformers.
CHECKED: Mapping[str, tuple[str, str]] = {
    "FluxTransformer2DModel": ("FLUX.1", _GRAPHS + _TEXT),
    "Flux2Transformer2DModel": ("FLUX.2", _GRAPHS + _TEXT),
    "SD3Transformer2DModel": ("Stable Diffusion 3, 3.5", _GRAPHS + _TEXT),
    "PixArtTransformer2DModel": ("PixArt-α, PixArt-Σ", _GRAPHS + _TEXT),
    "DiTTransformer2DModel": ("DiT", _GRAPHS),
    "QwenImageTransformer2DModel": ("Qwen-Image", _GRAPHS + _TEXT),
    "ZImageTransformer2DModel": ("Z-Image", _GRAPHS + _TEXT),
    "CogVideoXTransformer3DModel": ("CogVideoX 1.0", _GRAPHS + _TEXT),
    "MochiTransformer3DModel": ("Mochi", _GRAPHS + _TEXT),
    "WanTransformer3DModel": ("Wan 2.1, 2.2", _GRAPHS + _TEXT),
    "LTXVideoTransformer3DModel": ("LTX-Video", _GRAPHS + _TEXT),
    "HunyuanVideoTransformer3DModel": ("HunyuanVideo", _GRAPHS + _TEXT),
}


#: Class of the transformer: the pipelines of diffusers that make pictures or videos from words with it, as the engine
#: does. The others that share a transformer's class take pictures, edit, or are steered by a second model.
PIPELINES: Mapping[str, Sequence[str]] = {
    "FluxTransformer2DModel": ("FluxPipeline",),
    "Flux2Transformer2DModel": ("Flux2Pipeline", "Flux2KleinPipeline"),
    "SD3Transformer2DModel": ("StableDiffusion3Pipeline",),
    "PixArtTransformer2DModel": ("PixArtAlphaPipeline", "PixArtSigmaPipeline"),
    "DiTTransformer2DModel": ("DiTPipeline",),
    "QwenImageTransformer2DModel": ("QwenImagePipeline",),
    "ZImageTransformer2DModel": ("ZImagePipeline",),
    "CogVideoXTransformer3DModel": ("CogVideoXPipeline",),
    "MochiTransformer3DModel": ("MochiPipeline",),
    "WanTransformer3DModel": ("WanPipeline",),
    "LTXVideoTransformer3DModel": ("LTXPipeline",),
    "HunyuanVideoTransformer3DModel": ("HunyuanVideoPipeline",),
}

#: A class that diffusers has split up, by the setting that says which part a model belongs to.
_SPLIT = {
    "ada_norm_zero": "DiTTransformer2DModel",
    "ada_norm_single": "PixArtTransformer2DModel",
}


def transformer_class(config: Mapping[str, Any]) -> str:
    """The class of a transformer by its config.json, with the name that diffusers has for it today."""
    name = str(config.get("_class_name"))
    return _SPLIT.get(str(config.get("norm_type")), name) if name == "Transformer2DModel" else name


def table() -> str:
    """A line for each family: its name, its transformer's class, what was checked."""
    widths = [max(map(len, column)) for column in (dict(CHECKED.values()), CHECKED)]
    lines = [f"{title:<{widths[0]}}  {name:<{widths[1]}}  {checked}" for name, (title, checked) in CHECKED.items()]
    return "\n".join(lines)


def closest(name: str, config: Mapping[str, Any]) -> str:
    """The family whose class is named most like `name`, and in which settings a model of that class differs."""
    nearest = max(CHECKED, key=lambda known: difflib.SequenceMatcher(None, _stem(name), _stem(known)).ratio())
    known = set(inspect.signature(getattr(diffusers, nearest).__init__).parameters) - {"self", "kwargs"}
    given = {key for key in config if not key.startswith("_")}
    differences = [
        f"{what} {listed(keys)}" for what, keys in (("it adds", given - known), ("it lacks", known - given)) if keys
    ]
    return f"the closest is {nearest} ({CHECKED[nearest][0]}): {'; '.join(differences) or 'the settings are the same'}"


def _stem(name: str) -> str:
    return name.partition("Transformer")[0].lower()
