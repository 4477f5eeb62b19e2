"""Folders that appear under their names whole, or not at all.

What is not whole yet lies beside its place, locked by the process that writes it; what a killed one left is not
locked, and the next export into the same folder removes it.
"""

from __future__ import annotations

__all__ = ["new_directory", "scratch"]

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dbcache_export.errors import ExportError

try:
    import fcntl
except ImportError:  # Windows: nothing is locked, so nothing is taken for a leftover.
    fcntl = None  # type: ignore[assignment]

#: Begins the names of folders that are not whole yet; then follow what for, a dot and letters that make it unique.
_PREFIX = ".dbcache-export-"

#: Files of an engine directory; what else an overwritten directory holds is kept.
_ENGINE_FILES = ("manifest.json", "*.onnx", "*.safetensors")


@contextmanager
def new_directory(target: Path, *, overwrite: bool) -> Iterator[Path]:
    """A folder beside `target` that takes its name when the block ends well, and vanishes otherwise.

    Raises:
        ExportError: `target` exists and is not to be overwritten, its folder cannot be written, or another export is
            about to give that name.
    """
    target = target.absolute()
    if target.exists() or target.is_symlink():
        if not overwrite:
            raise ExportError(f"{target} exists", "pass --overwrite to replace it")
        if not _is_engine(target):
            raise ExportError(f"{target} is no engine directory", "only those are overwritten: give another name")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(target.parent):
            if target.name in _remove_leftovers(target.parent):
                raise ExportError(f"another export is writing {target}", "wait for it, or give another name")
            partial, lock = _temporary(target.parent, target.name)
    except OSError as error:
        raise ExportError(f"cannot write to {target.parent} ({error.strerror})", "give another OUT_DIR") from error
    try:
        yield partial
        umask = os.umask(0)
        os.umask(umask)
        partial.chmod(0o777 & ~umask)
        if target.exists():
            _keep_documents(target, partial)
            with scratch(target.parent, "replaced") as replaced:
                target.rename(replaced / target.name)
                partial.rename(target)
        else:
            partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        _close(lock)


@contextmanager
def scratch(parent: Path, what: str) -> Iterator[Path]:
    """A folder that vanishes when the block ends."""
    folder, lock = _temporary(parent, f".{what}")  # The dot keeps it apart from names of engines.
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _close(lock)


def _temporary(parent: Path, what: str) -> tuple[Path, int | None]:
    folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{what}.", dir=parent))
    return folder, _lock(folder)


def _remove_leftovers(parent: Path) -> set[str]:
    """Removes what killed exports left in a folder, and gives what the living ones are about to write."""
    living = set()
    for folder in parent.glob(f"{_PREFIX}*"):
        try:
            lock = _lock(folder)
        except BlockingIOError:
            living.add(folder.name.removeprefix(_PREFIX).rpartition(".")[0])
            continue
        if lock is None:
            continue
        if folder.name.startswith(f"{_PREFIX}.replaced."):
            # Killed between two renames: the engine that was to be replaced is the one that there is.
            for older in folder.iterdir():
                if not (parent / older.name).exists():
                    older.rename(parent / older.name)
        shutil.rmtree(folder, ignore_errors=True)
        _close(lock)
    return living


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    lock = _lock(folder, wait=True)
    try:
        yield
    finally:
        _close(lock)


def _lock(folder: Path, *, wait: bool = False) -> int | None:
    """A handle that keeps the folder locked; nothing where there are no locks.

    Raises:
        BlockingIOError: Another process has it.
    """
    if fcntl is None:
        return None
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        os.close(handle)
        if isinstance(error, BlockingIOError):
            raise
        return None
    return handle


def _close(lock: int | None) -> None:
    if lock is not None:
        os.close(lock)


def _is_engine(target: Path) -> bool:
    try:
        fields: Any = json.loads((target / "manifest.json").read_text("utf-8"))
        return "format_version" in fields
    except (OSError, ValueError, TypeError):
        return False


def _keep_documents(old: Path, new: Path) -> None:
    """Copies what people put beside the engine: its card, licence and pictures."""
    fields = json.loads((old / "manifest.json").read_text("utf-8"))
    tokenizers = {tokenizer["file"] for tokenizer in ((fields.get("text") or {}).get("tokenizers") or {}).values()}
    for path in old.iterdir():
        ours = path.name in tokenizers or any(path.match(pattern) for pattern in _ENGINE_FILES)
        if path.is_file() and not ours and not (new / path.name).exists():
            shutil.copyfile(path, new / path.name)
