"""The recorded families are whole and agree with themselves; what they hold is compared with the engine by `tests/`."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from families import _MARGIN, rel_l1
from family_subjects import SUBJECTS
from reference import REFERENCE_DIR
from subject import STEPS

FOLDER = REFERENCE_DIR.parent / "families"


def read(family: str) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    folder: Path = FOLDER / family
    with safe_open(folder / "vectors.safetensors", "pt") as file:
        vectors = {name: file.get_tensor(name) for name in file.offset_keys()}
    manifest = json.loads((folder / "engine" / "manifest.json").read_text("utf-8"))
    return json.loads((folder / "reference.json").read_text("utf-8")), vectors, manifest


@pytest.mark.parametrize("family", SUBJECTS)
def test_decisions_follow_from_diffs_and_thresholds(family: str) -> None:
    reference, vectors, manifest = read(family)
    for case in reference["cases"]:
        threshold, warmup = case["config"]["residual_diff_threshold"], case["config"]["max_warmup_steps"]
        assert [one["list"] for one in case["lists"]] == [one["name"] for one in manifest["lists"]]
        diffs: list[float] = []
        for branch in (branch for one in case["lists"] for branch in one["branches"].values()):
            assert branch["diffs"][:warmup] == [None] * warmup
            asked = branch["diffs"][warmup:]
            decisions = "".join("S" if diff is not None and diff < threshold else "C" for diff in asked)
            assert branch["decisions"] == "C" * warmup + decisions
            assert {"C", "S"} <= set(decisions)
            diffs += [diff for diff in asked if diff is not None]
        assert min(abs(diff - threshold) for diff in diffs) > 0.9 * _MARGIN * threshold
        change = rel_l1(vectors[f"out.{case['name']}"], vectors["out.uncached"])
        assert change == pytest.approx(case["rel_l1_vs_uncached"], rel=1e-3)
        assert change > 1e-4, "a case that skips nothing of weight shows nothing"


@pytest.mark.parametrize("family", SUBJECTS)
def test_every_block_was_recorded_at_two_sizes(family: str) -> None:
    reference, vectors, manifest = read(family)
    assert reference["steps"] == STEPS
    assert {name.removeprefix("in.") for name in vectors if name.startswith("in.")} == set(reference["inputs"])
    kinds = [manifest["block_kinds"][block["kind"]] for block in manifest["blocks"]]
    batches, tokens = [], []
    for case in ("case0", "case1"):
        for index, kind in enumerate(kinds):
            assert all(f"{case}.block{index}.{stream}" in vectors for stream in kind["outputs"])
        batches.append(len(vectors[f"{case}.prediction"]))
        tokens.append(vectors[f"{case}.prediction"][0].numel())
    assert batches == [1, 2]
    assert tokens[0] < tokens[1]
