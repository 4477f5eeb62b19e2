"""Writes `schedulers.json`: what diffusers' schedulers make of known predictions and known noise.

Each case is a scheduler as its pipeline sets it up, a number of steps, the timesteps that the model is told, and the
latents after each step at three places. The first latents, the predictions and the noise are waves that a test can
compute again; a prediction depends on the latents, as a model's does.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import diffusers
import torch
from dbcache_export.pipeline_calls import CALLS, Calls, Run, drive
from dbcache_export.scheduler import prediction, scheduler
from diffusers import (
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)

from reference import REFERENCE_DIR, float32_text, write_records

__all__ = ["PLACES", "TOKENS", "cases", "noise", "run"]

STEPS = (5, 10, 20, 50)
TOKENS = 1024
PLACES = 3

COGVIDEOX = {
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
    "clip_sample": False,
}
DPM = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"}


def cases() -> list[tuple[str, Any, str]]:
    """Name, scheduler, and the family whose pipeline calls it."""
    flow = FlowMatchEulerDiscreteScheduler
    wan = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
    return [
        ("SD3", flow(shift=3.0), "sd3"),
        ("HunyuanVideo", flow(shift=7.0), "hunyuan_video"),
        ("Mochi", flow(invert_sigmas=True), "mochi"),
        ("FLUX.2", flow(use_dynamic_shifting=True), "flux2"),
        ("DiT", DDIMScheduler(clip_sample=False), "dit"),
        (
            "DDIM, offset, first alpha",
            DDIMScheduler(clip_sample=False, steps_offset=1, set_alpha_to_one=False, beta_schedule="scaled_linear"),
            "dit",
        ),
        ("DDIM, cosine", DDIMScheduler(clip_sample=False, beta_schedule="squaredcos_cap_v2"), "dit"),
        ("DDIM, linspace", DDIMScheduler(clip_sample=False, timestep_spacing="linspace"), "dit"),
        ("CogVideoX-2B DDIM", CogVideoXDDIMScheduler(**COGVIDEOX, snr_shift_scale=3.0), "cogvideox"),
        ("CogVideoX-5B DDIM", CogVideoXDDIMScheduler(**COGVIDEOX, snr_shift_scale=1.0), "cogvideox"),
        ("CogVideoX-2B DPM", CogVideoXDPMScheduler(**COGVIDEOX, snr_shift_scale=3.0), "cogvideox"),
        ("CogVideoX-5B DPM", CogVideoXDPMScheduler(**COGVIDEOX, snr_shift_scale=1.0), "cogvideox"),
        ("PixArt", DPMSolverMultistepScheduler(**DPM), "pixart"),
        ("DPM++ Karras", DPMSolverMultistepScheduler(**DPM, use_karras_sigmas=True), "pixart"),
        (
            "DPM++ third order",
            DPMSolverMultistepScheduler(**DPM, solver_order=3, timestep_spacing="trailing"),
            "pixart",
        ),
        (
            "DPM++ Heun",
            DPMSolverMultistepScheduler(
                **DPM, solver_type="heun", final_sigmas_type="sigma_min", timestep_spacing="leading", steps_offset=1
            ),
            "pixart",
        ),
        (
            "DPM++ v",
            DPMSolverMultistepScheduler(**DPM, prediction_type="v_prediction", euler_at_final=True),
            "pixart",
        ),
        ("DPM++ first order", DPMSolverMultistepScheduler(**DPM, solver_order=1), "pixart"),
        ("DPM++ flow", DPMSolverMultistepScheduler(**wan, flow_shift=3.0), "pixart"),
        ("Wan 480p", UniPCMultistepScheduler(**wan, flow_shift=3.0), "wan"),
        ("Wan 720p", UniPCMultistepScheduler(**wan, flow_shift=5.0), "wan"),
        ("UniPC third order", UniPCMultistepScheduler(**DPM, solver_order=3), "wan"),
        (
            "UniPC bh1",
            UniPCMultistepScheduler(**DPM, solver_type="bh1", disable_corrector=[0, 1], final_sigmas_type="sigma_min"),
            "wan",
        ),
        ("UniPC Karras", UniPCMultistepScheduler(**DPM, use_karras_sigmas=True), "wan"),
    ]


def noise(step: int, draw: int) -> torch.Tensor:
    """The draw `draw` of a step."""
    return torch.tensor([math.cos(2.1 * step + 0.4 * draw + 1.1 * k) for k in range(PLACES)], dtype=torch.float64)


def run(built: Any, calls: Calls, steps: int) -> Run:
    """What the scheduler makes of known predictions and noise; in float64 where it lets latents be."""
    count = {"step": -1, "draw": 0}
    step = built.step

    def counted(*arguments: Any, **others: Any) -> Any:
        count["step"], count["draw"] = count["step"] + 1, 0
        return step(*arguments, **others)

    def draw(*_: Any, **__: Any) -> torch.Tensor:
        count["draw"] += 1
        return noise(count["step"], count["draw"] - 1)[None, :, None, None]

    built.step = counted
    with mock.patch.object(sys.modules[type(built).__module__], "randn_tensor", draw, create=True):
        return drive(built, calls, steps, TOKENS, PLACES)


def described(built: Any, calls: Calls) -> tuple[dict[str, Any], dict[str, Any]]:
    """The manifest's scheduler and prediction, by way of the exporter."""
    with tempfile.TemporaryDirectory() as folder:
        built.save_pretrained(Path(folder) / "scheduler")
        return scheduler(Path(folder), calls), prediction(Path(folder))


def main() -> None:
    """Command line: writes the reference file."""
    parser = argparse.ArgumentParser(description="write the steps of diffusers' schedulers as reference values")
    parser.add_argument("--out", type=Path, default=REFERENCE_DIR / "schedulers.json")
    arguments = parser.parse_args()
    records: list[dict[str, Any]] = []
    for name, built, family in cases():
        fields, predicted = described(built, CALLS[family])
        for steps in STEPS:
            found = run(built, CALLS[family], steps)
            records.append(
                {
                    "name": name,
                    "scheduler": fields,
                    "prediction": predicted,
                    "steps": steps,
                    "image_tokens": TOKENS,
                    "timesteps": [float32_text(value) for value in found.timesteps],
                    "latents": [[float32_text(value) for value in row] for row in found.latents],
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
