"""The inputs of a request and a step that most families take."""

from __future__ import annotations

__all__ = ["GRID", "GUIDANCE", "PADDED_TEXT_MASK", "SIGMA", "TEXT_MASK", "TIMESTEP", "Input", "pooled", "states"]

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from dbcache_export.families.sizes import Shape
from dbcache_export.spec import DType


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


def _masks(shape: Sequence[int], random: torch.Generator) -> torch.Tensor:
    """[batch, text]: ones for the tokens of texts of different lengths, zeros for the padding behind them."""
    return _mask(shape, _lengths(shape, random))


def _padded_masks(shape: Sequence[int], random: torch.Generator) -> torch.Tensor:
    """The same, but that the first text fills its row."""
    lengths = _lengths(shape, random)
    lengths[0] = shape[1]
    return _mask(shape, lengths)


def _lengths(shape: Sequence[int], random: torch.Generator) -> torch.Tensor:
    return torch.randint(1, shape[1] + 1, (shape[0], 1), generator=random)


def _mask(shape: Sequence[int], lengths: torch.Tensor) -> torch.Tensor:
    return (torch.arange(shape[1]) < lengths).float()


TIMESTEP = Input("timestep", ("batch",), "step")
SIGMA = Input("sigma", ("batch",), "step")
GRID = Input("grid", ("image", 3))
GUIDANCE = Input("guidance", ("batch",))
TEXT_MASK = Input("text", ("batch", "text"), example=_masks)
#: The same where the longest text of a batch fills its mask.
PADDED_TEXT_MASK = Input("text", ("batch", "text"), example=_padded_masks)


def states(width: int) -> Input:
    """What text encoders make of each token."""
    return Input("text", ("batch", "text", width))


def pooled(width: int) -> Input:
    """What text encoders make of the whole text."""
    return Input("text", ("batch", width))
