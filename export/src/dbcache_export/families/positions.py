"""Positions of a grid of tokens: rotary tables and sinusoids, computed in the graph from the lengths of its axes."""

from __future__ import annotations

__all__ = ["counted", "over_grid", "rotary_tables", "sinusoids"]

from collections.abc import Sequence

import torch
from torch import Tensor

from dbcache_export.families.rotary import angles, tables


def counted(*lengths: int) -> list[Tensor]:
    """0, 1, 2 … along each axis, float32."""
    return [torch.arange(length, dtype=torch.float32) for length in lengths]


def rotary_tables(positions: Sequence[Tensor], widths: Sequence[int], theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines for the tokens of a grid, each frequency twice in a row.

    Args:
        positions: For each axis of the grid the positions along it, `[length]`, float32.
        widths: For each axis its share of a head's width.
        theta: Base of the frequencies.

    Returns:
        Two tensors `[tokens, sum of widths]`, float32; the last axis of the grid runs fastest.
    """
    along = [
        tables(angles(position, width, theta, torch.float32)) for position, width in zip(positions, widths, strict=True)
    ]
    return over_grid([cos for cos, _ in along]), over_grid([sin for _, sin in along])


def sinusoids(position: Tensor, width: int) -> Tensor:
    """`[length]` to `[length, width]`: the sines of position · frequency, then the cosines."""
    frequencies = 1.0 / 10000.0 ** (torch.arange(width // 2, dtype=torch.float64) / (width / 2.0))
    phase = torch.outer(position, frequencies.float())
    return torch.cat([phase.sin(), phase.cos()], dim=1)


def over_grid(parts: Sequence[Tensor]) -> Tensor:
    """Features along each axis, `[length, width]`, side by side for every token: `[tokens, sum of widths]`."""
    lengths = [part.shape[0] for part in parts]
    spread = []
    for axis, part in enumerate(parts):
        shape = [1] * len(parts) + [part.shape[1]]
        shape[axis] = lengths[axis]
        spread.append(part.view(shape).expand(*lengths, part.shape[1]))
    return torch.cat(spread, dim=-1).flatten(0, len(parts) - 1)
