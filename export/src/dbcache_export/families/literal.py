"""Frequencies exactly as PyTorch computes them, written into the graph as constants.

The sine of timestep · frequency has an angle of up to 1000 and more; a frequency that differs in its last bit turns it
by 1e-4. So frequencies are not left to another library's powers and exponentials.
"""

from __future__ import annotations

__all__ = ["Literal", "literal_timesteps"]

import math
from collections.abc import Callable

import torch
from diffusers.models.embeddings import Timesteps
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily


class Literal:
    """A short float32 vector whose values are known although a module is traced without data."""

    def __init__(self, compute: Callable[[], Tensor]) -> None:
        """Keeps the values of what `compute` gives."""
        with unset_fake_temporarily():
            self.values: list[float] = compute().tolist()

    def tensor(self) -> Tensor:
        """`[values]`, a constant of the graph."""
        return torch.stack([torch.full((), value, dtype=torch.float32) for value in self.values])


def literal_timesteps(module: nn.Module) -> None:
    """Gives every sinusoidal embedding of timesteps inside `module` its frequencies as constants."""
    for owner in list(module.modules()):
        for name, child in list(owner.named_children()):
            if isinstance(child, Timesteps):
                setattr(owner, name, _Timesteps(child))


class _Timesteps(nn.Module):
    """diffusers' `Timesteps`, with the same operations on the same frequencies."""

    def __init__(self, original: Timesteps) -> None:
        super().__init__()
        half = original.num_channels // 2
        self.frequencies = Literal(
            lambda: torch.exp(
                -math.log(10000) * torch.arange(half, dtype=torch.float32) / (half - original.downscale_freq_shift)
            )
        )
        self.scale = original.scale
        self.cosines_first: bool = original.flip_sin_to_cos

    def forward(self, timesteps: Tensor) -> Tensor:
        """[batch] to [batch, channels], float32."""
        angles = self.scale * (timesteps[:, None].float() * self.frequencies.tensor())
        parts = [angles.cos(), angles.sin()] if self.cosines_first else [angles.sin(), angles.cos()]
        return torch.cat(parts, dim=-1)
