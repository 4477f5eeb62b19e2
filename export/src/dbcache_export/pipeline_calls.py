"""How diffusers' pipelines call their schedulers, and what becomes of known predictions when they do."""

from __future__ import annotations

__all__ = ["CALLS", "PER_STEP", "Calls", "Run", "drive", "wave"]

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import CogVideoXDPMScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.mochi.pipeline_mochi import linear_quadratic_schedule
from torch import Tensor

#: Evenly from 1 to 1 / steps, as pipelines that pass sigmas of their own do.
PER_STEP: Mapping[str, Any] = {"kind": "linear", "last": None}
#: As Mochi's pipeline does.
_LINEAR_QUADRATIC: Mapping[str, Any] = {"kind": "linear_quadratic", "threshold": 0.025}
#: Latents have more channels than pictures, which some settings tell apart.
_CHANNELS = 4


def _interpolated_mu(max_shift: float = 1.15) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """A shift that is linear in the number of tokens, by the scheduler's settings or else the pipeline's defaults."""

    def shift(config: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "kind": "dynamic",
            "base_tokens": config.get("base_image_seq_len", 256),
            "max_tokens": config.get("max_image_seq_len", 4096),
            "base_shift": config.get("base_shift", 0.5),
            "max_shift": config.get("max_shift", max_shift),
        }

    return shift


def _empirical_mu(_: Mapping[str, Any]) -> dict[str, Any]:
    """FLUX.2's shift by tokens and steps, between two lines that were fitted for 10 and 200 steps."""
    lines = [[8.73809524e-05, 1.89833333, 10], [0.00016927, 0.45666666, 200]]
    return {"kind": "dynamic_steps", "lines": lines, "max_tokens": 4300}


@dataclass(frozen=True)
class Calls:
    """What a pipeline passes to its scheduler, and which of its methods it calls."""

    #: Base sigmas as the manifest describes them; None if the scheduler makes its own.
    sigmas: Mapping[str, Any] | None = None
    #: None are passed to a scheduler with use_flow_sigmas.
    leaves_flow_sigmas: bool = False
    #: The shift whose mu is passed, as the manifest describes it but for `time_shift`; None if none is passed.
    shift: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None
    #: mu is passed to every scheduler, not only to those with use_dynamic_shifting.
    always_shifts: bool = True
    scales_input: bool = False
    sets_begin: bool = True
    #: CogVideoX's own step, which takes what the last one found; for schedulers that have it.
    takes_samples: bool = False

    def passed_sigmas(self, config: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """Base sigmas that a scheduler of this configuration is passed."""
        return None if self.leaves_flow_sigmas and config.get("use_flow_sigmas") else self.sigmas

    def passed_shift(self, config: Mapping[str, Any]) -> dict[str, Any] | None:
        """The shift whose mu a scheduler of this configuration is passed."""
        if self.shift is None or not (self.always_shifts or config.get("use_dynamic_shifting")):
            return None
        return self.shift(config)


@dataclass(frozen=True)
class Run:
    """What a scheduler made of known predictions."""

    sigmas: list[float] | None
    timesteps: list[float]
    #: After each step.
    latents: list[list[float]]

    def is_finite(self) -> bool:
        """Whether all numbers are, and timesteps are such that a model could have seen."""
        numbers = np.array([number for row in [self.sigmas or [], self.timesteps, *self.latents] for number in row])
        return bool(np.isfinite(numbers).all()) and all(abs(timestep) < 1e9 for timestep in self.timesteps)


def wave(step: int, places: int = _CHANNELS) -> Tensor:
    """The latents before the first step (1000), and the part of a prediction that depends on nothing; float64."""
    return torch.tensor([math.sin(1.3 * step + 0.7 * k + 0.2) for k in range(places)], dtype=torch.float64)


def drive(built: Any, calls: Calls, steps: int, tokens: int, places: int = _CHANNELS) -> Run:
    """Runs a diffusers scheduler as its pipeline does, on predictions that depend on the latents, as a model's do.

    Raises:
        Exception: Whatever diffusers raises.
    """
    config = built.config
    given: dict[str, Any] = {}
    if (base := calls.passed_sigmas(config)) is not None:
        _accepts(built.set_timesteps, "sigmas")
        given["sigmas"] = _base(base, steps)
    else:
        given["num_inference_steps"] = steps
    if (shift := calls.passed_shift(config)) is not None:
        given["mu"] = _mu(shift, tokens, steps)
    built.set_timesteps(**given)
    # PixArt's pipeline, which scales its input, asks first.
    if calls.sets_begin and (hasattr(built, "set_begin_index") or not calls.scales_input):
        built.set_begin_index(0)
    x, old = wave(1000, places)[None, :, None, None], None
    recorded = []
    timesteps = built.timesteps
    for step, t in enumerate(timesteps):
        taken = built.scale_model_input(x, t) if calls.scales_input else x
        output = wave(step, places)[None, :, None, None] + 0.3 * taken
        if calls.takes_samples and isinstance(built, CogVideoXDPMScheduler):
            x, old = built.step(output, old, t, timesteps[step - 1] if step > 0 else None, x, return_dict=False)
        else:
            x = built.step(output, t, x, return_dict=False)[0]
        recorded.append(x.flatten().tolist())
    flow = isinstance(built, FlowMatchEulerDiscreteScheduler) or config.get("use_flow_sigmas")
    return Run(built.sigmas.tolist() if flow else None, timesteps.tolist(), recorded)


def _accepts(method: Any, name: str) -> None:
    if name not in inspect.signature(method).parameters:
        raise ValueError(f"the pipeline passes {name}, which the scheduler does not take")


def _base(sigmas: Mapping[str, Any], steps: int) -> np.ndarray:
    if sigmas["kind"] == "linear_quadratic":
        return np.array(linear_quadratic_schedule(steps, sigmas["threshold"]))
    return np.linspace(1.0, 1 / steps, steps)


def _mu(shift: Mapping[str, Any], tokens: int, steps: int) -> float:
    """By the formulas of the manifest (models/README.md)."""
    if shift["kind"] == "dynamic":
        slope = (shift["max_shift"] - shift["base_shift"]) / (shift["max_tokens"] - shift["base_tokens"])
        return float(tokens * slope + shift["base_shift"] - slope * shift["base_tokens"])
    (few, many), (begin, end) = zip(*(((a * tokens + b), at) for a, b, at in shift["lines"]), strict=True)
    slope = (many - few) / (end - begin)
    return float(many if tokens > shift["max_tokens"] else few + slope * (steps - begin))


_BY_TOKENS = _interpolated_mu()
#: By family, as the pipelines of diffusers 0.42.1 do.
CALLS: Mapping[str, Calls] = {
    "flux": Calls(PER_STEP, leaves_flow_sigmas=True, shift=_BY_TOKENS),
    "flux2": Calls(PER_STEP, leaves_flow_sigmas=True, shift=_empirical_mu),
    "sd3": Calls(shift=_interpolated_mu(1.16), always_shifts=False, sets_begin=False),
    "pixart": Calls(scales_input=True),
    "dit": Calls(scales_input=True, sets_begin=False),
    "qwen_image": Calls(PER_STEP, shift=_BY_TOKENS),
    "z_image": Calls(PER_STEP, shift=_BY_TOKENS),
    "cogvideox": Calls(scales_input=True, sets_begin=False, takes_samples=True),
    "mochi": Calls(_LINEAR_QUADRATIC),
    "wan": Calls(),
    "ltx": Calls(PER_STEP, shift=_BY_TOKENS),
    "hunyuan_video": Calls(PER_STEP),
}
