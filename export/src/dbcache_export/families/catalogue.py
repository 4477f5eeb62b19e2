"""Which families there are, and which is the closest to a model that is none of them."""

from __future__ import annotations

__all__ = ["FAMILIES", "closest", "table", "transformer_class"]

import difflib
import inspect
from collections.abc import Mapping
from typing import Any

from dbcache_export.errors import listed
from dbcache_export.families import (
    cogvideox,
    dit,
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
from dbcache_export.families.family import Family

#: All families, by the class of the transformer.
FAMILIES: Mapping[str, Family] = {
    module.FAMILY.name: module.FAMILY
    for module in (flux, flux2, sd3, pixart, dit, qwen_image, z_image, cogvideox, mochi, wan, ltx, hunyuan_video)
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
    """A line for each family: its title, its transformer's class, what was checked."""
    rows = [(family.title, name, family.checked) for name, family in FAMILIES.items()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(f"{title:<{widths[0]}}  {name:<{widths[1]}}  {checked}" for title, name, checked in rows)


def closest(name: str, config: Mapping[str, Any]) -> str:
    """The family whose class is named most like `name`, and in which settings a model of that class differs."""
    nearest = max(FAMILIES, key=lambda known: difflib.SequenceMatcher(None, _stem(name), _stem(known)).ratio())
    family = FAMILIES[nearest]
    known = set(inspect.signature(family.model.__init__).parameters) - {"self", "kwargs"}
    given = {key for key in config if not key.startswith("_")}
    differences = [
        f"{what} {listed(keys)}" for what, keys in (("it adds", given - known), ("it lacks", known - given)) if keys
    ]
    return f"the closest is {nearest} ({family.title}): {'; '.join(differences) or 'the settings are the same'}"


def _stem(name: str) -> str:
    return name.partition("Transformer")[0].lower()
