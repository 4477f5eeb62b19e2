"""Watches cache-dit decide: attaches it to a transformer and notes every question that it asks itself.

cache-dit keeps the decision of a step, and the difference that led to it, in state that the next step
overwrites. So this module replaces two methods of its context manager, on the instance and for one
generation: `can_cache` (may this call, or with DBPrune this block, be skipped?) and `similarity` (the
comparison inside it, which knows the threshold). Neither changes the answer.

Reasons are not stored by cache-dit at all. They are found by asking its own getters in the order of
`CachedContextManager.can_cache`, and every reason is checked against the answer that cache-dit then gives.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from generate import Branch, blocks_of

os.environ.setdefault("CACHE_DIT_LOG_LEVEL", "error")  # Read by cache-dit when it is imported.
import cache_dit  # type: ignore[import-untyped]

__all__ = ["CacheOptions", "Call", "Observation", "Question"]


@dataclass(frozen=True)
class CacheOptions:
    """What cache-dit is given, in its own names.

    Attributes:
        algorithm: `DBCache` or `DBPrune`.
        given: Fields of `DBCacheConfig` or `DBPruneConfig` that differ from the defaults.
        calibrator: `{"type": "taylorseer" | "dmd" | "foca", field: value, …}` or None.
        extra: Fields of `ExtraCacheConfig`, or None.
        cfg_scale: None for one call a step; else two calls, which cache-dit keeps apart.
    """

    algorithm: str
    given: dict[str, Any] = field(default_factory=dict)
    calibrator: dict[str, Any] | None = None
    extra: dict[str, Any] | None = None
    cfg_scale: float | None = None


@dataclass(frozen=True)
class Question:
    """One answer of cache-dit to: can this be skipped?

    Attributes:
        block: The block that was asked about (DBPrune), or None (DBCache asks once a call).
        hit: The answer.
        reason: The first rule that decided.
        diff: The difference that was recorded, None when nothing was compared.
        threshold: What it was compared with, None when nothing was compared.
    """

    block: int | None
    hit: bool
    reason: str
    diff: float | None
    threshold: float | None


@dataclass
class Call:
    """One call of the transformer: its questions and the blocks that really ran."""

    branch: Branch
    context_step: int = -1
    questions: list[Question] = field(default_factory=list)
    blocks_run: list[int] = field(default_factory=list)


class Observation:
    """A private copy of a transformer under cache-dit, and the record of what happens in it.

    One observation serves one generation, since a new generation needs a new cache context.

    Attributes:
        transformer: The caching copy; call this one.
        calls: What has been seen so far.
    """

    def __init__(self, transformer: Any, options: CacheOptions | None) -> None:
        """Copies the transformer and enables the cache in the copy.

        Args:
            transformer: Left as it is.
            options: None to run without a cache; blocks are counted all the same.
        """
        self.transformer = copy.deepcopy(transformer)
        self.calls: list[Call] = []
        self._threshold: float | None = None
        for index, block in enumerate(blocks_of(self.transformer)):
            block.register_forward_pre_hook(self._counter(index))
        if options is None:
            return
        _enable(self.transformer, options)
        manager = self.transformer._context_manager
        self._can_cache, manager.can_cache = manager.can_cache, self._asked
        self._similarity, manager.similarity = manager.similarity, self._compared
        if options.extra:
            for name, value in options.extra.items():
                setattr(self.context.extra_cache_config, name, value)

    @property
    def context(self) -> Any:
        """cache-dit's context; there is one, because FLUX is one list of blocks."""
        (name,) = self.transformer._context_names
        return self.transformer._context_manager.get_context(name)

    @property
    def tag(self) -> str:
        """cache-dit's own summary of configuration and result."""
        return str(cache_dit.strify(self.transformer))

    def before_call(self, branch: Branch) -> None:
        """Starts the record of a call."""
        self.calls.append(Call(branch))

    def _counter(self, index: int) -> Callable[..., None]:
        def count(*_: Any) -> None:
            self.calls[-1].blocks_run.append(index)

        return count

    def _compared(self, *args: Any, threshold: float, **kwargs: Any) -> bool:
        self._threshold = threshold
        return bool(self._similarity(*args, threshold=threshold, **kwargs))

    def _asked(self, *args: Any, prefix: str = "Fn", **kwargs: Any) -> bool:
        manager, call = self.transformer._context_manager, self.calls[-1]
        is_uncond = manager.is_separate_cfg_step()
        if is_uncond != (call.branch == "uncond"):
            raise AssertionError(f"cache-dit takes call {len(self.calls) - 1} for the other branch")
        call.context_step = manager.get_current_step()

        gate = _first_gate(manager, is_uncond)
        before = _recorded(manager, is_uncond)
        self._threshold = None
        hit = bool(self._can_cache(*args, prefix=prefix, **kwargs))
        new = _recorded(manager, is_uncond)[len(before) :]

        compared = self._threshold is not None
        reason = gate or ("no_buffer" if not compared else "below" if hit else "above")
        if hit != (reason in ("mask_static", "below")) or (gate is not None and compared):
            raise AssertionError(f"reason {reason} does not explain the answer {hit} at step {call.context_step}")
        block = re.search(r"_(\d+)_Fn_original$", prefix)
        call.questions.append(
            Question(int(block[1]) if block else None, hit, reason, new[0] if new else None, self._threshold)
        )
        return hit


