"""What cache-dit decided in a generation, read from the contexts of a transformer's lists of blocks afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

__all__ = ["Decided", "decided"]


@dataclass(frozen=True)
class Decided:
    """One branch of one list of blocks.

    Attributes:
        list: The attribute of the transformer that holds the blocks.
        branch: `cond` or `uncond`.
        decisions: A letter a step: C computed, S skipped, P some blocks pruned.
        diffs: What was compared in each step: one number, several where blocks decide by themselves, or none.
        pruned: How many blocks were pruned in each step; empty where the list decides as one.
    """

    list: str
    branch: str
    decisions: str
    diffs: list[list[float]]
    pruned: list[int]


def decided(transformer: Any, steps: int, *, separate: bool) -> Iterator[Decided]:
    """Every list and branch of a transformer that has run so many steps.

    Args:
        transformer: On which cache-dit is enabled.
        steps: Counted from its first.
        separate: Whether the branches of guidance are calls of their own.
    """
    for name in transformer._context_names:
        context = transformer._context_manager.get_context(name)
        for branch, prefix in (("cond", ""), ("uncond", "cfg_"))[: 2 if separate else 1]:

            def of_branch(what: str, prefix: str = prefix, context: Any = context) -> Any:
                return getattr(context, f"get_{prefix}{what}")()

            pruned = of_branch("pruned_blocks") if hasattr(context, "get_pruned_blocks") else []
            skipped, diffs = of_branch("cached_steps"), of_branch("residual_diffs")
            compared = [diffs.get(str(step), []) for step in range(steps)]
            yield Decided(
                list=name.rpartition("_")[0],
                branch=branch,
                decisions="".join(("P" if pruned else "S") if step in skipped else "C" for step in range(steps)),
                diffs=[of_step if isinstance(of_step, list) else [of_step] for of_step in compared],
                pruned=pruned,
            )
