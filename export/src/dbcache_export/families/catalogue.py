"""Which families there are, what was checked of each, and which is the closest to a model that is none of them."""

from __future__ import annotations

__all__ = ["CHECKED", "closest", "table"]

import difflib
import inspect
from collections.abc import Mapping
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
