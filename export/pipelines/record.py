"""Records some whole pipelines for the default tests, which have no Python: engines that are given prompts.

    record.py [PIPELINE …]

The files are explained in `tests/data/pipelines/README.md`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything is imported that may look

import torch
from safetensors.torch import save

import policies
from command import export
from original import Call, Original, write_folder
from policies import POLICIES, Reference
from variants import VARIANTS

sys.path.append(str(Path(__file__).resolve().parents[1] / "oracle"))
from reference import REFERENCE_DIR, to_text, write_bytes, write_text

#: T5 with padding that is looked at; texts behind each other; T5 with masks and zeros for padding, in two branches of
#: different lengths; a chat template, and texts in steps of 32 tokens in the picture's own stream.
_RECORDED = ("flux-dev", "sd3", "wan-2.1", "z-image")
_STEPS = 8
_CACHES = ("f1b0", "f1b1, TaylorSeer")


def main() -> int:
    """Command line: records pipelines, prints a line for each."""
    parser = argparse.ArgumentParser(description="record whole pipelines for the default tests")
    parser.add_argument("names", nargs="*", metavar="PIPELINE", help=f"of {', '.join(_RECORDED)} (default: all)")
    parser.add_argument("--out", type=Path, default=REFERENCE_DIR.parent / "pipelines")
    given = parser.parse_args()
    torch.set_num_threads(1)
    for name in given.names or _RECORDED:
        _record(name, given.out / name)
    return 0


def _record(name: str, out: Path) -> None:
    """Writes the engine directory, the latents and the decisions of one pipeline."""
    variant = VARIANTS[name]
    negative = "red" if variant.negative is True else None
    call = Call("a cat on a red apple", variant.sizes[0], _STEPS, negative=negative)
    with tempfile.TemporaryDirectory() as scratch:
        model = Path(scratch) / name
        write_folder(variant, Path(scratch) / "parts", model, torch.float16)
        shutil.rmtree(out / "engine", ignore_errors=True)
        out.mkdir(parents=True, exist_ok=True)
        export(model, out / "engine", call.size, "--pack")
        original = Original(variant, model)
        latents = {"out.uncached": original.latents(call)}
        cases = []
        for policy in _CACHES:
            found = policies.decide(original, call, POLICIES[policy])
            cases.append(_case(policy, found))
            latents[f"out.{policy}"] = found.latents
    reference = {
        "about": "a tiny pipeline with random weights; the fields are explained in ../README.md",
        "made_by": "export/pipelines/record.py",
        "made_with": {tool: version(tool) for tool in ("torch", "diffusers", "transformers", "cache-dit")},
        "prompt": call.prompt,
        "negative_prompt": call.negative,
        "seed": call.seed,
        "size": list(call.size),
        "frames": variant.frames,
        "steps": call.steps,
        "cases": cases,
    }
    write_bytes(out / "vectors.safetensors", save({key: value.float().contiguous() for key, value in latents.items()}))
    write_text(out / "reference.json", to_text(reference) + "\n")
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    decided = [branch["decisions"] for case in cases for one in case["lists"] for branch in one["branches"].values()]
    print(f"{name}: {size / 1e3:.0f} kB; {' '.join(decided)}", flush=True)


def _case(name: str, found: Reference) -> Mapping[str, Any]:
    lists: dict[str, dict[str, Any]] = {}
    for one in found.decided:
        compared = [of_step[0] if of_step else None for of_step in one.diffs]
        lists.setdefault(one.list, {})[one.branch] = {"decisions": one.decisions, "diffs": compared}
    config = {key: value for key, value in found.command.items() if key not in ("cache_type", "separate_block_lists")}
    return {
        "name": name,
        "config": config,
        "margin": found.margin,
        "lists": [{"list": key, "branches": branches} for key, branches in lists.items()],
    }


if __name__ == "__main__":
    sys.exit(main())
