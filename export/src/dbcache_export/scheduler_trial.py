"""A diffusers scheduler_config.json, tried out as its pipeline would use it."""

from __future__ import annotations

__all__ = ["CLASSES", "Source"]

import inspect
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import torch

from dbcache_export.errors import ExportError, listed
from dbcache_export.folder import read_json
from dbcache_export.pipeline_calls import Calls, drive

#: Schedulers of diffusers that the manifest can describe.
CLASSES = (
    "FlowMatchEulerDiscreteScheduler",
    "DDIMScheduler",
    "CogVideoXDDIMScheduler",
    "CogVideoXDPMScheduler",
    "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler",
)

#: Steps and tokens with which a configuration is tried until its numbers are finite; some fail with few or many.
_TRIED = ((20, 4096), (5, 1024), (50, 4096), (2, 256))
#: Settings that follow from what the model was trained for: the trouble is another one that does not go with them.
_MODELS = ("use_flow_sigmas", "prediction_type")
#: f32 rounds noise levels of 0 and 1.
_ROUNDING = 1e-6


class Source:
    """A scheduler_config.json, and the scheduler that diffusers makes of it."""

    def __init__(self, path: Path, given: Mapping[str, Any]) -> None:
        """Takes the configuration as it is in the file.

        Raises:
            ExportError: It is of another class, or diffusers refuses it.
        """
        self.path, self.given = path, given
        self.name = str(given.get("_class_name"))
        if self.name not in CLASSES:
            raise ExportError(f"{path}: {self.name} is not supported", f"supported: {listed(CLASSES)}")
        self.kind: Any = getattr(diffusers, self.name)
        parameters = inspect.signature(self.kind.__init__).parameters
        self.defaults = {name: one.default for name, one in parameters.items() if name not in ("self", "kwargs")}
        _refuse_unsupported(self)
        problem = _problem(lambda: self.kind.from_config(dict(given)))
        if problem:
            raise self.blamed(problem, lambda one: _problem(lambda: self.kind.from_config(one)))
        self.built: Any = _quietly(lambda: self.kind.from_config(dict(given)))

    @classmethod
    def read(cls, folder: Path, published: Mapping[str, Any] | None) -> Source | None:
        """The pipeline's, or the one that it was published with."""
        path = folder / "scheduler" / "scheduler_config.json"
        if path.is_file():
            return cls(path, read_json(path))
        return cls(path, published) if published else None

    def value(self, name: str) -> Any:
        """A setting as diffusers reads it."""
        return self.built.config.get(name, self.defaults.get(name))

    def refusal(self, name: str, remedy: str) -> ExportError:
        """One setting is the trouble."""
        given = self.given.get(name, self.defaults.get(name))
        return ExportError(f"{self.path}: {name} {given!r} is not supported", remedy)

    def blamed(self, problem: str, trial: Callable[[dict[str, Any]], str | None]) -> ExportError:
        """The settings without which there would be no problem, each by itself; else all that are not the defaults."""
        changed = [name for name in self.given if name in self.defaults and self.given[name] != self.defaults[name]]
        guilty = [
            name for name in changed if not trial({key: value for key, value in self.given.items() if key != name})
        ]
        names = [name for name in guilty if name not in _MODELS] or guilty or changed
        if not guilty and trial({"_class_name": self.name}):
            return ExportError(f"{self.path}: {self.name} does not fit this pipeline ({problem})", "use another one")
        said = ", ".join(f"{name} {self.given[name]!r}" for name in sorted(names))
        defaults = ", ".join(f"{name} {self.defaults[name]!r}" for name in sorted(names))
        return ExportError(
            f"{self.path}: {said}: {self.name} does not work so ({problem})",
            f"take settings that diffusers runs with this pipeline, such as {defaults}",
        )

    def try_out(self, calls: Calls) -> None:
        """Runs the scheduler as the pipeline does.

        Raises:
            ExportError: Its numbers are not finite, or diffusers refuses it.
        """

        def trial(config: dict[str, Any]) -> str | None:
            problems = []
            for steps, tokens in _TRIED:
                problem = _problem(partial(_run, self.kind, config, calls, steps, tokens))
                if problem is None:
                    return None
                problems.append(problem)
            return problems[0]

        problem = trial(dict(self.given))
        if problem:
            raise self.blamed(problem, trial)


def _run(kind: Any, config: dict[str, Any], calls: Calls, steps: int, tokens: int) -> None:
    run = drive(kind.from_config(config), calls, steps, tokens)
    if not run.is_finite():
        raise ValueError("its numbers are not finite")
    if run.sigmas and not all(-_ROUNDING <= sigma <= 1 + _ROUNDING for sigma in run.sigmas):
        raise ValueError("its noise levels do not lie between 0 and 1")


def _quietly(run: Callable[[], Any]) -> Any:
    level = diffusers.logging.get_verbosity()
    diffusers.logging.set_verbosity_error()
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")
            return run()
    finally:
        diffusers.logging.set_verbosity(level)


def _problem(run: Callable[[], Any]) -> str | None:
    """What diffusers says against it, in one line; None if nothing."""
    try:
        _quietly(run)
    except Exception as error:  # whatever diffusers, numpy and PyTorch raise on odd values
        said = " ".join(str(error).split())
        return f"{type(error).__name__}: {said[:160]}" if said else type(error).__name__
    return None


def _refuse_unsupported(source: Source) -> None:
    """Settings that no manifest can say, whatever the others are.

    Raises:
        ExportError: One is on.
    """
    switches = ["use_beta_sigmas", "thresholding", "solver_p"]
    if source.name == "DDIMScheduler":
        switches.append("clip_sample")  # CogVideoX's schedulers have it, and do not clip
    on = [name for name in switches if name in source.defaults and source.given.get(name, source.defaults[name])]
    if on:
        raise ExportError(f"{source.path}: {listed(on)} is not supported by the engine", "switch it off")
