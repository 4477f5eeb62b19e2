"""How strongly each layer of an adapter is added: alpha / rank, or alpha over the root of the rank (rslora).

Alpha is the layer's own tensor, or what the settings say of the layer. All places that say something must agree with
each other and with the tensors.
"""

from __future__ import annotations

__all__ = ["Strength", "strengths"]

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dbcache_export.errors import ExportError, listed
from dbcache_export.lora_keys import Layer
from dbcache_export.lora_settings import TARGETS, Place, disagreement

_PEFT_ALPHA = 8.0  # where its settings name none


@dataclass(frozen=True)
class Strength:
    """What a layer's product is multiplied by, and where its alpha stands."""

    scale: float
    source: str


def strengths(path: Path, layers: Sequence[Layer], places: Sequence[Place]) -> list[Strength]:
    """The scale of each layer.

    Raises:
        ExportError: Two places disagree, or one with the tensors.
    """
    for place in places:
        unknown = set(place.says.get("named", ())) - {name for layer in layers for name in (layer.name, *layer.targets)}
        if unknown:
            raise ExportError(
                f"{path}: {place.source} has an alpha for {listed(unknown)}, the file has no such layer",
                "correct the settings",
            )
        dim = place.says.get("r") if place.is_kohya else None
        if dim is not None and all(layer.rank != dim for layer in layers):
            raise ExportError(
                f"{path}: {place.source} says rank {dim}, its layers have {layers[0].rank}", "correct the settings"
            )
        for layer in layers:
            _check_targeted(path, layer, place)
    return [_strength(path, layer, places) for layer in layers]


def _strength(path: Path, layer: Layer, places: Sequence[Place]) -> Strength:
    for place in places:
        rank = None if place.is_kohya else _of_layer(path, layer, place, "rank_pattern", place.says.get("r"))
        if rank is not None and rank != layer.rank:
            raise ExportError(
                f"{path}: {place.source} says rank {rank:g} of {layer.name}, its factors have {layer.rank}",
                "give the settings that belong to the file",
            )
    stated = [(place, _alpha(path, layer, place)) for place in places]
    alphas = {place.source: alpha for place, alpha in stated if alpha is not None}
    roots = {place.source: bool(place.says["use_rslora"]) for place in places if "use_rslora" in place.says}
    if len(set(roots.values())) > 1:
        raise disagreement(path, "use_rslora", roots)
    root = any(roots.values())
    if layer.alpha is not None:
        own = float(layer.alpha)
        wrong = {source: alpha for source, alpha in alphas.items() if not _is_same(alpha, layer.alpha)}
        if wrong:
            raise disagreement(path, f"alpha of {layer.name}", {"its alpha tensor": own} | wrong)
        if root:
            raise ExportError(
                f"{path}: {layer.name} has an alpha tensor, which is divided by the rank, and {listed(roots)} asks for "
                "its root (use_rslora)",
                "leave one of them",
            )
        return Strength(own / layer.rank, "its alpha tensors")
    if len(set(alphas.values())) > 1:
        raise disagreement(path, f"alpha of {layer.name}", alphas)
    if alphas:
        alpha, source = next(iter(alphas.values())), listed(alphas)
    elif any(place.is_dynamic for place in places):
        raise ExportError(
            f"{path}: kohya's header says that each layer has an alpha of its own, {layer.name} has none",
            "give the file as kohya's tools wrote it",
        )
    elif defaults := [place.source for place in places if place.is_peft]:
        alpha, source = _PEFT_ALPHA, f"PEFT's default, as {listed(defaults)} names none"
    else:
        return Strength(1.0, "no alpha")
    _refuse_folded(path, layer, places, alphas, alpha)
    return Strength(alpha / (math.sqrt(layer.rank) if root else layer.rank), source)


def _is_same(stated: float, own: torch.Tensor) -> bool:
    """Whether a tensor holds a number, rounded to its type."""
    return stated == float(own) or (
        own.is_floating_point() and float(torch.tensor(stated, dtype=own.dtype)) == float(own)
    )


