"""The settings of an adapter, wherever PEFT, diffusers and kohya write them beside the tensors.

The places are `adapter_config.json` beside the file, and the file's header, there as PEFT's settings in JSON or as
single entries, also with a component's prefix or kohya's `ss_`. What cannot be read, or asks for more than
B A · alpha / rank, is refused by its name.
"""

from __future__ import annotations

__all__ = ["CONFIG", "TARGETS", "Place", "disagreement", "read_places"]

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dbcache_export.errors import ExportError, listed

#: The file in which PEFT keeps the settings of `adapter_model.safetensors` in the same folder.
CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
#: Entries of the header that hold PEFT's settings in JSON.
_DOCUMENTS = ("lora_adapter_metadata", "adapter_config", "peft_config", "lora_config")
_COMPONENTS = (
    "base_model.model.transformer.",
    "base_model.model.",
    "diffusion_model.",
    "transformer.",
    "unet.",
    "lora_transformer_",
    "lora_transformer.",
    "lora_unet_",
    "lora_unet.",
)
_OTHER_COMPONENT = re.compile(r"(base_model\.model\.)?(text_encoders?(_\d+)?|te\d*|transformer_2|vae)\.|lora_te\d*[_.]")
#: Other names of two of PEFT's settings.
_NAMES = dict.fromkeys(("alpha", "network_alpha", "ss_network_alpha"), "lora_alpha") | dict.fromkeys(
    ("rank", "dim", "lora_r", "lora_rank", "lora_dim", "network_rank", "network_dim", "ss_network_dim"), "r"
)
_TOO_LARGE = 1e38  # for float32
_DYNAMIC = "Dynamic"  # for kohya's tools a rank or alpha that differs from layer to layer
#: What the settings that are read must be.
_TYPES = {
    "lora_alpha": "a number",
    "r": "a rank of 1 or more",
    "use_rslora": "true or false",
    "alpha_pattern": "numbers by layer",
    "rank_pattern": "ranks by layer",
}
_PEFT_ONLY = ("use_rslora", "alpha_pattern", "rank_pattern")
#: Settings that leave layers out.
TARGETS = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")
#: Settings that ask for more than two factors, unless they have one of these values.
_ONLY: Mapping[str, Sequence[Any]] = {
    "peft_type": ("LORA", None),
    "bias": ("none", None),
    # The other initialisations change the transformer's weights too, as PEFT does again when it loads the adapter.
    "init_lora_weights": (True, False, None, "gaussian", "eva", "orthogonal", "mica"),
} | dict.fromkeys(
    (
        "use_dora",
        "fan_in_fan_out",
        "lora_bias",
        "modules_to_save",
        "target_parameters",
        "trainable_token_indices",
        "layer_replication",
        "use_qalora",
        "use_bdlora",
        "alora_invocation_tokens",
        "arrow_config",
        "kasa_config",
        "monteclora_config",
        "velora_config",
    ),
    (False, None, [], {}),
)
#: Settings that do not say what is added.
_NEUTRAL = (
    "task_type",
    "auto_mapping",
    "base_model_name_or_path",
    "parent_library",
    "peft_version",
    "revision",
    "inference_mode",
    "runtime_config",
    "lora_dropout",
    "merge_weights",
    "megatron_config",
    "megatron_core",
    "loftq_config",
    "eva_config",
    "corda_config",
    "lora_ga_config",
    "qalora_group_size",
    "ensure_weight_tying",
)


@dataclass(frozen=True)
class Place:
    """Where settings stand.

    Attributes:
        source: For messages.
        says: By PEFT's names; `named` has the alphas of single layers.
        is_peft: Whether what it leaves out has PEFT's default.
        is_kohya: Whether it is kohya's entries.
        is_dynamic: Whether kohya's tools say that each layer has an alpha of its own.
        is_recorded: Whether kohya's trainer wrote the header.
    """

    source: str
    says: Mapping[str, Any]
    is_peft: bool = False
    is_kohya: bool = False
    is_dynamic: bool = False
    is_recorded: bool = False


