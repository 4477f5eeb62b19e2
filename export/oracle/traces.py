"""Turns what was observed in a generation into a trace: the JSON object that an engine is compared with.

The fields are explained in `tests/data/reference/README.md`.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from generate import Generation, Subject, blocks_of, generate
from observe import CacheOptions, Call, Observation, Question

__all__ = ["NO_MARGIN", "margin_of", "record", "rel_l1", "replay_with_noise", "without_cache"]

NO_MARGIN = 1.0
"""The margin of a trace in which nothing was compared."""
SEED_OF_REPLAY = 0


def without_cache(subject: Subject, cfg_scale: float | None) -> tuple[dict[str, Any], Generation]:
    """Records a generation in which every block runs, in the same form as one under a cache."""
    observation = Observation(subject.transformer, None)
    generation = generate(subject, observation.transformer, cfg_scale=cfg_scale, before_call=observation.before_call)
    return _trace(subject, observation.calls, generation, generation, None, cfg_scale), generation


def record(subject: Subject, options: CacheOptions, uncached: Generation) -> tuple[dict[str, Any], Generation]:
    """Runs one generation under cache-dit.

    Args:
        subject: The model and its inputs.
        options: The cache.
        uncached: The same generation without a cache, to measure the damage.

    Returns:
        The trace and the generation.
    """
    observation = Observation(subject.transformer, options)
    generation = _run(subject, options, observation)
    trace = _trace(subject, observation.calls, generation, uncached, options, options.cfg_scale)
    trace["tag"] = observation.tag
    trace["stats"] = _stats(observation.context, observation.calls)
    return trace, generation


def replay_with_noise(
    subject: Subject, options: CacheOptions, trace: dict[str, Any], generation: Generation, noise: float
) -> dict[str, Any]:
    """Repeats a generation with noise on both outputs of every block, as rounding elsewhere would add.

    Args:
        subject: As recorded.
        options: As recorded.
        trace: What was recorded.
        generation: What was recorded.
        noise: Standard deviation of the noise, relative to mean(|output|).

    Returns:
        Whether the decisions stayed, the largest change of a difference, and the change of the final latents.
    """
    observation = Observation(subject.transformer, options)
    generator = torch.Generator().manual_seed(SEED_OF_REPLAY)

    def disturb(_module: Any, _inputs: Any, outputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        gauss = [torch.randn(output.shape, generator=generator) for output in outputs]
        return tuple(output + noise * output.abs().mean() * g for output, g in zip(outputs, gauss, strict=True))

    for block in blocks_of(observation.transformer):
        block.register_forward_hook(disturb)
    noisy = _run(subject, options, observation)
    branches = _branches(observation.calls, options.algorithm)
    changes = [
        abs(a - b)
        for name, branch in branches.items()
        for a, b in zip(_flat(trace["branches"][name]["diffs"]), _flat(branch["diffs"]), strict=False)
    ]
    return {
        "noise": noise,
        "same_decisions": _decisions(branches) == trace["decisions"],
        "largest_diff_change": _significant(max(changes, default=0.0)),
        "latent_rel_l1": _significant(rel_l1(noisy.latents, generation.latents)),
    }


def margin_of(calls: list[Call]) -> float:
    """The smallest distance of a difference to its threshold: how near a decision was to the other answer."""
    distances = [
        abs(question.diff - question.threshold)
        for call in calls
        for question in call.questions
        if question.diff is not None and question.diff >= 0.0 and question.threshold is not None
    ]
    return round(min(distances, default=NO_MARGIN), 9)


def rel_l1(latents: torch.Tensor, reference: torch.Tensor) -> float:
    """mean(|latents - reference|) / mean(|reference|), over tensors of one shape."""
    return ((latents - reference).abs().mean() / reference.abs().mean()).item()


def _run(subject: Subject, options: CacheOptions, observation: Observation) -> Generation:
    return generate(
        subject,
        observation.transformer,
        cfg_scale=options.cfg_scale,
        uncond_first=bool(options.given.get("cfg_compute_first")),
        before_call=observation.before_call,
    )


def _trace(
    subject: Subject,
    calls: list[Call],
    generation: Generation,
    uncached: Generation,
    options: CacheOptions | None,
    cfg_scale: float | None,
) -> dict[str, Any]:
    """All fields that do not come from cache-dit's own summary."""
    algorithm = options.algorithm if options else "none"
    branches = _branches(calls, algorithm)
    return {
        "semantics": f"cache-dit {version('cache-dit')}",
        "algorithm": algorithm,
        "steps": subject.steps,
        "tag": None,
        "config": {
            "given": options.given if options else {},
            "calibrator": options.calibrator if options else None,
            "extra": options.extra if options else None,
            "cfg_scale": cfg_scale,
            "block_lists": [len(blocks_of(subject.transformer))],
            "generations": 1,
            "refresh_between": False,
        },
        "decisions": _decisions(branches),
        "margin": margin_of(calls),
        "final": [_final(generation.latents, uncached.latents)],
        "stats": None,
        "branches": branches,
        "latent_absmean": [[round(value, 7) for value in generation.absmean]],
    }


