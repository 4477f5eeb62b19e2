"""Checks the recording tool: records the public traces again and compares every field that both have.

A tool that is trusted to record new traces must first reproduce the known ones.
"""

from __future__ import annotations

import argparse
import json
import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from generate import Generation, Subject, generate
from observe import CacheOptions
from subjects import public_subject
from traces import record, rel_l1

__all__ = ["differences"]

DIFF_TOLERANCE = 2e-6
"""Absolute, for differences and thresholds; the same torch on another CPU stays far below."""
LATENT_TOLERANCE = 1e-5
"""Relative L1 of the final latents."""
EXACT = ("decisions", "tag")
EXACT_OF_BRANCH = ("decisions", "reasons", "context_step", "blocks_run", "pruned_blocks")


def differences(expected: dict[str, Any], actual: dict[str, Any]) -> list[str]:
    """Names the fields in which two traces disagree."""
    wrong = [name for name in EXACT if expected[name] != actual[name]]
    for branch, fields in expected["branches"].items():
        found = actual["branches"].get(branch, {})
        wrong += [f"{branch}.{name}" for name in EXACT_OF_BRANCH if fields.get(name) != found.get(name)]
        if not _close(fields["diffs"], found.get("diffs"), DIFF_TOLERANCE):
            wrong.append(f"{branch}.diffs")
    for name in ("latent_absmean", "margin"):
        if not _close(expected[name], actual[name], DIFF_TOLERANCE):
            wrong.append(name)
    if not _close(expected["stats"], actual["stats"], DIFF_TOLERANCE):
        wrong.append("stats")
    return wrong


def main() -> int:
    """Command line: prints one line a trace; exit status 1 when any differs."""
    parser = argparse.ArgumentParser(description="record the public traces again and compare")
    parser.add_argument("traces", type=Path, help="folder with index.json, oracle.safetensors and the traces")
    parser.add_argument("names", nargs="*", help="only these traces")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    finals = load_file(arguments.traces / "oracle.safetensors")

    @cache
    def subject_of(steps: int) -> Subject:
        return public_subject(arguments.traces, steps)

    @cache
    def uncached(steps: int, cfg_scale: float | None) -> Generation:
        return generate(subject_of(steps), subject_of(steps).transformer, cfg_scale=cfg_scale)

    index = json.loads((arguments.traces / "index.json").read_text(encoding="utf-8"))
    failures = 0
    for name in [config["name"] for config in index["configs"]]:
        if arguments.names and name not in arguments.names:
            continue
        expected = json.loads((arguments.traces / f"{name}.json").read_text(encoding="utf-8"))
        config = expected["config"]
        if config["generations"] != 1 or len(config["block_lists"]) != 1:
            print(f"{name}: not of the recorder's kind (several generations or block lists)")
            continue
        options = CacheOptions(
            expected["algorithm"], config["given"], config["calibrator"], config["extra"], config["cfg_scale"]
        )
        subject = subject_of(expected["steps"])
        actual, generation = record(subject, options, uncached(expected["steps"], options.cfg_scale))
        wrong = differences(expected, actual)
        final = finals[f"out.{name}"].float()
        distance = rel_l1(generation.latents, final)
        if distance > LATENT_TOLERANCE:
            wrong.append("final latents")
        failures += bool(wrong)
        verdict = f"differs in {', '.join(wrong)}" if wrong else "same"
        print(f"{name}: {verdict}, latents rel. L1 {distance:.1e}")
    return 1 if failures else 0


def _close(expected: Any, actual: Any, tolerance: float) -> bool:
    """Compares nested values: floats within the tolerance, everything else exactly."""
    if isinstance(expected, dict) and isinstance(actual, dict):
        return expected.keys() == actual.keys() and all(
            _close(value, actual[name], tolerance) for name, value in expected.items()
        )
    if isinstance(expected, list) and isinstance(actual, list):
        return len(expected) == len(actual) and all(
            _close(a, b, tolerance) for a, b in zip(expected, actual, strict=True)
        )
    if isinstance(expected, float) and isinstance(actual, (int, float)):
        return abs(expected - actual) <= tolerance
    return bool(expected == actual)


if __name__ == "__main__":
    sys.exit(main())
