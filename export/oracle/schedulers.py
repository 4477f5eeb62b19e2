"""Writes `schedulers.json`: what diffusers' schedulers make of known predictions and known noise.

Each case is a scheduler as its pipeline sets it up, a number of steps, the timesteps that the model is told, and the
latents after each step at three places. The first latents, the predictions and the noise are waves that a test can
compute again; a prediction depends on the latents, as a model's does.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from dbcache_export.scheduler import PER_STEP, prediction, scheduler
from diffusers import (
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu
from diffusers.pipelines.mochi.pipeline_mochi import linear_quadratic_schedule
from diffusers.schedulers import scheduling_dpm_cogvideox

from reference import REFERENCE_DIR, float32_text, write_records

__all__ = ["cases", "run"]

STEPS = (5, 10, 20, 50)
TOKENS = 1024
PLACES = 3

#: What a pipeline passes to `set_timesteps` for a number of steps.
Setup = Callable[[int], dict[str, Any]]


def plain(steps: int) -> dict[str, Any]:
    """Nothing but the number of steps."""
    return {"num_inference_steps": steps}


def per_step(steps: int) -> dict[str, Any]:
    """As pipelines that pass sigmas of their own."""
    return {"sigmas": np.linspace(1.0, 1 / steps, steps)}


def mochi(steps: int) -> dict[str, Any]:
    """As Mochi's pipeline."""
    return {"sigmas": np.array(linear_quadratic_schedule(steps, 0.025))}


def flux2(steps: int) -> dict[str, Any]:
    """As FLUX.2's pipeline."""
    return per_step(steps) | {"mu": compute_empirical_mu(TOKENS, steps)}


COGVIDEOX = {
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
    "clip_sample": False,
}
FLUX2_SHIFT = {
    "kind": "dynamic_steps",
    "lines": [[8.73809524e-05, 1.89833333, 10], [0.00016927, 0.45666666, 200]],
    "max_tokens": 4300,
    "time_shift": "exponential",
}
DPM = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"}


def cases() -> list[tuple[str, Any, Setup, dict[str, Any]]]:
    """Name, scheduler, what the pipeline passes, and what a family adds to the manifest's fields."""
    flow = FlowMatchEulerDiscreteScheduler
    wan = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
    return [
        ("SD3", flow(shift=3.0), plain, {"sigmas": None}),
        ("HunyuanVideo", flow(shift=7.0), per_step, {"sigmas": PER_STEP}),
        (
            "Mochi",
            flow(invert_sigmas=True),
            mochi,
            {"sigmas": {"kind": "linear_quadratic", "threshold": 0.025}},
        ),
        ("FLUX.2", flow(use_dynamic_shifting=True), flux2, {"sigmas": PER_STEP, "shift": FLUX2_SHIFT}),
        ("DiT", DDIMScheduler(clip_sample=False), plain, {}),
        (
            "DDIM, offset, first alpha",
            DDIMScheduler(clip_sample=False, steps_offset=1, set_alpha_to_one=False, beta_schedule="scaled_linear"),
            plain,
            {},
        ),
        ("DDIM, cosine", DDIMScheduler(clip_sample=False, beta_schedule="squaredcos_cap_v2"), plain, {}),
        ("DDIM, linspace", DDIMScheduler(clip_sample=False, timestep_spacing="linspace"), plain, {}),
        ("CogVideoX-2B DDIM", CogVideoXDDIMScheduler(**COGVIDEOX, snr_shift_scale=3.0), plain, {}),
        ("CogVideoX-5B DDIM", CogVideoXDDIMScheduler(**COGVIDEOX, snr_shift_scale=1.0), plain, {}),
        ("CogVideoX-2B DPM", CogVideoXDPMScheduler(**COGVIDEOX, snr_shift_scale=3.0), plain, {}),
        ("CogVideoX-5B DPM", CogVideoXDPMScheduler(**COGVIDEOX, snr_shift_scale=1.0), plain, {}),
        ("PixArt", DPMSolverMultistepScheduler(**DPM), plain, {}),
        ("DPM++ Karras", DPMSolverMultistepScheduler(**DPM, use_karras_sigmas=True), plain, {}),
        (
            "DPM++ third order",
            DPMSolverMultistepScheduler(**DPM, solver_order=3, timestep_spacing="trailing"),
            plain,
            {},
        ),
        (
            "DPM++ Heun",
            DPMSolverMultistepScheduler(
                **DPM, solver_type="heun", final_sigmas_type="sigma_min", timestep_spacing="leading", steps_offset=1
            ),
            plain,
            {},
        ),
        (
            "DPM++ v",
            DPMSolverMultistepScheduler(**DPM, prediction_type="v_prediction", euler_at_final=True),
            plain,
            {},
        ),
        ("DPM++ first order", DPMSolverMultistepScheduler(**DPM, solver_order=1), plain, {}),
        ("DPM++ flow", DPMSolverMultistepScheduler(**wan, flow_shift=3.0), plain, {}),
        ("Wan 480p", UniPCMultistepScheduler(**wan, flow_shift=3.0), plain, {}),
        ("Wan 720p", UniPCMultistepScheduler(**wan, flow_shift=5.0), plain, {}),
        ("UniPC third order", UniPCMultistepScheduler(**DPM, solver_order=3), plain, {}),
        (
            "UniPC bh1",
            UniPCMultistepScheduler(**DPM, solver_type="bh1", disable_corrector=[0, 1], final_sigmas_type="sigma_min"),
            plain,
            {},
        ),
        ("UniPC Karras", UniPCMultistepScheduler(**DPM, use_karras_sigmas=True), plain, {}),
    ]