def _enable(transformer: Any, options: CacheOptions) -> None:
    """Turns cache-dit on in a transformer, as its documentation says for use without a pipeline."""
    config_types = {"DBCache": cache_dit.DBCacheConfig, "DBPrune": cache_dit.DBPruneConfig}
    calibrator_types = {
        "taylorseer": cache_dit.TaylorSeerCalibratorConfig,
        "dmd": cache_dit.DMDCalibratorConfig,
        "foca": cache_dit.FoCaCalibratorConfig,
    }
    config = config_types[options.algorithm](**options.given, enable_separate_cfg=options.cfg_scale is not None)
    calibrator = None
    if options.calibrator:
        fields = dict(options.calibrator)
        calibrator = calibrator_types[fields.pop("type")](**fields)
    cache_dit.enable_cache(transformer, cache_config=config, calibrator_config=calibrator)


def _first_gate(manager: Any, is_uncond: bool) -> str | None:
    """The first rule before the comparison that decides, or None when the difference has to decide."""
    if manager.is_in_warmup():
        return "warmup"
    if manager.is_steps_computation_mask_enabled():
        if manager.is_in_full_compute_steps():
            return "mask_compute"
        if manager.get_steps_computation_policy() == "static":
            return "mask_static"
    cached = manager.get_cfg_cached_steps() if is_uncond else manager.get_cached_steps()
    if 0 <= manager.get_max_cached_steps() <= len(cached):
        return "max_cached"
    run = manager.get_cfg_continuous_cached_steps() if is_uncond else manager.get_continuous_cached_steps()
    run -= bool(cached) and cached[-1] == manager.get_current_step()
    if 0 <= manager.get_max_continuous_cached_steps() <= run:
        return "max_continuous"
    limit = manager.max_accumulated_residual_diff_threshold()
    total_of = manager.get_cfg_accumulated_residual_diff if is_uncond else manager.get_accumulated_residual_diff
    total = total_of()
    if limit is not None and 0.0 < limit <= total:
        return "max_accumulated"
    return "threshold_off" if manager.get_residual_diff_threshold() <= 0.0 else None


def _recorded(manager: Any, is_uncond: bool) -> list[float]:
    """The differences that cache-dit has recorded for the present step and branch, in order."""
    diffs = manager.get_cfg_residual_diffs() if is_uncond else manager.get_residual_diffs()
    of_step = diffs.get(str(manager.get_current_step()), [])
    return list(of_step) if isinstance(of_step, list) else [of_step]
