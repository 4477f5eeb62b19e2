"""Every setting of every scheduler: the exporter writes what diffusers can run, and names what it refuses."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import diffusers
import pytest
from dbcache_export.scheduler_trial import CLASSES

from reference import REFERENCE_DIR
from scheduler_settings import BASES, CALLS, MANY_STEPS, STEPS, VALUES, Case, cases, described, outcome, parameters, run

#: The recorder rounds to float32.
ROUNDING = 1e-6
#: Values that work in diffusers, in some company at least, and that the exporter refuses (docs/families.md).
REFUSED: Mapping[str, tuple[Any, ...]] = {
    "beta_end": (-0.1, 2),
    "clip_sample": (True, "yes"),
    "lambda_min_clipped": (100.0,),
    "num_train_timesteps": (10**6,),
    "shift": (-1,),
    "solver_order": (3, 8),
    "steps_offset": (-1,),
    "thresholding": (True, "yes"),
    "use_karras_sigmas": (True,),
    "variance_type": ("learned", "learned_range"),
}
#: Of these the company matters: for other classes, families and algorithms the exporter takes them.
IN_COMPANY: Mapping[tuple[str, Any], Callable[[Case], bool]] = {
    ("solver_order", 3): lambda case: case.config.get("algorithm_type") == "sde-dpmsolver",
    ("use_karras_sigmas", True): lambda case: case.family == "hunyuan_video",
}


def may_be_refused(case: Case, refusal: str) -> bool:
    """Whether the refusal names a setting whose value is one of those."""
    built = inspect.signature(getattr(diffusers, str(case.config["_class_name"])).__init__).parameters

    def is_refused(name: str) -> bool:
        default = built[name].default if name in built else None
        value = case.config.get(name, default)
        # 1 is no True here.
        listed = any(value == one and type(value) is type(one) for one in REFUSED[name])
        return listed and IN_COMPANY.get((name, value), lambda _: True)(case)

    return any(name in refusal and is_refused(name) for name in REFUSED)


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
def test_settings_are_recorded_or_refused_by_name(group: str) -> None:
    for case in grouped()[group]:
        made = outcome(case)
        if made.fields is None:
            # A default may be the trouble, as DDIM's clip_sample.
            name = str(case.config["_class_name"])
            assert any(one in made.refusal for one in (*case.varied, *REFUSED, name)), f"{case}: {made.refusal}"
        else:
            runs = recorded().get(json.dumps([made.fields, made.predicted]))
            assert runs, f"{case}: not recorded: run scheduler_settings.py"
            assert [expected["steps"] for expected in runs][: len(STEPS)] == [*STEPS]


@pytest.mark.slow
@pytest.mark.parametrize("group", grouped())
def test_records_are_what_diffusers_makes_and_what_it_can_is_not_refused(group: str) -> None:
    for case in grouped()[group]:
        made, calls = outcome(case), CALLS[case.family]
        if made.fields is None:
            works = any(run(case.config, calls, steps) for steps in STEPS[1:])
            is_known = case.config["_class_name"] not in CLASSES or may_be_refused(case, made.refusal)
            assert not works or is_known, f"{case} works in diffusers: {made.refusal}"
            continue
        for expected in recorded()[json.dumps([made.fields, made.predicted])]:
            found = described(expected["steps"], run(case.config, calls, expected["steps"]))
            if expected["steps"] == MANY_STEPS and found["latents"] is None:
                continue  # A pipeline that sets no first index loses its place among equal timesteps.
            assert found.keys() == expected.keys()
            for name, value in found.items():
                assert value == (expected[name] and pytest.approx(expected[name], rel=ROUNDING, abs=ROUNDING)), case
