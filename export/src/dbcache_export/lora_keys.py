"""Which layer of a transformer each key of an adapter's file belongs to, and what the other keys are.

Layouts: PEFT and diffusers (`lora_A`, `lora_B`, also `lora.down`, `lora.up`) under the layer's own name, with any of
the usual prefixes; kohya's (`lora_down`, `lora_up`, `alpha`) with dots turned into underscores, both of diffusers'
names and of FLUX.1's original ones, where one layer may stand for several; XLabs' of FLUX.1 (`processor.qkv_lora1`).
"""

from __future__ import annotations

__all__ = ["Layer", "read_layers"]

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from dbcache_export.checkpoint import Checkpoint, Parameter
from dbcache_export.errors import ExportError, listed

_FACTOR = re.compile(
    r"(?P<layer>.+?)\.(?:(?P<down>(?:lora_A(?:\.default)?|lora\.down|lora_down)\.weight)"
    r"|(?P<up>(?:lora_B(?:\.default)?|lora\.up|lora_up)\.weight)|(?P<alpha>alpha))"
)
_XLABS = re.compile(r"(?P<layer>.+\.processor\.(?:qkv|proj)_lora[12]?)\.(?:(?P<down>down\.weight)|(?P<up>up\.weight))")
_PREFIXES = ("base_model.model.transformer.", "base_model.model.", "diffusion_model.", "transformer.", "")
_KOHYA = ("lora_unet_", "lora_transformer_")
_QKV, _ADDED_QKV = ("attn.to_q", "attn.to_k", "attn.to_v"), ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")
#: FLUX.1's own names of layers, after the block's number, and diffusers' for their outputs in order.
_BLOCKS = {
    "double_blocks": (
        "transformer_blocks",
        {
            "img_attn_qkv": _QKV,
            "img_attn_proj": ("attn.to_out.0",),
            "img_mlp_0": ("ff.net.0.proj",),
            "img_mlp_2": ("ff.net.2",),
            "img_mod_lin": ("norm1.linear",),
            "txt_attn_qkv": _ADDED_QKV,
            "txt_attn_proj": ("attn.to_add_out",),
            "txt_mlp_0": ("ff_context.net.0.proj",),
            "txt_mlp_2": ("ff_context.net.2",),
            "txt_mod_lin": ("norm1_context.linear",),
            "processor_qkv_lora1": _QKV,
            "processor_proj_lora1": ("attn.to_out.0",),
            "processor_qkv_lora2": _ADDED_QKV,
            "processor_proj_lora2": ("attn.to_add_out",),
        },
    ),
    "single_blocks": (
        "single_transformer_blocks",
        {
            "linear1": (*_QKV, "proj_mlp"),
            "linear2": ("proj_out",),
            "modulation_lin": ("norm.linear",),
            "processor_qkv_lora": _QKV,
            "processor_proj_lora": ("proj_out",),
        },
    ),
}
_BLOCK = re.compile(r"(double_blocks|single_blocks)_(\d+)_(.+)")
#: FLUX.1's own names outside the blocks, and diffusers'.
_AROUND = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in_in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in_out_layer": "time_text_embed.timestep_embedder.linear_2",
    "vector_in_in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in_out_layer": "time_text_embed.text_embedder.linear_2",
    "guidance_in_in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in_out_layer": "time_text_embed.guidance_embedder.linear_2",
    "final_layer_linear": "proj_out",
    "final_layer_adaLN_modulation_1": "norm_out.linear",
}
#: The one of them whose outputs, shift and scale, diffusers has in the other order.
_SWAPPED = "final_layer_adaLN_modulation_1"
#: Weights that all models with FLUX.1's own names have.
_FLUX = ("time_text_embed.text_embedder.linear_1.weight", "single_transformer_blocks.0.norm.linear.weight")
#: What a key is that stands for no two factors of a layer of the transformer.
_KINDS = [
    (re.compile(pattern), what)
    for pattern, what in (
        (r"(base_model\.model\.)?(text_encoders?(_\d+)?|text_model|te\d*)\.|lora_te\d*_", "layers of a text encoder"),
        (r"(base_model\.model\.)?(lora_)?transformer_2[._]", "layers of a second transformer"),
        (r"unet\.|lora_unet_(down_|up_|mid_|input_|output_|middle_)|lora_controlnet", "layers of a U-Net"),
        (r".*\.(lora_magnitude_vector|dora_scale|magnitude)\b", "DoRA's magnitudes"),
        (r".*\.hada_", "LoHa's factors"),
        (r".*\.lokr_", "LoKr's factors"),
        (r".*\.b?oft_", "OFT's rotations"),
        (r".*\.ia3_", "IA3's factors"),
        (r".*\.vera_", "VeRA's vectors"),
        (r".*\.(lora_E|ranknum)\b", "AdaLoRA's singular values"),
        (r".*\.lora_embedding_", "factors of an embedding"),
        (r".*\.lora_mid\.", "factors in the middle of two (LoCon's lora_mid)"),
        (r".*\.lora_(A|B|up|down)(\.default)?\.bias$", "biases of factors (lora_bias)"),
        (r".*\.lora_(A|B)\.[^.]+\.(weight|bias)$", "an adapter name other than 'default'"),
        (r".*\.(diff|diff_b|set_weight|w_norm|b_norm)$", "whole differences (diff, diff_b), not factors"),
        (r".*\.(query_norm|key_norm)\.scale$", "norms of a control adapter"),
        (r".*\.scalar$", "scales that were trained (LyCORIS' scalar)"),
        (r".*\.base_layer\.", "copies of the transformer's own weights (base_layer)"),
    )
]


