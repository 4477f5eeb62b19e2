"""The committed traces agree with their configurations, with each other, and with the tensors."""

from __future__ import annotations

import json
from typing import Any

import pytest
from safetensors.torch import load_file

from record import REFERENCE_DIR

FOLDER = REFERENCE_DIR / "emoji"
INDEX: dict[str, Any] = json.loads((FOLDER / "index.json").read_text(encoding="utf-8"))
NAMES: list[str] = [config["name"] for config in INDEX["configs"]]


def trace_of(name: str) -> dict[str, Any]:
    trace: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return trace


def test_index_lists_exactly_the_traces() -> None:
    assert sorted(NAMES) == sorted(path.stem for path in FOLDER.glob("*.json") if path.stem != "index")
    assert all(config["stable"] for config in INDEX["configs"])


def test_finals_are_those_of_the_traces() -> None:
    tensors = load_file(FOLDER / "emoji.safetensors")
    assert sorted(tensors) == sorted(["in.noise", *(f"out.{name}" for name in NAMES)])
    for name in NAMES:
        final = trace_of(name)["final"][0]
        assert tensors[f"out.{name}"].abs().mean().item() == pytest.approx(final["absmean"], rel=1e-5)


@pytest.mark.parametrize("name", [name for name in NAMES if trace_of(name)["algorithm"] == "DBCache"])
def test_decisions_follow_from_the_diffs(name: str) -> None:
    trace = trace_of(name)
    given = trace["config"]["given"]
    always = given["Fn_compute_blocks"] + given["Bn_compute_blocks"]
    (total,) = trace["config"]["block_lists"]
    for branch in trace["branches"].values():
        for letter, diff, reason, blocks_run in zip(
            branch["decisions"], branch["diffs"], branch["reasons"], branch["blocks_run"], strict=True
        ):
            assert blocks_run == (always if letter == "S" else total)
            assert (diff is None) == (reason not in ("below", "above"))
            if diff is not None:
                assert (letter == "S") == (diff < given["residual_diff_threshold"])
                assert abs(diff - given["residual_diff_threshold"]) >= trace["margin"] - 1e-7


@pytest.mark.parametrize("name", [name for name in NAMES if trace_of(name)["pair"]])
def test_pairs(name: str) -> None:
    trace = trace_of(name)
    partner = trace_of(trace["pair"]["partner"])
    assert trace["pair"]["decisions_differ"] == (trace["decisions"] != partner["decisions"])
    assert trace["pair"]["latent_rel_l1"] > 0
