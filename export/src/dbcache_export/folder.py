"""Reads the JSON files of a model folder, configurations as diffusers reads them."""

from __future__ import annotations

__all__ = ["arguments", "configuration", "documents", "model_name", "read_json"]

import inspect
import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dbcache_export.errors import ExportError, ExportWarning, listed

#: JSON has no infinite numbers; schedulers are published with such text in their place.
_INFINITE = {"-inf": -math.inf, "-Infinity": -math.inf, "inf": math.inf, "Infinity": math.inf}

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
    return {name: _INFINITE.get(entry, entry) if isinstance(entry, str) else entry for name, entry in value.items()}


def arguments(folder: Path, model: type) -> dict[str, Any]:
    """The arguments that diffusers gives to `model` for the config.json of a folder, complete.

    A key that is missing, or that was saved as a default (`_use_default_values`), has the default of this version of
    diffusers. A key that the class does not know is ignored with an `ExportWarning`, as diffusers ignores it.
    """
    path = folder / "config.json"
    config = read_json(path)
    kept = set(config) - set(config.get("_use_default_values") or ())
    given = {name: config[name] for name in config if name in kept and not name.startswith("_")}
    parameters = inspect.signature(model.__init__).parameters  # type: ignore[misc]
    defaults = {name: p.default for name, p in parameters.items() if name not in ("self", "kwargs")}
    unknown = [f"{name} = {json.dumps(given[name])}" for name in given if name not in defaults]
    if unknown:
        warnings.warn(f"{path}: {listed(unknown)} ignored, as by diffusers' {model.__name__}", ExportWarning, 2)
    return defaults | {name: value for name, value in given.items() if name in defaults}


def configuration(
    folder: Path, model: type, fixed: Callable[[Mapping[str, Any]], Mapping[str, Sequence[Any]]]
) -> dict[str, Any]:
    """The arguments of a model of diffusers, complete, if all of them are understood.

    Args:
        folder: Holds config.json.
        model: The class.
        fixed: From the arguments to those among them of which only these values are understood.

    Raises:
        ExportError: An argument has another value: a variant of the model.
    """
    config = arguments(folder, model)
    odd = [
        f"{name} = {json.dumps(config[name])}"
        for name, values in fixed(config).items()
        if _plain(config[name]) not in map(_plain, values)
    ]
    if odd:
        raise ExportError(
            f"{folder / 'config.json'}: a variant with other inputs or settings ({', '.join(odd)})",
            f"only plain {model.__name__} models are supported",
        )
    return config


def _plain(value: Any) -> Any:
    """JSON has lists where Python has tuples."""
    return list(value) if isinstance(value, tuple) else value


def documents(folder: Path) -> list[Path]:
    """The model's card and licence, which travel with its weights."""
    return sorted(path for pattern in _DOCUMENTS for path in folder.glob(pattern) if path.is_file())


def model_name(folder: Path) -> str:
    """The folder's name, or the repository's where the folder is a snapshot in a Hugging Face cache."""
    folder = folder.absolute()
    if folder.parent.name == "snapshots":
        return folder.parent.parent.name.rpartition("--")[2]
    return folder.name
