"""One generation of a FLUX-like transformer: the Euler loop that every trace is recorded over.

Does not know about caching: whoever wants to watch or to change a call wraps the transformer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch

__all__ = ["Branch", "Conditions", "Generation", "Subject", "blocks_of", "generate"]

Branch = Literal["cond", "uncond"]
Conditions = dict[str, torch.Tensor]
"""Keyword arguments of the transformer."""


@dataclass(frozen=True)
class Subject:
    """A model together with everything that one generation is given.

    Attributes:
        transformer: A `FluxTransformer2DModel` in float32 and evaluation mode.
        latents: The start noise, packed: `[1, image tokens, patch features]`.
        sigmas: `[steps + 1]`, from high to 0.
        shared: Arguments that both branches get (`img_ids`, `txt_ids`, perhaps `guidance`).
        cond, uncond: Arguments of one branch (`encoder_hidden_states`, `pooled_projections`).
        min_sigma: None when the model predicts the velocity. When it predicts the clean sample x0, the
            smallest divisor of velocity = (x - x0) / max(sigma, min_sigma).
    """

    transformer: Any
    latents: torch.Tensor
    sigmas: torch.Tensor
    shared: Conditions
    cond: Conditions
    uncond: Conditions
    min_sigma: float | None = None

    @property
    def steps(self) -> int:
        """How many steps the generation has."""
        return len(self.sigmas) - 1


@dataclass(frozen=True)
class Generation:
    """What a generation gives.

    Attributes:
        latents: The final latents, shaped as the start noise.
        absmean: mean(|latents|) after each step.
    """

    latents: torch.Tensor
    absmean: list[float]


def generate(
    subject: Subject,
    transformer: Any,
    *,
    cfg_scale: float | None = None,
    uncond_first: bool = False,
    before_call: Callable[[Branch], None] = lambda branch: None,
) -> Generation:
    """Runs all steps: x += (sigma[i + 1] - sigma[i]) * velocity.

    Args:
        subject: What to generate from.
        transformer: The subject's transformer, or a copy of it that caches.
        cfg_scale: None for one call a step; else velocity = u + cfg_scale * (c - u) from two calls.
        uncond_first: Which of the two calls comes first.
        before_call: Told the branch of each call before it happens.

    Returns:
        The final latents.
    """
    order: list[Branch] = ["cond"] if cfg_scale is None else ["cond", "uncond"]
    if uncond_first:
        order.reverse()
    x = subject.latents.clone()
    absmean: list[float] = []
    with torch.inference_mode():
        for step in range(subject.steps):
            sigma = subject.sigmas[step]
            velocities: dict[Branch, torch.Tensor] = {}
            for branch in order:
                before_call(branch)
                velocities[branch] = _velocity(subject, transformer, branch, x, sigma)
            velocity = velocities["cond"]
            if cfg_scale is not None:
                velocity = velocities["uncond"] + cfg_scale * (velocity - velocities["uncond"])
            x = x + (subject.sigmas[step + 1] - sigma) * velocity
            absmean.append(x.abs().mean().item())
    return Generation(x, absmean)


def blocks_of(transformer: Any) -> list[torch.nn.Module]:
    """All blocks in the order in which they run: first the double ones, then the single ones."""
    return [*transformer.transformer_blocks, *transformer.single_transformer_blocks]


def _velocity(subject: Subject, transformer: Any, branch: Branch, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """One call of the transformer, turned into a velocity `[1, image tokens, patch features]`."""
    conditions = subject.cond if branch == "cond" else subject.uncond
    output: torch.Tensor = transformer(
        hidden_states=x, timestep=sigma.expand(len(x)), **conditions, **subject.shared, return_dict=False
    )[0]
    if subject.min_sigma is None:
        return output
    return (x - output) / sigma.clamp(min=subject.min_sigma)
