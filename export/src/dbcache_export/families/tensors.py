"""The tensors that most families have, by the names that they have in every engine."""

from __future__ import annotations

__all__ = [
    "GRID",
    "GUIDANCE",
    "PADDED_TEXT_MASK",
    "ROTARY",
    "SIGMA",
    "STREAMS",
    "TEXT_MASK",
    "TIMESTEP",
    "Input",
    "pooled",
    "rotary",
    "states",
    "streams",
    "tables",
]

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from dbcache_export.families.examples import padded, prefix_mask
from dbcache_export.families.sizes import Shape
from dbcache_export.spec import DType, Tensor

#: What flows from block to block. The picture or the video comes first.
STREAMS = ("hidden_states", "encoder_hidden_states")
ROTARY = ("rotary_cos", "rotary_sin")


@dataclass(frozen=True)
class Input:
    """A tensor that the embed graph takes.

    Attributes:
        source: Where the engine gets it, as the manifest's `from` says it.
        shape: Its axes.
        per: How often the engine makes it: once a `request`, or once a `step`.
        dtype: Its type.
        example: For the check: values that are not any numbers, from a shape and a generator.
    """

    source: str | Mapping[str, Any]
    shape: Shape
    per: str = "request"
    dtype: DType = "f32"
    example: Callable[[Sequence[int], torch.Generator], torch.Tensor] | None = None


TIMESTEP = Input("timestep", ("batch",), "step")
SIGMA = Input("sigma", ("batch",), "step")
GRID = Input("grid", ("image", 3))
GUIDANCE = Input("guidance", ("batch",))
TEXT_MASK = Input("text", ("batch", "text"), example=prefix_mask)
#: The same where the longest text of a batch fills its mask.
PADDED_TEXT_MASK = Input("text", ("batch", "text"), example=padded)


def states(width: int) -> Input:
    """What text encoders make of each token."""
    return Input("text", ("batch", "text", width))


def pooled(width: int) -> Input:
    """What text encoders make of the whole text."""
    return Input("text", ("batch", width))


def streams(width: int, text_width: int | None = None) -> dict[str, Shape]:
    """The stream of a picture or a video, and that of the text."""
    return dict(zip(STREAMS, (("batch", "image", width), ("batch", "text", text_width or width)), strict=True))


def tables(*shape: int | str) -> dict[str, Tensor]:
    """The cosines and sines of rotary positions, which stay float32."""
    return {name: Tensor("f32", shape) for name in ROTARY}


def rotary(pair: Iterable[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Cosines and sines by name."""
    return dict(zip(ROTARY, pair, strict=True))
