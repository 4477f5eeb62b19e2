"""Which layer of a transformer each key of an adapter's file belongs to.

Layouts: PEFT and diffusers (`lora_A`, `lora_B`, also `lora.down`, `lora.up`) under the layer's own name, with any of
the usual prefixes; kohya's (`lora_down`, `lora_up`, `alpha`) with dots turned into underscores, both of diffusers'
names and of FLUX.1's original ones, where one layer stands for several.
"""

from __future__ import annotations

__all__ = ["Pair", "read_pairs"]

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from dbcache_export.checkpoint import Parameter

_ENDS = {
    "lora_A.weight": "down",
    "lora_B.weight": "up",
    "lora_A.default.weight": "down",
    "lora_B.default.weight": "up",
    "lora.down.weight": "down",
    "lora.up.weight": "up",
    "lora_down.weight": "down",
    "lora_up.weight": "up",
    "alpha": "alpha",
}
_PREFIXES = ("base_model.model.transformer.", "base_model.model.", "diffusion_model.", "transformer.", "")
_KOHYA = ("lora_unet_", "lora_transformer_")
#: FLUX.1's own names of layers, after the block's number, and diffusers' for their outputs in order.
_FLUX = {
    "double_blocks": (
        "transformer_blocks",
        {
            "img_attn_qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
            "img_attn_proj": ("attn.to_out.0",),
            "img_mlp_0": ("ff.net.0.proj",),
            "img_mlp_2": ("ff.net.2",),
            "img_mod_lin": ("norm1.linear",),
            "txt_attn_qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
            "txt_attn_proj": ("attn.to_add_out",),
            "txt_mlp_0": ("ff_context.net.0.proj",),
            "txt_mlp_2": ("ff_context.net.2",),
            "txt_mod_lin": ("norm1_context.linear",),
        },
    ),
    "single_blocks": (
        "single_transformer_blocks",
        {
            "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
            "linear2": ("proj_out",),
            "modulation_lin": ("norm.linear",),
        },
    ),
}
_BLOCK = re.compile(r"(double_blocks|single_blocks)[._](\d+)[._](.+)")


@dataclass(frozen=True)
class Pair:
    """Two matrices whose product, times `scale`, is added to a weight: up [out, rank], down [rank, in], float32."""

    up: torch.Tensor
    down: torch.Tensor
    scale: float


def read_pairs(
    tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str], parameters: Mapping[str, Parameter]
) -> tuple[list[tuple[str, Pair]], list[str]]:
    """The pairs by the weight that each changes, and the keys that fit nothing."""
    flat = {name.removesuffix(".weight").replace(".", "_"): name for name in parameters if name.endswith(".weight")}
    parts: dict[str, dict[str, torch.Tensor]] = {}
    unknown: list[str] = []
    for key, tensor in tensors.items():
        end = next((end for end in _ENDS if key.endswith(f".{end}")), None)
        if end is None:
            unknown.append(key)
        else:
            parts.setdefault(key.removesuffix(f".{end}"), {})[_ENDS[end]] = tensor
    pairs: list[tuple[str, Pair]] = []
    for layer, found in parts.items():
        names = _weights(layer, parameters, flat)
        matrices = [found.get(end) for end in ("down", "up")]
        if not names or any(matrix is None or matrix.ndim != 2 for matrix in matrices):
            unknown += [key for key in tensors if key.startswith(f"{layer}.")]
            continue
        pairs += _split(names, found, _alpha(layer, metadata), parameters)
    return pairs, unknown


def _weights(layer: str, parameters: Mapping[str, Parameter], flat: Mapping[str, str]) -> list[str]:
    """The weights that a layer's name stands for; several where the original has joined them, none if unknown."""
    for prefix in _KOHYA:
        if layer.startswith(prefix):
            name = layer.removeprefix(prefix)
            return [flat[name]] if name in flat else _flux(name, parameters)
    for prefix in _PREFIXES:
        name = layer.removeprefix(prefix)
        if layer.startswith(prefix) and f"{name}.weight" in parameters:
            return [f"{name}.weight"]
    return _flux(layer.removeprefix("diffusion_model."), parameters)


def _flux(name: str, parameters: Mapping[str, Parameter]) -> list[str]:
    found = _BLOCK.fullmatch(name)
    if found is None:
        return []
    group, layers = _FLUX[found[1]]
    weights = [f"{group}.{found[2]}.{layer}.weight" for layer in layers.get(found[3].replace(".", "_"), ())]
    return weights if all(weight in parameters for weight in weights) else []


def _split(
    names: Iterable[str], found: Mapping[str, torch.Tensor], alpha: float | None, parameters: Mapping[str, Parameter]
) -> list[tuple[str, Pair]]:
    """A pair for each weight; of a joined layer each gets its own rows of `up`."""
    down, up = found["down"].float(), found["up"].float()
    own = float(found["alpha"]) if "alpha" in found else alpha
    scale = 1.0 if own is None else own / down.shape[0]
    wanted = list(names)
    if len(wanted) == 1:
        return [(wanted[0], Pair(up, down, scale))]
    rows = [parameters[name].shape[0] for name in wanted]
    if sum(rows) != up.shape[0]:
        return [(wanted[0], Pair(up, down, scale))]  # does not fit, which the caller says
    return [(name, Pair(part, down, scale)) for name, part in zip(wanted, up.split(rows), strict=True)]


def _alpha(layer: str, metadata: Mapping[str, str]) -> float | None:
    """What PEFT's settings in the file say of a layer, where diffusers has saved them."""
    try:
        settings: Mapping[str, Any] = json.loads(metadata.get("lora_adapter_metadata", "{}"))
    except ValueError:
        return None
    own = {key.removeprefix("transformer."): value for key, value in settings.items()}
    patterns = own.get("alpha_pattern") or {}
    matching = [value for pattern, value in patterns.items() if layer == pattern or layer.endswith(f".{pattern}")]
    alpha = matching[0] if matching else own.get("lora_alpha")
    if alpha is not None and own.get("use_rslora"):
        return float(alpha) * math.sqrt(float(own.get("r", 1)))
    return None if alpha is None else float(alpha)