def _branches(calls: list[Call], algorithm: str) -> dict[str, dict[str, Any]]:
    """What happened in each branch, by step, in the order of the calls."""
    branches: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(call.branch for call in calls):
        of_branch = [call for call in calls if call.branch == name]
        branch: dict[str, Any] = {"decisions": "".join(_letter(call, algorithm) for call in of_branch)}
        if algorithm == "DBPrune":
            branch["pruned_blocks"] = [[q.block for q in call.questions if q.hit] for call in of_branch]
            branch["diffs"] = [[_rounded(q) for q in call.questions if q.diff is not None] for call in of_branch]
            branch["reasons"] = [sorted({q.reason for q in call.questions}) for call in of_branch]
        else:
            asked = [call.questions[0] if call.questions else None for call in of_branch]
            branch["diffs"] = [None if q is None or q.diff is None else round(q.diff, 7) for q in asked]
            branch["reasons"] = [q.reason if q else "no_cache" for q in asked]
        branch["context_step"] = [call.context_step for call in of_branch]
        branch["blocks_run"] = [len(call.blocks_run) for call in of_branch]
        branches[name] = branch
    if algorithm == "none":
        for branch in branches.values():
            branch["context_step"] = list(range(len(branch["decisions"])))
    return branches


def _decisions(branches: dict[str, dict[str, Any]]) -> dict[str, str]:
    return {name: branch["decisions"] for name, branch in branches.items()}


def _letter(call: Call, algorithm: str) -> str:
    """C: computed. S: the middle blocks were skipped. P: at least one block was pruned."""
    if not any(question.hit for question in call.questions):
        return "C"
    return "P" if algorithm == "DBPrune" else "S"


def _rounded(question: Question) -> list[Any]:
    """`[block, diff, threshold]`."""
    numbers = (question.diff, question.threshold)
    return [question.block, *(None if number is None else round(number, 7) for number in numbers)]


def _stats(context: Any, calls: list[Call]) -> dict[str, Any]:
    """cache-dit's own summary of the generation."""
    stats: dict[str, Any] = {
        "cached_steps": context.get_cached_steps(),
        "cfg_cached_steps": context.get_cfg_cached_steps(),
        "accumulated_cached_steps": context.get_accumulated_cached_steps(),
        "accumulated_executed_steps": context.get_accumulated_executed_steps(),
        "diffs_percentiles": None,
    }
    diffs = _flat(list(context.get_residual_diffs().values()))
    if diffs:
        levels = {"p00": 0, "p25": 25, "p50": 50, "p75": 75, "p95": 95, "min": 0, "max": 100}
        percentiles = {name: float(np.percentile(diffs, level)) for name, level in levels.items()}
        stats["diffs_percentiles"] = {name: round(value, 9) for name, value in percentiles.items()}
    if hasattr(context, "get_pruned_blocks"):
        pruned, actual = context.get_pruned_blocks(), context.get_actual_blocks()
        stats |= {
            "pruned_blocks": pruned,
            "actual_blocks": actual,
            "pruned_ratio": round(sum(pruned) / sum(actual), 9),
        }
    return stats


def _final(latents: torch.Tensor, uncached: torch.Tensor) -> dict[str, float]:
    """Figures of the final latents, and their distance to those of the uncached generation."""
    return {
        "mean": round(latents.mean().item(), 9),
        "std": round(latents.std().item(), 9),
        "absmean": round(latents.abs().mean().item(), 9),
        "rel_l1_vs_uncached": round(rel_l1(latents, uncached), 9),
        "max_abs_vs_uncached": round((latents - uncached).abs().max().item(), 9),
    }


def _flat(diffs: list[Any]) -> list[float]:
    """All differences of a branch, whether a step has one (DBCache), none, or many (DBPrune)."""
    flat: list[float] = []
    for diff in diffs:
        if isinstance(diff, list):
            flat.extend(item[1] if isinstance(item, list) else item for item in diff)
        elif diff is not None:
            flat.append(diff)
    return flat


def _significant(value: float) -> float:
    return float(f"{value:.4g}")