@dataclass(frozen=True, eq=False)
class Layer:
    """Two matrices whose product, times a scale, is added to one or more weights.

    Attributes:
        name: In the file, without the prefix of its component.
        weights: Names of parameters; several have their rows of `up` one after the other.
        up: [out, rank] (a convolution: [out, rank, 1 …]), float32.
        down: [rank, in …], float32.
        alpha: The layer's own tensor of that name, one value, where it has one.
        is_kohya: Whether the key has kohya's prefix.
    """

    name: str
    weights: tuple[str, ...]
    up: torch.Tensor
    down: torch.Tensor
    alpha: torch.Tensor | None
    is_kohya: bool

    @property
    def rank(self) -> int:
        """The number of columns of `up`, and rows of `down`."""
        return self.down.shape[0]

    @property
    def targets(self) -> list[str]:
        """The names of the transformer's layers."""
        return [weight.removesuffix(".weight") for weight in self.weights]

    def parts(self, parameters: Mapping[str, Parameter]) -> dict[str, torch.Tensor]:
        """For each weight its rows of `up`."""
        rows = [parameters[name].shape[0] for name in self.weights]
        return dict(zip(self.weights, self.up.split(rows), strict=True))


def read_layers(path: Path, tensors: Mapping[str, torch.Tensor], stored: Checkpoint) -> list[Layer]:
    """The layers in an adapter's file.

    Raises:
        ExportError: A key belongs to no layer, a factor has no other half or does not fit, a weight has two pairs.
    """
    if not tensors:
        raise ExportError(f"{path} holds no layers", "give an adapter's safetensors file")
    parameters = stored.parameters
    flat = {name.removesuffix(".weight").replace(".", "_"): name for name in parameters if name.endswith(".weight")}
    found: dict[str, dict[str, str]] = {}
    strangers: list[str] = []
    for key in tensors:
        match = _FACTOR.fullmatch(key) or _XLABS.fullmatch(key)
        if match is None or match.lastgroup is None or not _weights(match["layer"], parameters, flat)[1]:
            strangers.append(key)
            continue
        parts = found.setdefault(match["layer"], {})
        if match.lastgroup in parts:
            raise _twice(path, match["layer"], [parts[match.lastgroup], key])
        parts[match.lastgroup] = key
    if strangers:
        raise _refused(path, strangers, stored)
    owners: dict[str, str] = {}
    layers: list[Layer] = []
    for name, keys in found.items():
        layer = _layer(path, name, keys, tensors, _weights(name, parameters, flat))
        _fit(path, keys, layer, parameters)
        for weight in layer.weights:
            if weight in owners:
                raise _twice(path, weight, [owners[weight], name])
            owners[weight] = name
        layers.append(layer)
    return layers


