"""One generation of a tiny model: what `families.py` records."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

__all__ = ["STEPS", "Subject", "Tensors"]

STEPS = 10

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Subject:
    """One generation of a tiny model.

    Attributes:
        write: Writes the model's folder: transformer and scheduler.
        pipeline: From that folder to diffusers' pipeline, in float32.
        arguments: Makes those of the pipeline's call, without the number of steps.
        size: Width and height in pixels.
        noise: [1, channels, (frames,) height, width], as the engine draws it.
        inputs: What the engine is given instead of a prompt.
        guidance: The scale, where there is one.
        separate: Whether the branches are two calls of the transformer, which cache-dit keeps apart.
        latents: From the pipeline's result to latents shaped as the noise.
        frames: Of a video.
        first_steps: Steps of the first transformer, where there are two.
        guidance_2: The scale of the second.
    """

    write: Callable[[Path], None]
    pipeline: Callable[[Path], Any]
    arguments: Callable[[], Mapping[str, Any]]
    size: tuple[int, int]
    noise: torch.Tensor
    inputs: Tensors
    guidance: float | None
    separate: bool
    latents: Callable[[Any], torch.Tensor] = field(default=lambda result: result[0])
    frames: int | None = None
    first_steps: int | None = None
    guidance_2: float | None = None

    def run(self, pipe: Any) -> torch.Tensor:
        """The final latents."""
        pipe.set_progress_bar_config(disable=True)
        with torch.no_grad():
            result = pipe(**self.arguments(), num_inference_steps=STEPS, return_dict=False)
        return self.latents(result).contiguous()
