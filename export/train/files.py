"""Writes files and folders in one step: a reader, or a run that is cut off, never leaves half of one behind."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["replaced_file", "replaced_folder"]


@contextmanager
def replaced_file(path: Path) -> Iterator[Path]:
    """Gives a path to write to; what was written replaces `path` if the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def replaced_folder(path: Path) -> Iterator[Path]:
    """Gives an empty folder to fill; it takes the place of `path`, with all that was in it, if the block succeeds."""
    partial, former = (path.with_name(f".{path.name}.{state}") for state in ("partial", "former"))
    for leftover in (partial, former):
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        if path.exists():
            path.rename(former)
        partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(former, ignore_errors=True)
