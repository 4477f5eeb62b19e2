"""Records what cache-dit decides on a model: a JSON trace for each case, and the final latents.

    record.py MODEL [--cases emoji_cases.json] [--out tests/data/reference/emoji] [NAME …]

MODEL is a folder as `export/train/train.py` writes it. Every case is one generation in a cache context of its
own. A case that names a partner says in which options they differ, and what the difference changes. Trust the
tool only after `verify.py` has reproduced the public traces.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from generate import Generation, Subject
from observe import CacheOptions
from reference import REFERENCE_DIR, to_text, write_bytes, write_text
from subjects import PromptModel, start_noise
from traces import record, rel_l1, replay_with_noise, without_cache

__all__ = ["Case", "Recording", "pair_of"]

MODEL_FILES = ("transformer/diffusion_pytorch_model.safetensors", "text/embedding.safetensors")


@dataclass(frozen=True)
class Case:
    """One generation to record; without an algorithm it runs uncached."""

    name: str
    prompt: str
    algorithm: str | None = None
    given: dict[str, Any] = field(default_factory=dict)
    calibrator: dict[str, Any] | None = None
    extra: dict[str, Any] | None = None
    cfg_scale: float | None = None
    partner: str | None = None

    @property
    def options(self) -> CacheOptions | None:
        """What cache-dit is given, or None."""
        if self.algorithm is None:
            return None
        return CacheOptions(self.algorithm, self.given, self.calibrator, self.extra, self.cfg_scale)


@dataclass(frozen=True)
class Recording:
    """A case with its trace and its final latents `[1, image tokens, patch features]`."""

    case: Case
    trace: dict[str, Any]
    latents: torch.Tensor


def main() -> int:
    """Command line: records the cases, prints one line for each."""
    parser = argparse.ArgumentParser(description="record the decisions of cache-dit on a model")
    parser.add_argument("model", type=Path, help="folder with transformer/, text/ and prompts.json")
    parser.add_argument("names", nargs="*", help="print only these cases, and write nothing")
    parser.add_argument("--cases", type=Path, default=Path(__file__).with_name("emoji_cases.json"))
    parser.add_argument("--out", type=Path, default=REFERENCE_DIR / "emoji")
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    plan = json.loads(arguments.cases.read_text(encoding="utf-8"))
    cases = [Case(**fields) for fields in plan["cases"]]
    unknown = set(arguments.names) - {case.name for case in cases}
    if unknown:
        parser.error(f"no case {', '.join(sorted(unknown))} in {arguments.cases}")
    if arguments.names:
        cases = [case for case in cases if case.name in arguments.names]

    recordings = record_all(arguments.model, plan, cases)
    if not arguments.names:
        write_all(arguments.out, arguments.model, plan, recordings)
    return 0


def record_all(model_folder: Path, plan: dict[str, Any], cases: list[Case]) -> list[Recording]:
    """Records every case, and its sensitivity to rounding; uncached generations are shared."""
    model = PromptModel(model_folder)

    @cache
    def subject_of(prompt: str) -> Subject:
        return model.subject(prompt, plan["seed"], plan["steps"])

    @cache
    def uncached(prompt: str, cfg_scale: float | None) -> tuple[dict[str, Any], Generation]:
        return without_cache(subject_of(prompt), cfg_scale)

    recordings = []
    for case in cases:
        start = time.perf_counter()
        trace, generation = uncached(case.prompt, case.cfg_scale)
        if case.options:
            subject, without = subject_of(case.prompt), generation
            start = time.perf_counter()
            trace, generation = record(subject, case.options, without)
        elapsed_s = time.perf_counter() - start
        if case.options:
            trace["noise_replay"] = replay_with_noise(subject, case.options, trace, generation, plan["noise"])
        recordings.append(Recording(case, trace, generation.latents))
        print(f"{case.name}: {trace['decisions']}, margin {trace['margin']}, {elapsed_s:.1f} s", flush=True)
    return recordings


def write_all(out: Path, model_folder: Path, plan: dict[str, Any], recordings: list[Recording]) -> None:
    """Writes the traces, their index and the tensors; traces of cases that no longer exist go."""
    by_name = {recording.case.name: recording for recording in recordings}
    uncached = [recording.case for recording in recordings if recording.case.algorithm is None]
    references = {(case.prompt, case.cfg_scale): case.name for case in uncached}
    entries = []
    for name, recording in by_name.items():
        case, trace = recording.case, recording.trace
        pair = pair_of(recording, by_name[case.partner]) if case.partner else {}
        header = {
            "name": name,
            "prompt": case.prompt,
            "seed": plan["seed"],
            "pair": pair or None,
            "reference": [f"out.{references[case.prompt, case.cfg_scale]}"],
        }
        write_text(out / f"{name}.json", to_text(header | trace) + "\n")
        entries.append(
            {
                "name": name,
                "prompt": case.prompt,
                "decisions": trace["decisions"],
                "margin": trace["margin"],
                "stable": trace.get("noise_replay", {}).get("same_decisions", True),
                "pair": list(pair.values())[:4] or None,
            }
        )
    for stale in {path.stem for path in out.glob("*.json")} - set(by_name) - {"index"}:
        (out / f"{stale}.json").unlink()

    tensors = {f"out.{name}": recording.latents.contiguous() for name, recording in by_name.items()}
    write_bytes(out / "emoji.safetensors", save(tensors | {"in.noise": start_noise(plan["seed"])}))
    index = {
        "about": "what cache-dit decides on the emoji model; the fields are explained in ../README.md",
        "made_by": "export/oracle/record.py",
        "made_with": {name: version(name) for name in ("torch", "diffusers", "cache-dit")},
        "model_sha256": {name: hashlib.sha256((model_folder / name).read_bytes()).hexdigest() for name in MODEL_FILES},
        "configs": entries,
    }
    write_text(out / "index.json", to_text(index) + "\n")


def pair_of(recording: Recording, partner: Recording) -> dict[str, Any]:
    """Says in which options two cases differ, and whether that changes a decision or only the latents."""
    case, other = recording.case, partner.case
    options = ("algorithm", "calibrator", "extra", "cfg_scale")
    names = [name for name in options if getattr(case, name) != getattr(other, name)]
    given, given_other = case.given, other.given
    names += [name for name in sorted(given | given_other) if given.get(name) != given_other.get(name)]
    changed = recording.trace["decisions"] != partner.trace["decisions"]
    return {
        "partner": other.name,
        "option": ", ".join(names),
        "relation": "decisions" if changed else "latent",
        "decisions_differ": changed,
        "latent_rel_l1": round(rel_l1(recording.latents, partner.latents), 9),
    }


if __name__ == "__main__":
    sys.exit(main())
