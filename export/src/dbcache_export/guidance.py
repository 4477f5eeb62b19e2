"""The manifest's `guidance`: none, a scale that the model takes as an input, or classifier-free guidance.

The formula implies above which scale the engine runs both branches: 0 for `difference`, else 1. All pipelines that are
exported guide so (`guidance_test.py`). Some have no negative prompt of their own and no guidance without one.
"""

from __future__ import annotations

__all__ = ["NONE", "embedded", "fused", "separate"]

from collections.abc import Mapping
from typing import Any, Literal

Formula = Literal["standard", "difference", "renormalised", "zero_star"]

#: The model runs once a step, and takes no scale.
NONE: Mapping[str, Any] = {"kind": "none"}


def embedded(default: float) -> dict[str, Any]:
    """The model takes the scale as an input."""
    return {"kind": "embedded", "default": default}


def separate(
    default: float, formula: Formula = "standard", *, rescale: float = 0.0, needs_negative: bool = False
) -> dict[str, Any]:
    """Two runs a step, the conditional one first; with `needs_negative` only where a negative prompt is given."""
    fields = _classifier_free(default, "separate", ("cond", "uncond"), formula, rescale, "constant")
    return fields | {"needs_negative": True} if needs_negative else fields


def fused(
    default: float,
    first: Literal["cond", "uncond"],
    formula: Formula = "standard",
    *,
    rescale: float = 0.0,
    scale: Literal["constant", "cosine"] = "constant",
) -> dict[str, Any]:
    """One run a step over a batch that is twice as long and begins with `first`."""
    order = ("cond", "uncond") if first == "cond" else ("uncond", "cond")
    return _classifier_free(default, "fused", order, formula, rescale, scale)


def _classifier_free(
    default: float, mode: str, order: tuple[str, str], formula: Formula, rescale: float, scale: str
) -> dict[str, Any]:
    return {
        "kind": "classifier_free",
        "default": default,
        "mode": mode,
        "order": list(order),
        "formula": formula,
        "rescale": rescale,
        "scale": scale,
    }
