"""The committed schedules are what this diffusers computes, and what the formulas of the manifest say."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from reference import REFERENCE_DIR
from sigmas import schedule

ROUNDING = 3e-6
"""The scheduler computes in float32; stretching to a terminal value divides by small numbers."""


def recorded() -> dict[str, Any]:
    content: dict[str, Any] = json.loads((REFERENCE_DIR / "sigmas.json").read_text(encoding="utf-8"))
    return content


def test_file_matches_diffusers() -> None:
    for case in recorded()["cases"]:
        _, sigmas = schedule(case["scheduler"], case["steps"], case["image_tokens"])
        assert sigmas.tolist() == pytest.approx(case["sigmas"], rel=0, abs=1e-7)
    for case in recorded()["undefined"]:
        _, sigmas = schedule(case["scheduler"], case["steps"], case["image_tokens"])
        assert not sigmas.isfinite().all()


def test_file_matches_the_formulas_of_the_manifest() -> None:
    for case in recorded()["cases"]:
        sigma = np.linspace(1, 1 / case["steps"], case["steps"])
        shift, terminal = case["scheduler"]["shift"], case["scheduler"]["shift_terminal"]
        if shift["kind"] == "static":
            sigma = shift["shift"] * sigma / (1 + (shift["shift"] - 1) * sigma)
        if shift["kind"] == "dynamic":
            slope = (shift["max_shift"] - shift["base_shift"]) / (shift["max_tokens"] - shift["base_tokens"])
            mu = shift["base_shift"] + slope * (case["image_tokens"] - shift["base_tokens"])
            assert mu == pytest.approx(case["mu"])
            weight = math.exp(mu) if shift["time_shift"] == "exponential" else mu
            sigma = weight / (weight + (1 / sigma - 1))
        if terminal is not None:
            sigma = 1 - (1 - sigma) * (1 - terminal) / (1 - sigma[-1])
        assert case["sigmas"] == pytest.approx([*sigma.tolist(), 0.0], rel=0, abs=ROUNDING)
