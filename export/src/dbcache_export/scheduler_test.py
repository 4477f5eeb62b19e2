import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffusers import FlowMatchEulerDiscreteScheduler

from dbcache_export.errors import ExportError
from dbcache_export.scheduler import NO_SHIFT, scheduler

STEPS, TOKENS = 7, 1024


def sigmas(fields: dict[str, Any]) -> np.ndarray:
    """The sigmas that the format's formulas give."""
    shift, sigma = fields["shift"], np.linspace(1, 1 / STEPS, STEPS)
    if shift["kind"] == "static":
        sigma = shift["shift"] * sigma / (1 + (shift["shift"] - 1) * sigma)
    elif shift["kind"] == "dynamic":
        slope = (shift["max_shift"] - shift["base_shift"]) / (shift["max_tokens"] - shift["base_tokens"])
        mu = shift["base_shift"] + slope * (TOKENS - shift["base_tokens"])
        factor = math.exp(mu) if shift["time_shift"] == "exponential" else mu
        sigma = factor / (factor + (1 / sigma - 1))
    if fields["shift_terminal"] is not None:
        sigma = 1 - (1 - sigma) * (1 - fields["shift_terminal"]) / (1 - sigma[-1])
    return np.append(sigma, 0)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"shift": 3.0},
        {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15, "shift": 3.0},
        {"use_dynamic_shifting": True, "time_shift_type": "linear", "shift_terminal": 0.02},
    ],
)
def test_the_manifest_describes_diffusers_sigmas(tmp_path: Path, config: dict[str, Any]) -> None:
    original = FlowMatchEulerDiscreteScheduler(**config)
    original.save_pretrained(tmp_path / "scheduler")
    mu = 0.5 + (1.15 - 0.5) / (4096 - 256) * (TOKENS - 256)
    given = {"mu": mu} if config.get("use_dynamic_shifting") else {}
    original.set_timesteps(sigmas=np.linspace(1, 1 / STEPS, STEPS), **given)
    np.testing.assert_allclose(sigmas(scheduler(tmp_path)), original.sigmas.numpy(), atol=1e-6)


def test_without_a_scheduler_nothing_is_shifted(tmp_path: Path) -> None:
    assert scheduler(tmp_path) == NO_SHIFT


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"_class_name": "LCMScheduler"}, "LCMScheduler is not supported"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "use_karras_sigmas": True}, "use_karras_sigmas"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "use_beta_sigmas": True}, "use_beta_sigmas"),
        ({"_class_name": "DDIMScheduler"}, "clip_sample"),
        ({"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver++"}, "sde-dpmsolver"),
        ({"_class_name": "UniPCMultistepScheduler", "predict_x0": False}, "predict_x0"),
    ],
)
def test_others_are_refused(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    with pytest.raises(ExportError, match=message):
        scheduler(tmp_path)
