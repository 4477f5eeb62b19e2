"""Pictures [batch, channels, height, width] as tokens [batch, tokens, channels · p · p], as the engine packs them."""

from __future__ import annotations

__all__ = ["embed_patches", "pack", "sinusoidal_positions", "to_packed", "unpack"]

import torch
from torch import Tensor, nn
from torch.nn import functional


def embed_patches(projection: nn.Conv2d, latents: Tensor) -> Tensor:
    """The convolution of a patch embedding, on packed tokens: a linear layer over channels, rows and columns."""
    return functional.linear(latents, projection.weight.flatten(1), projection.bias)


def to_packed(tokens: Tensor, patch: int, kept: int | None = None) -> Tensor:
    """Features in the order (row, column, channel), as image transformers give them, to (channel, row, column).

    Args:
        tokens: [batch, tokens, p · p · channels].
        patch: p.
        kept: How many channels to keep; the others predict a variance that no scheduler here uses.
    """
    cells = tokens.unflatten(2, (patch, patch, tokens.shape[2] // patch**2))
    return cells[..., :kept].permute(0, 1, 4, 2, 3).flatten(2)


def pack(latents: Tensor, patch: int) -> Tensor:
    """[batch, channels, height, width] to tokens."""
    cells = latents.unflatten(3, (-1, patch)).unflatten(2, (-1, patch))
    return cells.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def unpack(tokens: Tensor, grid: Tensor, patch: int) -> Tensor:
    """Tokens to [batch, channels, height, width]; `grid` [tokens, 3] holds (0, row, column) of each."""
    rows, columns = (int(side) + 1 for side in grid.amax(0)[1:])
    cells = tokens.unflatten(2, (-1, patch, patch)).unflatten(1, (rows, columns))
    return cells.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)


def sinusoidal_positions(grid: Tensor, width: int, base: int, scale: float) -> Tensor:
    """The table of diffusers' PatchEmbed for a picture of any size: columns in its first half, rows in its second.

    Args:
        grid: [tokens, 3], (0, row, column).
        width: Of the model.
        base: Tokens on each side of the size for which positions are 0, 1, 2 …; others are stretched to it.
        scale: By which positions are divided.

    Returns:
        [tokens, width], float32.
    """
    frequencies = 1.0 / 10000 ** (torch.arange(width // 4, dtype=torch.float64) / (width / 4))
    halves = []
    for position in (grid[:, 2], grid[:, 1]):
        stretched = position / ((position.amax(0) + 1) / base) / scale
        angles = stretched.double()[:, None] * frequencies
        halves += [angles.sin(), angles.cos()]
    return torch.cat(halves, 1).float()
