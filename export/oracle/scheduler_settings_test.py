"""Every setting of every scheduler: the exporter writes what diffusers can run, and names what it refuses."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest
from dbcache_export.scheduler_trial import CLASSES

from reference import REFERENCE_DIR
from scheduler_settings import BASES, CALLS, STEPS, VALUES, Case, cases, described, outcome, parameters, run

#: The recorder rounds to float32.
ROUNDING = 1e-6
#: Settings that work in diffusers, of which the engine does not take all or has its own bounds (docs/families.md).
BOUNDED = {
    "beta_end",
    "beta_start",
    "clip_sample",
    "flow_shift",
    "lambda_min_clipped",
    "num_train_timesteps",
    "shift",
    "shift_terminal",
    "solver_order",
    "steps_offset",
    "thresholding",
    "use_beta_sigmas",
    "use_karras_sigmas",
    "variance_type",
}


@cache
def recorded() -> dict[str, list[dict[str, Any]]]:
    content = json.loads((REFERENCE_DIR / "scheduler_settings.json").read_text(encoding="utf-8"))
    return {json.dumps([case["scheduler"], case["prediction"]]): case["runs"] for case in content["cases"]}


def test_every_parameter_has_values() -> None:
    for _, name, _ in BASES:
        assert set(parameters(name)) <= set(VALUES)


def grouped() -> dict[str, list[Case]]:
    """By family and class, so that a failure says where."""
    groups: dict[str, list[Case]] = {}
    for case in cases():
        groups.setdefault(f"{case.family} {case.config['_class_name']}", []).append(case)
    return groups


@pytest.mark.parametrize("group", grouped())
def test_settings(group: str) -> None:
    for case in grouped()[group]:
        made, calls = outcome(case), CALLS[case.family]
        if made.fields is None:
            # A default may be the trouble, as DDIM's clip_sample.
            name = str(case.config["_class_name"])
            assert any(one in made.refusal for one in (*case.varied, *BOUNDED, name)), f"{case}: {made.refusal}"
            works = any(run(case.config, calls, steps) for steps in STEPS[1:])
            is_known = name not in CLASSES or any(one in made.refusal for one in BOUNDED)
            assert not works or is_known, f"{case} works in diffusers: {made.refusal}"
            continue
        runs = recorded().get(json.dumps([made.fields, made.predicted]))
        assert runs, f"{case}: not recorded: run scheduler_settings.py"
        for steps, expected in zip(STEPS, runs, strict=True):
            found = described(steps, run(case.config, calls, steps))
            assert found.keys() == expected.keys()
            for name, value in found.items():
                assert value == (expected[name] and pytest.approx(expected[name], rel=ROUNDING, abs=ROUNDING)), case
