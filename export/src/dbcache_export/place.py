"""Puts weight files beside the graphs, or says in which folder they lie."""

from __future__ import annotations

__all__ = ["place"]

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dbcache_export.checkpoint import Checkpoint, Shard
from dbcache_export.errors import ExportError


def place(
    checkpoints: Iterable[Checkpoint], engine: Path, *, pack: bool, own: Path | None = None
) -> list[tuple[Shard, dict[str, Any]]]:
    """Each shard with its manifest fields `name`, `folder` and `file`.

    The runtime follows no link out of an engine's folder, so links (a Hugging Face cache consists of them) were
    resolved when the headers were read, and what is packed is a hard link or, across file systems, a copy.
    What lies in `own`, a folder that will vanish, is always packed, and so is the rest of its component.

    Raises:
        ExportError: The shards of a component lie in different folders, or a copy fails.
    """
    placed: list[tuple[Shard, dict[str, Any]]] = []
    for checkpoint in checkpoints:
        packed = pack or (own is not None and any(shard.path.is_relative_to(own) for shard in checkpoint.shards))
        folders = {shard.path.parent for shard in checkpoint.shards}
        if len(folders) > 1 and not packed:
            raise ExportError(f"the shards of {checkpoint.folder} lie in {len(folders)} folders", "pass --pack")
        for shard in checkpoint.shards:
            if packed:
                _link_or_copy(shard.path, engine / shard.name)
                placed.append((shard, {"name": shard.name, "folder": None, "file": shard.name}))
            else:
                where = {"folder": str(shard.path.parent), "file": shard.path.name}
                placed.append((shard, {"name": shard.name} | where))
    return placed


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        try:
            shutil.copyfile(source, target)
        except OSError as error:
            raise ExportError(
                f"cannot copy {source} ({error.strerror})", "make room, or export without --pack"
            ) from error