def read_places(path: Path, metadata: Mapping[str, str]) -> list[Place]:
    """The places that say something of the adapter at `path`, whose header holds `metadata`.

    Raises:
        ExportError: A place cannot be read, contradicts itself, or asks for more than two factors.
    """
    places = []
    config = path.with_name(CONFIG)
    if config.is_file():
        if path.name != _WEIGHTS and path.with_name(_WEIGHTS).is_file():
            raise ExportError(
                f"{config} lies beside {path.name} and {_WEIGHTS}, and describes one of them",
                f"move {path.name} into a folder of its own",
            )
        try:
            settings = config.read_bytes()
        except OSError as error:
            raise ExportError(f"cannot read {config} ({error.strerror})", "make it readable") from error
        places.append(_document(path, f"{CONFIG} beside it", settings))
    single: list[tuple[str, Any]] = []
    kohya: list[tuple[str, Any]] = []
    for key, text in sorted(metadata.items()):  # safetensors keeps no order
        name = _without_component(key)
        if name is None:
            continue
        if name in _DOCUMENTS:
            places.append(_document(path, f"{key} in its header", text))
        elif name == "network_alphas":
            places.append(Place(key, _collected(path, key, _parsed(path, f"{key} in its header", text).items())))
        elif name in ("ss_network_alpha", "ss_network_dim"):
            kohya += [(name, text)] if text != "None" else []
        else:
            single.append((key, text))
    says = _collected(path, "its header", ((key, _value(text)) for key, text in single), strict=False)
    places.append(Place("its header", says, is_peft=not says.keys().isdisjoint(_PEFT_ONLY)))
    entries = ((key, _value(text)) for key, text in kohya if text != _DYNAMIC)
    places.append(
        Place(
            "kohya's entries in its header",
            _collected(path, "its header", entries),
            is_kohya=True,
            is_dynamic=("ss_network_alpha", _DYNAMIC) in kohya,
            is_recorded="ss_network_module" in metadata or "sshs_model_hash" in metadata,
        )
    )
    return places


def _document(path: Path, source: str, text: str | bytes) -> Place:
    settings = _parsed(path, source, text)
    is_peft = any(_without_component(key) is not None for key in settings)
    return Place(source, _collected(path, source, settings.items()), is_peft=is_peft)


def _parsed(path: Path, source: str, text: str | bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise ExportError(f"{path}: {source} has {listed(twice)} twice", "leave one of them")
        return dict(pairs)

    try:
        settings = json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise ExportError(f"{path}: {source} is no JSON ({error})", "write the settings again") from error
    if not isinstance(settings, dict):
        raise ExportError(f"{path}: {source} is no JSON object but {type(settings).__name__}", "write it again")
    return settings


def _value(text: str) -> Any:
    """An entry of a header, where everything is text, perhaps Python's."""
    python = {"True": True, "False": False, "None": None}
    try:
        return python[text] if text in python else json.loads(text)
    except (ValueError, RecursionError):
        return text


def _without_component(key: str) -> str | None:
    """A setting's name without the prefix of the transformer; None if another component has it."""
    if _OTHER_COMPONENT.match(key):
        return None
    return key.removeprefix(next((prefix for prefix in _COMPONENTS if key.startswith(prefix)), ""))


def _collected(path: Path, source: str, settings: Iterable[tuple[str, Any]], *, strict: bool = True) -> dict[str, Any]:
    """The settings by PEFT's names, checked; `strict` also refuses those that are unknown."""
    says: dict[str, Any] = {}
    for key, value in settings:
        short = _without_component(key)
        if short is None:
            continue
        name = _NAMES.get(short, short)
        layer, _, last = short.rpartition(".")
        if layer and _NAMES.get(last, last) == "lora_alpha":
            value = _checked(path, source, key, "lora_alpha", value)
            named = says.setdefault("named", {})
            if named.setdefault(layer, value) != value:
                raise disagreement(path, key, {source: value, "another entry there": named[layer]})
            continue
        if name in _TYPES:
            value = _checked(path, source, key, name, value)
        elif name in _ONLY:
            if value not in _ONLY[name]:
                raise ExportError(
                    f"{path}: {key} {value!r} in {source} asks for more than lora_B times lora_A",
                    "merge this adapter with PEFT, and export the merged transformer",
                )
        elif not strict or name not in TARGETS:  # single entries of a header may be anybody's, and of any form
            if (strict and value and name not in _NEUTRAL) or short.endswith("alpha"):
                raise ExportError(
                    f"{path}: {key} in {source} is a setting that is not known here",
                    "remove it if it does not change what is added",
                )
            continue
        if says.setdefault(name, value) != value:
            raise disagreement(path, name, {f"{key} of {source}": value, "another entry there": says[name]})
    return says


def _checked(path: Path, source: str, key: str, name: str, value: Any) -> Any:
    """A setting of the right type; a null stands for what PEFT leaves out, where it may."""

    def is_number(one: Any) -> bool:
        return isinstance(one, int | float) and not isinstance(one, bool) and abs(one) < _TOO_LARGE

    if name.endswith("_pattern"):
        value = {} if value is None else value
        right = isinstance(value, dict) and all(is_number(one) for one in value.values())
    elif name == "use_rslora":
        value = False if value is None else value
        right = isinstance(value, bool)
    else:
        right = is_number(value) and (name == "lora_alpha" or value >= 1)
    if not right:
        raise ExportError(f"{path}: {key} in {source} is {value!r}, not {_TYPES[name]}", "correct the settings")
    return value


def disagreement(path: Path, what: str, values: Mapping[str, Any]) -> ExportError:
    """The error for a setting that has several values, by their places."""
    said = ", ".join(f"{value} in {source}" for source, value in values.items())
    return ExportError(f"{path}: {what} is {said}", "correct what is wrong: the places must agree")
