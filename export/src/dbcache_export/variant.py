"""A model folder in which each component has its weights under the names that diffusers and transformers look for."""

from __future__ import annotations

__all__ = ["plain"]

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from dbcache_export.checkpoint import files
from dbcache_export.choice import Choice, choose, plain_name
from dbcache_export.errors import ExportError, listed
from dbcache_export.folder import model_name
from dbcache_export.whole import scratch

#: The components of a pipeline that are exported.
_COMPONENT = re.compile(r"transformer(_\d)?|text_encoder(_\d)?|vae")


@contextmanager
def plain(model: Path, variant: str | None, beside: Path, progress: Callable[[str], None]) -> Iterator[Path]:
    """`model`, or where a component's files have other names, links to all of it that vanish when the block ends.

    As in diffusers, a component that has no files of `variant` is taken without.

    Raises:
        ExportError: No component has that variant, or a component's checkpoint cannot be told.
    """
    choices = {folder: choose(folder, variant) for folder in _components(model)}
    if variant and all(choice.variant != variant for choice in choices.values()):
        names = {name for choice in choices.values() for name in (choice.name, *choice.others)}
        raise ExportError(
            f"{model} has no files of the variant {variant}, only {listed(names)}",
            "leave out --variant, or give another",
        )
    for folder, choice in choices.items():
        if choice.others or choice.variant:
            left = f", not {listed(choice.others)}" if choice.others else ""
            progress(f"taking {folder.name}/{choice.name}{left}")
    unusual = {folder: choice for folder, choice in choices.items() if choice.name not in _plain_names(folder)}
    if not unusual:
        yield model
        return
    with scratch(beside, "variant") as space:
        copy = space / model_name(model)
        copy.mkdir()
        for path in model.iterdir():
            if path not in unusual and model not in unusual:
                (copy / path.name).symlink_to(path.resolve())
        for part, choice in unusual.items():
            _rename(part, choice, copy / part.relative_to(model))
        yield copy


def _components(model: Path) -> list[Path]:
    """The folders of a pipeline with weights, or a transformer's folder."""
    is_pipeline = (model / "transformer").is_dir()
    folders = [path for path in model.iterdir() if _COMPONENT.fullmatch(path.name)] if is_pipeline else [model]
    return sorted(path for path in folders if (path / "config.json").is_file() and any(path.glob("*.safetensors*")))


def _plain_names(folder: Path) -> set[str]:
    return {plain_name(folder, is_index=False), plain_name(folder, is_index=True)}


def _rename(folder: Path, choice: Choice, target: Path) -> None:
    """Links the files of `folder`, of its checkpoints only the chosen one, into `target`."""
    target.mkdir(exist_ok=True)
    is_index = choice.name.endswith(".json")
    (target / plain_name(folder, is_index=is_index)).symlink_to((folder / choice.name).resolve())
    shards = files(folder, choice.name)[0] if is_index else []
    for path in folder.iterdir():
        if path.name in shards or ".safetensors" not in path.name:
            (target / path.name).symlink_to(path.resolve())
