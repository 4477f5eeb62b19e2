"""Records what diffusers' pipelines and cache-dit compute with tiny models: an engine and vectors for each family.

    families.py [--out tests/data/families] [FAMILY …]

For each family: every block and the chain at two sizes, with batches of one and of two, a generation without cache,
and two with cache-dit on the same pipeline. The files are explained in `tests/data/families/README.md`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from dbcache_export.check import example_inputs
from dbcache_export.engine import export
from dbcache_export.families import plan
from dbcache_export.spec import Options, Reference
from safetensors.torch import save
from torch._subclasses.fake_tensor import FakeTensorMode

import family_subjects
import video_subjects
from decided import Decided, decided
from reference import REFERENCE_DIR, to_text, write_bytes, write_text
from subject import STEPS, Subject, Tensors

os.environ.setdefault("CACHE_DIT_LOG_LEVEL", "error")  # Read by cache-dit when it is imported.
import cache_dit  # type: ignore[import-untyped]

__all__ = ["main"]

#: A decision that is nearer to its threshold than this, relative to it, may turn out otherwise elsewhere.
_MARGIN = 1e-3
#: What cache-dit is given in the recorded cases, but for the threshold.
_CASES = {
    "f1b0": {"Fn_compute_blocks": 1, "Bn_compute_blocks": 0, "max_warmup_steps": 2},
    "f2b1": {"Fn_compute_blocks": 2, "Bn_compute_blocks": 1, "max_warmup_steps": 3},
}

_SUBJECTS: Mapping[str, Callable[[], Subject]] = {**family_subjects.SUBJECTS, **video_subjects.SUBJECTS}


def main() -> int:
    """Command line: records families, prints one line for each."""
    parser = argparse.ArgumentParser(description="record tiny models of every family")
    parser.add_argument("families", nargs="*", metavar="FAMILY", help=f"of {', '.join(_SUBJECTS)} (default: all)")
    parser.add_argument("--out", type=Path, default=REFERENCE_DIR.parent / "families")
    given = parser.parse_args()
    torch.set_num_threads(1)
    for family in given.families or _SUBJECTS:
        record(family, _SUBJECTS[family](), given.out / family)
    return 0


def record(family: str, subject: Subject, out: Path) -> None:
    """Writes the engine directory, the vectors and the decisions of one family."""
    with tempfile.TemporaryDirectory() as scratch:
        model = Path(scratch) / family
        subject.write(model)
        options = Options(check=True, pack=True, size=subject.size, frames=subject.frames, name=f"tiny {family}")
        shutil.rmtree(out / "engine", ignore_errors=True)
        report = export(model, out / "engine", options, lambda _: None).report
        vectors = _blocks(model, options)
        vectors |= {"noise": subject.noise} | {f"in.{name}": value for name, value in subject.inputs.items()}
        uncached = subject.run(subject.pipeline(model))
        vectors["out.uncached"] = uncached
        cases = []
        for name, config in _cases(subject).items():
            case, latents = _cached(subject, model, config)
            cases.append({"name": name} | case | {"rel_l1_vs_uncached": _significant(rel_l1(latents, uncached))})
            vectors[f"out.{name}"] = latents
    reference = {
        "about": "a tiny model with random weights; the fields are explained in ../README.md",
        "made_by": "export/oracle/families.py",
        "made_with": {tool: version(tool) for tool in ("torch", "diffusers", "cache-dit")},
        "family": family,
        "size": list(subject.size),
        "frames": subject.frames,
        "steps": STEPS,
        "guidance": subject.guidance,
        **({"guidance_2": subject.guidance_2} if subject.guidance_2 else {}),
        "inputs": sorted(subject.inputs),
        "cases": cases,
    }
    write_bytes(
        out / "vectors.safetensors", save({name: value.float().contiguous() for name, value in vectors.items()})
    )
    write_text(out / "reference.json", to_text(reference) + "\n")
    for case in cases:
        decisions = [branch["decisions"] for one in case["lists"] for branch in one["branches"].values()]
        print(family, case["name"], *decisions, f"margin {case['margin']}")
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print(f"{family}: {size / 1e3:.0f} kB; {report}", flush=True)


def _blocks(model: Path, options: Options) -> Tensors:
    """Inputs, each block's outputs, and predictions of the uncut original: one small picture, two larger ones."""
    whole = plan(model, options, FakeTensorMode())
    reference = whole.reference()
    vectors: Tensors = {}
    small, *_, large = example_inputs(whole)
    for number, inputs in enumerate((small, large)):
        vectors |= {f"case{number}.{name}": value for name, value in _seen(reference, inputs).items()}
    if whole.low_noise:
        seen = _seen(whole.low_noise.reference(), small)  # on the inputs of case 0
        vectors |= {f"second.case0.{name}": value for name, value in seen.items() if not name.startswith("in.")}
    return vectors


