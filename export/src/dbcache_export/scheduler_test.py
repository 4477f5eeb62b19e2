import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffusers import FlowMatchEulerDiscreteScheduler

from dbcache_export.errors import ExportError
from dbcache_export.pipeline_calls import CALLS
from dbcache_export.scheduler import NO_SHIFT, prediction, scheduler

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
    np.testing.assert_allclose(sigmas(scheduler(tmp_path, CALLS["flux"])), original.sigmas.numpy(), atol=1e-6)


def test_without_a_scheduler_nothing_is_shifted(tmp_path: Path) -> None:
    assert scheduler(tmp_path, CALLS["flux"]) == NO_SHIFT


WAN = {
    "_class_name": "UniPCMultistepScheduler",
    "prediction_type": "flow_prediction",
    "use_flow_sigmas": True,
    "flow_shift": 3.0,
}


def write(folder: Path, config: dict[str, Any]) -> None:
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("family", "config", "message"),
    [
        ("dit", {"_class_name": "LCMScheduler"}, "LCMScheduler is not supported"),
        ("flux", {"_class_name": "FlowMatchEulerDiscreteScheduler", "use_beta_sigmas": True}, "use_beta_sigmas"),
        ("flux", {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": None}, "shift None"),
        ("wan", {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 0}, "shift 0: .* such as shift 1.0"),
        ("dit", {"_class_name": "FlowMatchEulerDiscreteScheduler"}, "does not fit this pipeline"),
        ("dit", {"_class_name": "DDIMScheduler"}, "clip_sample"),
        ("flux", {"_class_name": "DDIMScheduler", "clip_sample": False}, "DDIMScheduler does not fit this pipeline"),
        ("wan", WAN | {"predict_x0": False}, "predict_x0 False"),
        ("wan", WAN | {"flow_shift": 0}, "flow_shift 0: "),
        ("wan", WAN | {"flow_shift": -1}, "flow_shift -1: "),
        ("wan", WAN | {"solver_order": 9}, "solver_order 9 is not supported; expected a number from 1 to 7"),
        ("wan", WAN | {"timestep_spacing": "odd"}, "timestep_spacing 'odd'"),
        ("wan", WAN | {"lower_order_final": False}, "lower_order_final False"),
        ("wan", WAN | {"use_dynamic_shifting": True}, "use_dynamic_shifting True"),
    ],
)
def test_others_are_refused(tmp_path: Path, family: str, config: dict[str, Any], message: str) -> None:
    write(tmp_path, config)
    with pytest.raises(ExportError, match=message):
        scheduler(tmp_path, CALLS[family])


@pytest.mark.parametrize(
    ("config", "fields"),
    [
        ({"solver_type": "midpoint"}, {"solver": "bh2"}),
        ({"solver_order": 4}, {"order": 4}),
        ({"use_karras_sigmas": True}, {"karras": True}),
        ({"lower_order_final": None, "solver_order": 1}, {"lower_order_final": False}),
        ({"steps_offset": None}, {"offset": 0}),
    ],
)
def test_what_diffusers_can_run_is_written(tmp_path: Path, config: dict[str, Any], fields: dict[str, Any]) -> None:
    write(tmp_path, WAN | config)
    found = scheduler(tmp_path, CALLS["wan"])
    assert {name: found[name] for name in fields} == fields
    assert prediction(tmp_path) == {"kind": "velocity"}


def test_settings_are_named_once(tmp_path: Path) -> None:
    """What a model was trained for is not the trouble, though without it another setting would not matter."""
    write(tmp_path, WAN | {"flow_shift": 0})
    with pytest.raises(ExportError) as raised:
        scheduler(tmp_path, CALLS["wan"])
    assert "use_flow_sigmas" not in str(raised.value)
