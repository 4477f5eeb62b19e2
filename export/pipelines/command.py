"""This side: the exporter and the command, each as a process, as a user runs them."""

from __future__ import annotations

__all__ = ["Failed", "Made", "export", "generate"]

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from original import Call
from variants import Variant

#: Letters of each argument in messages.
_SHOWN = 100


class Failed(Exception):
    """A process ended with an error; the text is its own."""


@dataclass(frozen=True)
class Made:
    """What one run of the command left.

    Attributes:
        latents: As `--save-latents` writes them.
        frames: As `Original.frames`; empty where they were not asked for.
        trace: As `--trace` writes it.
    """

    latents: torch.Tensor
    frames: list[Any]
    trace: Mapping[str, Any]


def export(model: Path, engine: Path, size: tuple[int, int], *flags: str) -> None:
    """Runs `dbcache-export` with its check. The default size says which sizes there are, so it is a small one here."""
    check = ["--check", "--size", f"{size[0]}x{size[1]}", *flags]
    _run([sys.executable, "-m", "dbcache_export", model, engine, *check])


def generate(variant: Variant, engine: Path, out: Path, call: Call, cache: Mapping[str, Any] | None = None) -> Made:
    """Runs the command that DBCACHE_TRT names.

    Args:
        variant: The pipeline.
        engine: The engine directory.
        out: A folder for what it writes, new.
        call: What to make.
        cache: A policy as cache-dit names its options; None runs without a cache.
    """
    out.mkdir()
    latents, trace = out / "latents.safetensors", out / "trace.json"
    size = "x".join(map(str, call.size))
    flags: list[object] = ["--steps", call.steps, "--seed", call.seed, "--size", size, *variant.flags]
    if variant.labels:
        save_file({"class_labels": torch.tensor(call.prompt).float()}, out / "labels.safetensors")
        flags += ["--inputs", out / "labels.safetensors"]
    else:
        flags += ["--prompt", call.prompt, "--count", call.batch, "--batch", call.batch]
    if call.negative is not None:
        flags += ["--negative-prompt", call.negative]
        flags += variant.negative[1] if isinstance(variant.negative, tuple) else ()
    if call.scale is not None:
        flags += ["--guidance", call.scale]
    if variant.frames is not None:
        flags += ["--frames", variant.frames]
    if cache is not None:
        flags += ["--cache", json.dumps(cache)]
    target = out / ("picture.png" if variant.frames is None else "frames")
    files = ["--output", target, "--save-latents", latents, "--trace", trace, "--quiet"]
    _run([os.environ["DBCACHE_TRT"], "--engine", engine, *flags, *files])
    (recorded,) = json.loads(trace.read_text("utf-8"))
    return Made(load_file(latents)["latents"], _frames(target), recorded)


def _frames(target: Path) -> list[Any]:
    """In the order of seeds and frames."""
    written = sorted(target.parent.glob(f"{target.stem}*"), key=lambda path: (len(path.name), path.name))
    files = [file for path in written for file in (sorted(path.iterdir()) if path.is_dir() else [path])]
    return [Image.open(file) for file in files]


def _run(command: Sequence[object]) -> None:
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        shown = shlex.join(word if len(word) < _SHOWN else f"{word[:_SHOWN]}…" for word in words[1:])
        raise Failed(f"{Path(words[0]).name} {shown}\nended with {done.returncode}: {done.stderr.strip()}")