def _seen(reference: Reference, inputs: Tensors) -> Tensors:
    """All tensors of one run of the transformer."""
    tensors = {f"in.{name}": value for name, value in inputs.items()}

    def on_block(index: int, taken: Tensors, given: Tensors) -> None:
        if index == 0:
            tensors.update({f"embed.{name}": value.clone() for name, value in taken.items()})
        tensors.update({f"block{index}.{name}": value.clone() for name, value in given.items()})

    prediction = reference.run(inputs, on_block)
    return tensors | {"prediction": prediction}


def _cached(subject: Subject, model: Path, config: Mapping[str, Any]) -> tuple[dict[str, Any], torch.Tensor]:
    """A generation under cache-dit with a threshold at which it computes some steps and skips others."""
    watched, _ = _under_cache(subject, model, dict(config) | {"residual_diff_threshold": 1e-6})
    diffs = sorted(diff for one in watched for branch in one["branches"].values() for diff in branch["diffs"] if diff)
    middle = len(diffs) // 2
    nearest_first = sorted(range(1, len(diffs)), key=lambda i: abs(i - middle))
    for place in nearest_first:
        threshold = round((diffs[place - 1] + diffs[place]) / 2, 4)
        given = dict(config) | {"residual_diff_threshold": threshold}
        lists, latents = _under_cache(subject, model, given)
        branches = [branch for one in lists for branch in one["branches"].values()]
        distances = [abs(diff - threshold) for branch in branches for diff in branch["diffs"] if diff is not None]
        warm = config["max_warmup_steps"]
        if (
            subject.first_steps
        ):  # each transformer has a warm-up of its own, and few steps: its branches are taken together
            decisions = ["".join(one["decisions"][part][warm:] for one in branches) for part in _parts(subject)]
        else:
            decisions = [one["decisions"][warm:] for one in branches]
        if all({"C", "S"} <= set(one) for one in decisions) and min(distances) > _MARGIN * threshold:
            return {"config": given, "lists": lists, "margin": _significant(min(distances))}, latents
    raise SystemExit("no threshold gives mixed decisions: take other weights or inputs")


def _under_cache(subject: Subject, model: Path, config: dict[str, Any]) -> tuple[list[dict[str, Any]], torch.Tensor]:
    """What cache-dit decided in each of the transformer's lists of blocks, and the final latents."""
    pipe = subject.pipeline(model)
    given = cache_dit.DBCacheConfig(**config, enable_separate_cfg=subject.separate)
    cache_dit.enable_cache(pipe, cache_config=given)
    latents = subject.run(pipe)
    if subject.first_steps:
        boundary = pipe.config.boundary_ratio * pipe.scheduler.config.num_train_timesteps
        assert int((pipe.scheduler.timesteps >= boundary).sum()) == subject.first_steps
    transformers = [pipe.transformer, *([pipe.transformer_2] if subject.first_steps else [])]
    parts = [
        _lists(decided(one, part.stop - part.start, separate=subject.separate))
        for one, part in zip(transformers, _parts(subject), strict=True)
    ]
    lists = parts[0]
    for later in parts[1:]:  # the steps of the second transformer follow those of the first
        for one, other in zip(lists, later, strict=True):
            for branch, recorded in other["branches"].items():
                for key, value in recorded.items():
                    one["branches"][branch][key] += value
    return lists, latents


def _cases(subject: Subject) -> dict[str, dict[str, Any]]:
    fewer = 1 if subject.first_steps else 0
    return {name: config | {"max_warmup_steps": config["max_warmup_steps"] - fewer} for name, config in _CASES.items()}


def _parts(subject: Subject) -> list[slice]:
    """The steps of each transformer."""
    first = subject.first_steps or STEPS
    return [slice(0, first), *([slice(first, STEPS)] if first < STEPS else [])]


def _lists(found: Iterable[Decided]) -> list[dict[str, Any]]:
    """By list of blocks, the branches of each."""
    lists: dict[str, dict[str, Any]] = {}
    for one in found:
        diffs = [round(of_step[0], 7) if of_step else None for of_step in one.diffs]
        lists.setdefault(one.list, {})[one.branch] = {"decisions": one.decisions, "diffs": diffs}
    return [{"list": name, "branches": branches} for name, branches in lists.items()]


def rel_l1(latents: torch.Tensor, reference: torch.Tensor) -> float:
    """mean(|latents - reference|) / mean(|reference|)."""
    return ((latents - reference).abs().mean() / reference.abs().mean()).item()


def _significant(value: float) -> float:
    return float(f"{value:.4g}")


if __name__ == "__main__":
    sys.exit(main())