def _refuse_folded(
    path: Path, layer: Layer, places: Sequence[Place], alphas: Mapping[str, float], alpha: float
) -> None:
    """Kohya's converter to diffusers' names multiplies the factors by alpha / rank and keeps the header."""
    trained = [place for place in places if place.is_kohya and place.is_recorded]
    if trained and set(alphas) == {trained[0].source} and not layer.is_kohya and alpha != layer.rank:
        raise ExportError(
            f"{path}: its header says alpha {alpha:g} of rank {layer.rank}, but its names are not kohya's and it has "
            "no alpha tensors, so a converter may have multiplied the factors already",
            "give the file before its conversion, or write the wanted lora_alpha into adapter_config.json and drop "
            "ss_network_alpha from the header",
        )


def _alpha(path: Path, layer: Layer, place: Place) -> float | None:
    """What a place says of the alpha of a layer."""
    named = {place.says.get("named", {}).get(name) for name in (layer.name, *layer.targets)} - {None}
    if len(named) > 1:
        raise ExportError(f"{path}: {place.source} has several alphas for {layer.name}", "correct the settings")
    alpha = next(iter(named), None)
    return alpha if alpha is not None else _of_layer(path, layer, place, "alpha_pattern", place.says.get("lora_alpha"))


def _of_layer(path: Path, layer: Layer, place: Place, setting: str, default: float | None) -> float | None:
    """The value of the first pattern that a layer matches as PEFT matches it: the end of its name, or all of it."""

    def first(name: str) -> float | None:
        return next((value for key, value in patterns if re.match(rf"(.*\.)?({key})$", name)), None)

    patterns = list(place.says.get(setting, {}).items())
    try:
        own = first(layer.name)
        values = {first(name) for name in layer.targets} if own is None else {own}
    except re.error as error:
        raise ExportError(
            f"{path}: {setting} of {place.source} holds no regular expressions ({error})", "correct the settings"
        ) from error
    values = {default if value is None else value for value in values}
    if len(values) > 1:
        raise ExportError(
            f"{path}: {setting} of {place.source} tells {listed(layer.targets)} apart, the file has joined them",
            "give the adapter in diffusers' names",
        )
    return values.pop()


def _check_targeted(path: Path, layer: Layer, place: Place) -> None:
    """Refuses a layer that PEFT, by its settings, would leave alone."""
    try:
        if any(_is_targeted(place.says, name) for name in (layer.name, *layer.targets)):
            return
    except (re.error, TypeError) as error:
        raise ExportError(
            f"{path}: {listed(TARGETS)} of {place.source} cannot be read ({error})", "correct the settings"
        ) from error
    used = [name for name in TARGETS if place.says.get(name)]
    raise ExportError(
        f"{path} holds factors of {layer.name}, which {listed(used)} of {place.source} leave out",
        "give the settings that belong to the file",
    )


def _is_targeted(says: Mapping[str, Any], name: str) -> bool:
    def among(wanted: str | list[str]) -> bool:
        if isinstance(wanted, str):
            return re.fullmatch(wanted, name) is not None
        return any(name == one or name.endswith(f".{one}") for one in wanted)

    excluded, targets = says.get("exclude_modules"), says.get("target_modules")
    if excluded and among(excluded):
        return False
    if not targets or targets == "all-linear":
        return True
    indices, patterns = says.get("layers_to_transform"), says.get("layers_pattern")
    if not among(targets) or isinstance(targets, str) or indices is None or indices == []:
        return among(targets)
    if not patterns:
        starts = [r".*?\.[^.]*"]
    else:
        starts = [rf"(?:^|.*?\.){one}" for one in ([patterns] if isinstance(patterns, str) else patterns)]
    found = next((match for start in starts if (match := re.match(rf"{start}\.(\d+)\.", name))), None)
    return found is not None and int(found[1]) in ([indices] if isinstance(indices, int) else indices)