def wave(step: int) -> torch.Tensor:
    """The latents before the first step (1000), and the part of a prediction that depends on nothing."""
    return torch.tensor([math.sin(1.3 * step + 0.7 * k + 0.2) for k in range(PLACES)], dtype=torch.float64)


def noise(step: int, draw: int) -> torch.Tensor:
    """The draw `draw` of a step."""
    return torch.tensor([math.cos(2.1 * step + 0.4 * draw + 1.1 * k) for k in range(PLACES)], dtype=torch.float64)


def run(built: Any, setup: dict[str, Any]) -> tuple[list[float], list[list[float]]]:
    """Timesteps, and the latents after each step; in float64 where the scheduler lets them be."""
    built.set_timesteps(**setup)
    x, old, timesteps = wave(1000)[None, None], None, built.timesteps
    recorded = []
    for step, t in enumerate(timesteps):
        output = wave(step)[None, None] + 0.3 * x
        if isinstance(built, CogVideoXDPMScheduler):
            draws = iter(range(2))
            scheduling_dpm_cogvideox.randn_tensor = lambda *_, step=step, draws=draws, **__: noise(step, next(draws))
            back = timesteps[step - 1] if step > 0 else None
            x, old = built.step(output, old, t, back, x, return_dict=False)
        else:
            x = built.step(output, t, x, return_dict=False)[0]
        recorded.append(x.flatten().tolist())
    return timesteps.tolist(), recorded


def described(built: Any, family: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The manifest's scheduler and prediction, by way of the exporter."""
    with tempfile.TemporaryDirectory() as folder:
        built.save_pretrained(Path(folder) / "scheduler")
        given = {"sigmas": family["sigmas"]} if "sigmas" in family else {}
        fields = scheduler(Path(folder), **given)
        fields |= {name: value for name, value in family.items() if name != "sigmas"}
        return fields, prediction(Path(folder))


def main() -> None:
    """Command line: writes the reference file."""
    parser = argparse.ArgumentParser(description="write the steps of diffusers' schedulers as reference values")
    parser.add_argument("--out", type=Path, default=REFERENCE_DIR / "schedulers.json")
    arguments = parser.parse_args()
    records: list[dict[str, Any]] = []
    for name, built, setup, family in cases():
        fields, predicted = described(built, family)
        for steps in STEPS:
            timesteps, latents = run(built, setup(steps))
            records.append(
                {
                    "name": name,
                    "scheduler": fields,
                    "prediction": predicted,
                    "steps": steps,
                    "image_tokens": TOKENS,
                    "timesteps": [float32_text(value) for value in timesteps],
                    "latents": [[float32_text(value) for value in row] for row in latents],
                }
            )
    header = {
        "about": "timesteps, and latents after each step at three places; see the recorder for first latents, "
        "predictions and noise",
        "made_by": "export/oracle/schedulers.py",
        "made_with": {"diffusers": diffusers.__version__, "torch": torch.__version__},
    }
    write_records(arguments.out, header, "cases", records)


if __name__ == "__main__":
    main()
