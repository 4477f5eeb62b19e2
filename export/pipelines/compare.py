"""One pipeline, from a user's folder to pictures, on both sides."""

from __future__ import annotations

__all__ = ["Figures", "check"]

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dbcache_export.families.patches import pack

import policies
from command import Failed, export, generate
from original import Call, Original, write_folder
from policies import POLICIES
from variants import Variant

#: Few, but enough for warm-up, for a skip, and for what follows a skip.
STEPS = 8
#: So many pixels in a thousand may fall on the other side of a half; none may differ by more than one level.
PIXEL_TOLERANCE = 3.0
#: What another prompt or seed changes at least, in the same measure: far more than the tolerance.
CHANGE = 1e-2

_PROMPT, _SHORT = "blue boat on a red apple", "a cat"
#: More words and letters than any pipeline takes.
_LONG = "a red apple on a blue boat " * 100
#: Numbers of classes.
_LABELS = (207, 360)


@dataclass
class Figures:
    """What was found of one pipeline.

    Attributes:
        latents: The largest difference, relative to the largest value.
        pixels: How many of a thousand differ by one level, in the worst picture.
        diffs: The largest relative difference of the numbers that decide.
        decisions: How many were compared.
        margin: The smallest distance of one of those numbers to its threshold, relative to it.
        seconds: Of both sides.
        failures: What differs, or failed.
    """

    latents: float = 0.0
    pixels: float = 0.0
    diffs: float = 0.0
    decisions: int = 0
    margin: float = 1.0
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Goes on after a failure, so that all are shown at once."""
        try:
            yield
        except (AssertionError, Failed, LookupError) as problem:
            self.failures.append(f"{name}: {problem}")
        except Exception as problem:  # of diffusers or cache-dit, which raise many types
            self.failures.append(f"{name}: {type(problem).__name__}: {problem}")


def check(variant: Variant, scratch: Path) -> Figures:
    """Exports a pipeline, and makes the same with the command and with diffusers: without a cache, then with each."""
    started, figures = time.monotonic(), Figures()
    with figures.part("export"):
        write_folder(variant, scratch / "parts", scratch / "model")
        export(scratch / "model", scratch / "engine", variant.sizes[0])
        original = Original(variant, scratch / "model")
        latents: dict[str, torch.Tensor] = {}
        for name, call in calls(variant).items():
            with figures.part(name):
                latents[name] = _uncached(original, call, scratch, name, figures)
        with figures.part("prompts and seeds"):
            _answers(latents, variant.tolerance)
        for name, (call, policy) in cached_calls(variant).items():
            with figures.part(name):
                _cached(original, call, policy, scratch, name, figures)
    figures.seconds = time.monotonic() - started
    return figures


def calls(variant: Variant) -> dict[str, Call]:
    """What is made without a cache: long and short texts, one picture and two, two sizes, two scales of guidance."""
    oblong, other = variant.sizes
    first = Call(_LABELS[:1] if variant.labels else _PROMPT, oblong, STEPS)
    negative = variant.negative is not False
    made = {
        "first": first,
        "other prompt": replace(first, prompt=_LABELS[1:] if variant.labels else _LONG),
        "two": replace(first, prompt=_LABELS[:1] * 2 if variant.labels else _PROMPT, batch=2),
    }
    if not variant.labels:
        made["short"] = replace(first, prompt=_SHORT, size=other, negative=_PROMPT if negative else None)
    if variant.scale or negative:
        scale = variant.scale[1] if variant.scale else None
        made["guidance"] = replace(made["two"], size=other, scale=scale, negative=_SHORT if negative else None)
    return made


def cached_calls(variant: Variant) -> dict[str, tuple[Call, str]]:
    """What is made with a cache: every policy on one picture; one also on two, and where guidance is added at will."""
    uncached = calls(variant)
    # A calibrator needs more steps than the first of two transformers has here, and is refused.
    chosen = [
        name
        for name, policy in POLICIES.items()
        if (variant.prunes or policy.algorithm != "DBPrune") and not (variant.ratio and policy.calibrator)
    ]
    made = {policy: (uncached["first"], policy) for policy in chosen} | {"f1b0 of two": (uncached["two"], "f1b0")}
    if isinstance(variant.negative, tuple):
        made["f1b0, two branches"] = (uncached["short"], "f1b0")
    return made


def _uncached(original: Original, call: Call, scratch: Path, name: str, figures: Figures) -> torch.Tensor:
    made = generate(original.variant, scratch / "engine", scratch / name, call)
    _compare_latents(made.latents, original.latents(call), scratch, figures, original.variant.tolerance)
    _compare_pixels(made.frames, original.frames(call), figures)
    return made.latents


def _cached(original: Original, call: Call, policy: str, scratch: Path, name: str, figures: Figures) -> None:
    reference = policies.decide(original, call, POLICIES[policy])
    made = generate(original.variant, scratch / "engine", scratch / name, call, reference.command)
    figures.diffs = max(figures.diffs, policies.compare(reference, made.trace))
    figures.decisions += reference.decisions
    figures.margin = min(figures.margin, reference.margin)
    _compare_latents(made.latents, reference.latents, scratch, figures, original.variant.tolerance)


def _answers(latents: dict[str, torch.Tensor], tolerance: float) -> None:
    """Another prompt gives something else, another seed as well, and a picture is what it is alone."""
    first, two = latents["first"], latents["two"]
    for what, other in (("prompt", latents["other prompt"]), ("seed", two[1:])):
        change = _difference(other, first)
        assert change > CHANGE, f"another {what} changes the latents by {change:.1e} only"
    assert (error := _difference(two[:1], first)) <= tolerance, f"the first of two differs by {error:.1e}"


def _compare_latents(
    ours: torch.Tensor, theirs: torch.Tensor, scratch: Path, figures: Figures, tolerance: float
) -> None:
    if theirs.ndim == 3 and ours.ndim == 5:  # LTX-Video gives a list of cells
        theirs = theirs.transpose(1, 2).reshape(ours.shape)
    if ours.shape != theirs.shape:
        theirs = pack(theirs, _manifest(scratch)["latents"]["patch"])
    assert ours.shape == theirs.shape, f"the latents are {[*ours.shape]}, diffusers' {[*theirs.shape]}"
    error = _difference(ours, theirs)
    figures.latents = max(figures.latents, error)
    assert error <= tolerance, f"the latents differ by {error:.1e} of their largest value"


def _compare_pixels(ours: list[Any], theirs: list[Any], figures: Figures) -> None:
    assert len(ours) == len(theirs), f"there are {len(ours)} pictures, diffusers makes {len(theirs)}"
    for number, (our, their) in enumerate(zip(ours, theirs, strict=True)):
        levels = np.abs(np.asarray(our.convert("RGB"), int) - np.asarray(their.convert("RGB"), int))
        off = 1000 * float((levels > 0).mean())
        figures.pixels = max(figures.pixels, off)
        assert levels.max() <= 1, f"picture {number} differs by up to {levels.max()} levels"
        assert off <= PIXEL_TOLERANCE, f"picture {number}: {off:.1f} of 1000 pixels differ by one level"


def _difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def _manifest(scratch: Path) -> Any:
    return json.loads((scratch / "engine" / "manifest.json").read_text("utf-8"))