def _layer(
    path: Path,
    name: str,
    keys: Mapping[str, str],
    tensors: Mapping[str, torch.Tensor],
    weights: tuple[str, tuple[str, ...], bool],
) -> Layer:
    """The layer of the file's keys for `down`, `up` and `alpha`."""
    for half, other in (("down", "up"), ("up", "down")):
        if half not in keys:
            raise ExportError(
                f"{path}: {listed(keys.values())} lacks the factor {'lora_A' if half == 'down' else 'lora_B'}"
                + ("" if other in keys else " and lora_B"),
                "give the whole file: a layer needs both factors",
            )
    for key in keys.values():
        number = tensors[key]
        if not number.is_floating_point() and not (key == keys.get("alpha") and number.dtype == torch.int64):
            raise ExportError(f"{path}: {key} is stored as {number.dtype}", "give an adapter in floating point")
        if not number.float().isfinite().all():
            raise ExportError(f"{path}: {key} holds NaN or infinity", "give an adapter that was trained to an end")
    alpha = tensors[keys["alpha"]] if "alpha" in keys else None
    if alpha is not None and alpha.numel() != 1:
        raise ExportError(f"{path}: {keys['alpha']} has the shape {list(alpha.shape)}", "an alpha is one number")
    own, names, is_kohya = weights
    up = tensors[keys["up"]].float()
    if own.replace(".", "_") == _SWAPPED and names == (f"{_AROUND[_SWAPPED]}.weight",) and up.shape[0] % 2 == 0:
        up = torch.cat(up.chunk(2)[::-1])
    return Layer(own, names, up, tensors[keys["down"]].float(), alpha, is_kohya)


def _fit(path: Path, keys: Mapping[str, str], layer: Layer, parameters: Mapping[str, Parameter]) -> None:
    """Refuses factors whose product has not the shape of the weights."""
    up, down = layer.up.shape, layer.down.shape
    rows = sum(parameters[name].shape[0] for name in layer.weights)
    wanted = (rows, *parameters[layer.weights[0]].shape[1:])
    if len(up) < 2 or len(down) < 2 or up[1] != down[0] or any(size != 1 for size in up[2:]):
        raise ExportError(
            f"{path}: {keys['down']} {list(down)} and {keys['up']} {list(up)} are no factors [rank, in], [out, rank]",
            "save the adapter again, whole",
        )
    if layer.rank == 0:
        raise ExportError(f"{path}: {keys['down']} has rank 0", "save the adapter again, whole")
    if (up[0], *down[1:]) != wanted:
        raise ExportError(
            f"{path}: {listed(layer.weights)} would change by {[up[0], *down[1:]]}, the transformer has {list(wanted)}",
            "give an adapter of this model",
        )


def _weights(
    layer: str, parameters: Mapping[str, Parameter], flat: Mapping[str, str]
) -> tuple[str, tuple[str, ...], bool]:
    """A layer's name without prefix, the weights that it stands for (none if unknown), and whether it is kohya's."""
    for prefix in _KOHYA:
        if layer.startswith(prefix):
            name = layer.removeprefix(prefix)
            return name, (flat[name],) if name in flat else _flux(name, parameters), True
    for prefix in _PREFIXES:
        name = layer.removeprefix(prefix)
        if not layer.startswith(prefix):
            continue
        if f"{name}.weight" in parameters:
            return name, (f"{name}.weight",), False
        if weights := _flux(name.replace(".", "_"), parameters):
            return name, weights, False
    return layer, (), False


def _flux(name: str, parameters: Mapping[str, Parameter]) -> tuple[str, ...]:
    """The weights of a layer that has FLUX.1's own name, with underscores."""
    if name in _AROUND:
        weights = [f"{_AROUND[name]}.weight", *_FLUX]
        return tuple(weights[:1]) if all(weight in parameters for weight in weights) else ()
    found = _BLOCK.fullmatch(name)
    if found is None:
        return ()
    group, layers = _BLOCKS[found[1]]
    names = tuple(f"{group}.{found[2]}.{layer}.weight" for layer in layers.get(found[3], ()))
    return names if all(weight in parameters for weight in names) else ()


def _twice(path: Path, what: str, keys: list[str]) -> ExportError:
    return ExportError(f"{path}: {what} is there twice, as {listed(keys)}", "leave one of them in the file")


def _refused(path: Path, keys: Iterable[str], stored: Checkpoint) -> ExportError:
    """The error that says of each key what it is."""
    kinds: dict[str, list[str]] = {}
    for key in keys:
        what = next((what for pattern, what in _KINDS if pattern.match(key)), None)
        whole = any(key.removeprefix(prefix) in stored.parameters for prefix in _PREFIXES if key.startswith(prefix))
        if what is None and whole:
            what = "whole tensors of the transformer (modules_to_save, bias)"
        kinds.setdefault(what or f"keys that belong to no layer of {stored.folder}", []).append(key)
    return ExportError(
        f"{path} holds " + ", and ".join(f"{what}: {listed(names)}" for what, names in kinds.items()),
        "give an adapter of this transformer alone, made of lora_A and lora_B, in the layout of diffusers, PEFT, "
        "kohya or XLabs",
    )
