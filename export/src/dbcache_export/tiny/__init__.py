"""Small models of every family with random weights, for tests and recordings; never for pictures."""

from __future__ import annotations

__all__ = ["randomise", "save"]

import zlib
from pathlib import Path
from typing import Any

import torch


def randomise(model: torch.nn.Module, salt: str = "") -> None:
    """Gives every parameter values of its own, so that no two can be mistaken for each other and none has no effect.

    Two models of one form differ by `salt`. Matrices keep the size of what flows through them; scales of norms lie
    around one.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            random = torch.Generator().manual_seed(zlib.crc32(f"{salt}{name}".encode()))
            values = torch.randn(parameter.shape, generator=random)
            if parameter.ndim > 1:
                values /= parameter[0].numel() ** 0.5
            elif name.endswith("weight"):
                values = 1 + 0.2 * values
            else:
                values *= 0.1
            parameter.copy_(values)


def save(model: Any, folder: Path, dtype: torch.dtype = torch.float32, salt: str = "") -> None:
    """Randomises a diffusers or transformers model and writes it as `dtype`."""
    randomise(model, salt)
    model.to(dtype).save_pretrained(folder)
