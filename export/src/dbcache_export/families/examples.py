"""Values of inputs for the check that are not any numbers: masks of texts."""

from __future__ import annotations

__all__ = ["padded", "prefix_mask"]

from collections.abc import Sequence

import torch


def padded(shape: Sequence[int], random: torch.Generator) -> torch.Tensor:
    """Masks of texts of different lengths, each of at least one token; the first fills its row."""
    lengths = _lengths(shape, random)
    lengths[0] = shape[1]
    return _mask(shape, lengths)


def prefix_mask(shape: Sequence[int], random: torch.Generator) -> torch.Tensor:
    """[batch, text]: ones for the tokens of texts of different lengths, zeros for the padding behind them."""
    return _mask(shape, _lengths(shape, random))


def _lengths(shape: Sequence[int], random: torch.Generator) -> torch.Tensor:
    return torch.randint(1, shape[1] + 1, (shape[0], 1), generator=random)


def _mask(shape: Sequence[int], lengths: torch.Tensor) -> torch.Tensor:
    return (torch.arange(shape[1]) < lengths).float()
