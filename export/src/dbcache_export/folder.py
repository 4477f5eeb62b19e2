"""Reads the JSON files of a model folder."""

from __future__ import annotations

__all__ = ["documents", "model_name", "read_json"]

import json
from pathlib import Path
from typing import Any

from dbcache_export.errors import ExportError

_DOCUMENTS = ("README*", "LICENSE*", "LICENCE*", "NOTICE*")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ExportError: The file is missing or holds something else.
    """
    try:
        value = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ExportError(f"cannot read {path} ({error.strerror})", "complete the model folder") from error
    except ValueError as error:
        raise ExportError(f"{path} is not JSON ({error})", "repair the model folder") from error
    if not isinstance(value, dict):
        raise ExportError(f"{path} holds no JSON object", "repair the model folder")
    return value


def documents(folder: Path) -> list[Path]:
    """The model's card and licence, which travel with its weights."""
    return sorted(path for pattern in _DOCUMENTS for path in folder.glob(pattern) if path.is_file())


def model_name(folder: Path) -> str:
    """The folder's name, or the repository's where the folder is a snapshot in a Hugging Face cache."""
    folder = folder.absolute()
    if folder.parent.name == "snapshots":
        return folder.parent.parent.name.rpartition("--")[2]
    return folder.name
