"""Writes `sigmas.json`: the noise schedules of diffusers, driven as its FLUX pipeline drives them.

The pipeline (`diffusers/pipelines/flux/pipeline_flux.py`, step 5) passes sigmas = linspace(1, 1/steps, steps)
and, always, mu from `calculate_shift`; the scheduler uses mu only with dynamic shifting. Parameters of a case
are written in the field names of the engine directory's `scheduler` (`models/README.md`).

With one step and a terminal value the formula of diffusers divides 0 by 0 and gives NaN. Such cases are
listed as `undefined`: an engine has to refuse them or to define them itself.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift, retrieve_timesteps

from reference import REFERENCE_DIR, float32_text, write_records

__all__ = ["STEPS", "TOKENS", "schedule", "schedulers"]

STEPS = (1, 4, 28, 50)
TOKENS = (64, 1024, 4096)
BASE_TOKENS, MAX_TOKENS, BASE_SHIFT, MAX_SHIFT = 256, 4096, 0.5, 1.15


def schedulers() -> list[dict[str, Any]]:
    """Every `scheduler` object of the reference, as it would stand in a manifest."""
    shifts: list[dict[str, Any]] = [{"kind": "none"}, {"kind": "static", "shift": 3.0}]
    for time_shift in ("exponential", "linear"):
        shifts.append(
            {
                "kind": "dynamic",
                "base_tokens": BASE_TOKENS,
                "max_tokens": MAX_TOKENS,
                "base_shift": BASE_SHIFT,
                "max_shift": MAX_SHIFT,
                "time_shift": time_shift,
            }
        )
    return [
        {"kind": "flow_match_euler", "shift": shift, "shift_terminal": terminal}
        for shift in shifts
        for terminal in (None, 0.02, 0.1)
    ]


def build(scheduler: dict[str, Any]) -> FlowMatchEulerDiscreteScheduler:
    """Builds the diffusers scheduler that a manifest's `scheduler` stands for."""
    shift = scheduler["shift"]
    options: dict[str, Any] = {"shift_terminal": scheduler["shift_terminal"]}
    if shift["kind"] == "static":
        options["shift"] = shift["shift"]
    if shift["kind"] == "dynamic":
        options |= {
            "use_dynamic_shifting": True,
            "base_image_seq_len": shift["base_tokens"],
            "max_image_seq_len": shift["max_tokens"],
            "base_shift": shift["base_shift"],
            "max_shift": shift["max_shift"],
            "time_shift_type": shift["time_shift"],
        }
    return FlowMatchEulerDiscreteScheduler(**options)


def schedule(scheduler: dict[str, Any], steps: int, image_tokens: int) -> tuple[float, torch.Tensor]:
    """Runs the scheduler as the FLUX pipeline does.

    Returns:
        mu (which only dynamic shifting uses) and the sigmas `[steps + 1]`, float32, from high to 0.
    """
    built = build(scheduler)
    config = built.config
    mu = calculate_shift(
        image_tokens, config.base_image_seq_len, config.max_image_seq_len, config.base_shift, config.max_shift
    )
    sigmas = np.linspace(1.0, 1 / steps, steps)
    with np.errstate(invalid="ignore"):
        retrieve_timesteps(built, steps, "cpu", sigmas=sigmas, mu=mu)
    return mu, built.sigmas


def main() -> None:
    """Command line: writes the reference file."""
    parser = argparse.ArgumentParser(description="write diffusers' flow-matching sigmas as reference values")
    parser.add_argument("--out", type=Path, default=REFERENCE_DIR / "sigmas.json")
    arguments = parser.parse_args()

    cases: list[dict[str, Any]] = []
    undefined: list[dict[str, Any]] = []
    for scheduler in schedulers():
        dynamic = scheduler["shift"]["kind"] == "dynamic"
        for steps in STEPS:
            for tokens in TOKENS if dynamic else TOKENS[:1]:
                mu, sigmas = schedule(scheduler, steps, tokens)
                case: dict[str, Any] = {"scheduler": scheduler, "steps": steps, "image_tokens": tokens}
                if sigmas.isfinite().all():
                    case["mu"] = mu if dynamic else None
                    case["sigmas"] = [float32_text(value) for value in sigmas.tolist()]
                    cases.append(case)
                else:
                    undefined.append(case)
    header = {
        "about": "FlowMatchEulerDiscreteScheduler with sigmas = linspace(1, 1/steps, steps) and mu as in the "
        "FLUX pipeline; sigmas are float32, the final 0 included; image_tokens matters to dynamic shifts "
        "only; diffusers gives NaN for the undefined cases",
        "made_by": "export/oracle/sigmas.py",
        "made_with": {"diffusers": diffusers.__version__, "numpy": np.__version__},
        "undefined": undefined,
    }
    write_records(arguments.out, header, "cases", cases)


if __name__ == "__main__":
    main()
