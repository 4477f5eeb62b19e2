"""The cache policies that are compared, each with a threshold at which it computes some steps and skips others."""

from __future__ import annotations

__all__ = ["POLICIES", "Policy", "Reference", "compare", "decide"]

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from original import Call, Decided, Original

#: Two implementations take sums in another order: a decision nearer to its threshold than this, relative to it, may
#: turn out otherwise.
MARGIN = 2e-3
#: Largest relative difference between two diffs of one decision.
DIFF_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Policy:
    """A cache as cache-dit is given it, but for the threshold.

    Attributes:
        options: Fields of cache-dit's configuration.
        algorithm: `DBCache` or `DBPrune`.
        calibrator: Fields of TaylorSeer's configuration, if it forecasts.
    """

    options: Mapping[str, Any]
    algorithm: str = "DBCache"
    calibrator: Mapping[str, Any] | None = None

    def at(self, threshold: float) -> Policy:
        """The same with a threshold."""
        return replace(self, options={**self.options, "residual_diff_threshold": threshold})


def _blocks(head: int, tail: int, warmup: int) -> dict[str, int]:
    return {"Fn_compute_blocks": head, "Bn_compute_blocks": tail, "max_warmup_steps": warmup}


POLICIES: Mapping[str, Policy] = {
    "f1b0": Policy(_blocks(1, 0, 2)),
    "f1b1, TaylorSeer": Policy(_blocks(1, 1, 3), calibrator={"taylorseer_order": 1}),
    "f2b0, limits": Policy(_blocks(2, 0, 2) | {"max_cached_steps": 3, "max_continuous_cached_steps": 2}),
    "prune": Policy(_blocks(1, 1, 2), algorithm="DBPrune"),
}


@dataclass(frozen=True)
class Reference:
    """A generation under cache-dit.

    Attributes:
        policy: With a threshold at which its decisions are mixed.
        latents: The final ones.
        decided: By list and branch, the steps of two transformers one after the other.
        margin: The smallest distance of a diff to the threshold, relative to it.
    """

    policy: Policy
    latents: torch.Tensor
    decided: list[Decided]
    margin: float

    @property
    def command(self) -> dict[str, Any]:
        """The policy as `--cache` takes it."""
        start = {"DBCache": "cache-dit", "DBPrune": "DBPrune"}[self.policy.algorithm]
        given = {"cache_type": start, **self.policy.options}
        if self.policy.calibrator is not None:
            given |= {"calibrator_type": "taylorseer", **self.policy.calibrator}
        return given | ({"separate_block_lists": True} if len({one.list for one in self.decided}) > 1 else {})

    @property
    def decisions(self) -> int:
        """How many there are."""
        return sum(sum(map(len, one.diffs)) if one.pruned else len(one.decisions) for one in self.decided)


def decide(original: Original, call: Call, policy: Policy) -> Reference:
    """Looks for a threshold with which cache-dit computes and skips, and no diff lies near it.

    Raises:
        LookupError: There is none.
    """
    warmup = policy.options["max_warmup_steps"]
    if original.variant.ratio:  # each transformer warms up, and has few steps
        policy = replace(policy, options={**policy.options, "max_warmup_steps": 1})
    seen = _under(original, call, policy.at(1e-6))
    diffs = sorted(diff for one in seen.decided for of_step in one.diffs for diff in of_step if diff > 0)
    middle = len(diffs) // 2
    for place in sorted(range(1, len(diffs)), key=lambda k: abs(k - middle)):
        lower, upper = diffs[place - 1 : place + 1]
        if upper - lower < 2 * MARGIN * upper or lower + upper >= 2:  # from 1 on nothing is compared
            continue
        found = _under(original, call, policy.at(float(f"{(lower + upper) / 2:.4g}")))
        if found.margin > MARGIN and all(_is_mixed(one, warmup) for one in found.decided):
            return found
    raise LookupError("no threshold gives mixed decisions; take other weights, or another prompt")


def compare(reference: Reference, trace: Mapping[str, Any]) -> float:
    """Holds a trace of the command against what cache-dit decided.

    Returns:
        The largest relative difference of two diffs.

    Raises:
        AssertionError: A decision differs, or a diff too much.
    """
    worst = 0.0
    lists = list(dict.fromkeys(one.list for one in reference.decided))
    for theirs in reference.decided:
        at = f"{theirs.list}, {theirs.branch}"
        number = lists.index(theirs.list) if len(lists) > 1 else None
        steps = [one for one in trace["records"] if (one["list"], one["branch"]) == (number, theirs.branch)]
        steps.sort(key=lambda one: (one["expert"] or 0, one["step"]))
        ours = "".join(one["action"] for one in steps)
        assert ours == theirs.decisions, f"{at}: decisions are {ours}, cache-dit's {theirs.decisions}"
        if theirs.pruned:
            pruned = [sum(block["action"] == "S" for block in one["blocks"]) for one in steps]
            assert pruned == theirs.pruned, f"{at}: pruned blocks are {pruned}, cache-dit's {theirs.pruned}"
        for step, (one, compared) in enumerate(zip(steps, theirs.diffs, strict=True)):
            taken = [one["diff"], *(block["diff"] for block in one["blocks"])]
            taken = [diff for diff in taken if diff is not None]
            assert len(taken) == len(compared), f"{at}, step {step}: diffs are {taken}, cache-dit's {compared}"
            for our, their in zip(taken, compared, strict=True):
                worst = max(worst, abs(our - their) / their)
                assert worst <= DIFF_TOLERANCE, f"{at}, step {step}: the diff is {our}, cache-dit's {their}"
    return worst


def _under(original: Original, call: Call, policy: Policy) -> Reference:
    latents, models = original.cached(call, policy.algorithm, policy.options, policy.calibrator)
    threshold = policy.options["residual_diff_threshold"]
    joined = [_joined(list(parts)) for parts in zip(*models, strict=True)]
    distances = [abs(diff - threshold) / threshold for one in joined for of_step in one.diffs for diff in of_step]
    return Reference(policy, latents, joined, min(distances, default=1.0))


def _joined(parts: list[Decided]) -> Decided:
    """The steps of a second transformer follow those of the first."""
    first = parts[0]
    return Decided(
        first.list,
        first.branch,
        "".join(part.decisions for part in parts),
        [of_step for part in parts for of_step in part.diffs],
        [number for part in parts for number in part.pruned],
    )


def _is_mixed(one: Decided, warmup: int) -> bool:
    """Whether what is asked about is computed in part and skipped in part."""
    if one.pruned:
        asked = sum(map(len, one.diffs))
        return 0 < sum(one.pruned) < asked
    return {"C", "S"} <= set(one.decisions[warmup:])
