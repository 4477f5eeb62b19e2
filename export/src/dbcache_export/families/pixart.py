"""PixArt-α and PixArt-Σ: blocks over the picture, which look at the text but do not change it."""

from __future__ import annotations

__all__ = ["plan", "transformer"]

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import PixArtTransformer2DModel
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from dbcache_export import checkpoint, spec
from dbcache_export.encoders import t5, tokenizer
from dbcache_export.errors import ExportError
from dbcache_export.families.literal import literal_timesteps
from dbcache_export.families.parts import (
    Texts,
    Transformer,
    configuration,
    padded,
    picture_plan,
    templates,
    under,
    whole,
)
from dbcache_export.families.patches import embed_patches, pack, projected, sinusoidal_positions, to_packed, unpack
from dbcache_export.families.rotary import mix
from dbcache_export.families.watched import Watched
from dbcache_export.folder import read_json
from dbcache_export.guidance import fused
from dbcache_export.pipeline_calls import CALLS
from dbcache_export.prompts import CAPTION
from dbcache_export.scheduler import prediction, scheduler
from dbcache_export.spec import DTYPES, Graph, Options, Plan
from dbcache_export.template import fake_module

#: Tokens of PixArt-Σ, and of PixArt-α.
_MAX_TEXT, _ALPHA_TEXT = 300, 120
#: Added to the scores of padding; finite, as in diffusers.
_MASKED = -10000.0
_CONTEXT = ("encoder_hidden_states", "encoder_attention_bias", "modulation")


def plan(folder: Path, options: Options, fake: FakeTensorMode) -> Plan:
    """The plan of a PixArt pipeline.

    Raises:
        ExportError: There is no scheduler.
    """
    inner = folder / "transformer"
    if not (folder / "scheduler").is_dir():
        raise ExportError(f"{folder} has no scheduler", "give the folder of the whole pipeline")
    parts = transformer(inner, options, fake)
    return picture_plan(
        folder,
        options,
        fake,
        parts,
        texts=_text(folder, parts.tensors, options, fake),
        scheduler=scheduler(folder, CALLS["pixart"]),
        guidance=fused(4.5, "uncond"),
        steps=20,
        prediction=prediction(folder),
    )


def _text(folder: Path, tensors: Mapping[str, spec.Tensor], options: Options, fake: FakeTensorMode) -> Texts | None:
    """T5, which does not look at padding; prompts are cleaned as captions from the web."""
    parts = whole(folder, ("text_encoder", "tokenizer"))
    if parts is None:
        return None
    index = folder / "model_index.json"
    alpha = index.is_file() and read_json(index).get("_class_name") == "PixArtAlphaPipeline"
    outputs = ("prompt_embeds", "prompt_attention_mask")
    tokenizers = {"t5": tokenizer(parts[1], _ALPHA_TEXT if alpha else _MAX_TEXT)}
    tokens = tokenizers["t5"].length
    encoder = t5(parts[0], "text_000.onnx", tokens, tensors["prompt_embeds"], options, fake, outputs)
    graph = (encoder.graph, {"input_ids": ("t5", "ids"), "attention_mask": ("t5", "mask")})
    return Texts(spec.Text(tokenizers, [graph], unconditional="", clean=CAPTION), [encoder])


def transformer(folder: Path, options: Options, fake: FakeTensorMode) -> Transformer:
    """Cuts the transformer in `folder` into embed, blocks and final.

    Raises:
        ExportError: It is a variant with other inputs.
    """
    fixed = {
        "norm_type": ("ada_norm_single",),
        "norm_elementwise_affine": (False,),
        "attention_type": ("default",),
        "upcast_attention": (False,),
        "dropout": (0.0,),
    }

    def understood(config: Mapping[str, Any]) -> Mapping[str, Sequence[Any]]:
        return fixed | {"out_channels": (None, config["in_channels"], 2 * config["in_channels"])}

    config = configuration(folder, PixArtTransformer2DModel, understood)
    if not config["caption_channels"]:
        raise ExportError(
            f"{folder / 'config.json'} has no caption_channels", "only models that project their text fit"
        )
    dtype, layers = DTYPES[options.compute][0], config["num_layers"]
    width = config["num_attention_heads"] * config["attention_head_dim"]
    features = config["in_channels"] * config["patch_size"] ** 2
    tensors = {
        "latents": spec.Tensor("f32", ("batch", "image", features)),
        "timestep": spec.Tensor("f32", ("batch",)),
        "prompt_embeds": spec.Tensor("f32", ("batch", "text", config["caption_channels"])),
        "prompt_attention_mask": spec.Tensor("f32", ("batch", "text")),
        "img_ids": spec.Tensor("f32", ("image", 3)),
        "picture_size": spec.Tensor("f32", ("batch", 2)),
        "hidden_states": spec.Tensor(options.compute, ("batch", "image", width)),
        "encoder_hidden_states": spec.Tensor(options.compute, ("batch", "text", width)),
        "encoder_attention_bias": spec.Tensor(options.compute, ("batch", 1, 1, "text")),
        "modulation": spec.Tensor(options.compute, ("batch", 6 * width)),
        "embedded_timestep": spec.Tensor(options.compute, ("batch", width)),
        "prediction": spec.Tensor("f32", ("batch", "image", features)),
    }
    inputs = {
        "latents": {"per": "step", "from": "latents"},
        "timestep": {"per": "step", "from": "timestep"},
        "prompt_embeds": {"per": "request", "from": "text"},
        "prompt_attention_mask": {"per": "request", "from": "text"},
        "img_ids": {"per": "request", "from": "grid"},
    }
    small = config | {"num_layers": 1}
    model: Any = fake_module(fake, options.compute, lambda: PixArtTransformer2DModel(**small))
    if model.use_additional_conditions:
        inputs["picture_size"] = {"per": "request", "from": "size"}
    else:
        del tensors["picture_size"]
    template = templates(tensors)
    streams = ("hidden_states",)
    block = template("block", _Block(model.transformer_blocks[0]), (*streams, *_CONTEXT), streams)
    return Transformer(
        description=f"PixArt transformer: {layers} blocks, width {width}",
        checkpoint=checkpoint.read(folder, "transformer"),
        tensors=tensors,
        inputs=inputs,
        streams=streams,
        embed=Graph(
            "embed.onnx",
            template("embed", _Embed(model, dtype), tuple(inputs), (*streams, *_CONTEXT, "embedded_timestep")),
            "transformer",
            projected,
        ),
        blocks=tuple(
            spec.Block(
                "block",
                Graph(f"block_{i:03}.onnx", block, "transformer", under(f"transformer_blocks.{i}.")),
                group="transformer_blocks",
            )
            for i in range(layers)
        ),
        final=Graph(
            "final.onnx",
            template("final", _Final(model), ("hidden_states", "embedded_timestep"), ("prediction",)),
            "transformer",
        ),
        reference=lambda: _reference(folder),
        shifts_latents=False,
        channels=config["in_channels"],
        patch=config["patch_size"],
        cells=config["sample_size"],
        text=(1, _MAX_TEXT),
        examples={"prompt_attention_mask": padded},
    )


class _Embed(nn.Module):
    """From the inputs of a request and a step to the picture's stream and what every block needs."""

    def __init__(self, model: Any, dtype: torch.dtype) -> None:
        super().__init__()
        self.proj = model.pos_embed.proj
        self.adaln_single = model.adaln_single
        self.caption_projection = model.caption_projection
        self.width: int = model.inner_dim
        self.base: int = model.pos_embed.base_size
        self.scale: float = model.pos_embed.interpolation_scale
        self.dtype = dtype
        literal_timesteps(self)

    def forward(
        self,
        latents: Tensor,
        timestep: Tensor,
        prompt_embeds: Tensor,
        prompt_attention_mask: Tensor,
        img_ids: Tensor,
        picture_size: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """PixArt-α's large models are told the picture's size and its height divided by its width."""
        patches = embed_patches(self.proj, latents.to(self.dtype))
        positions = sinusoidal_positions(img_ids, self.width, self.base, self.scale)
        size: dict[str, Any] = {"resolution": None, "aspect_ratio": None}
        if picture_size is not None:
            size = {"resolution": picture_size, "aspect_ratio": picture_size[:, :1] / picture_size[:, 1:]}
        modulation, embedded = self.adaln_single(timestep, size, batch_size=latents.shape[0], hidden_dtype=self.dtype)
        bias = (1 - prompt_attention_mask.to(self.dtype)) * _MASKED
        text = self.caption_projection(prompt_embeds.to(self.dtype))
        return (patches + positions).to(self.dtype), text, bias[:, None, None], modulation, embedded


class _Masked:
    """Cross-attention with a bias of four axes, where diffusers repeats a mask for every head."""

    def __call__(
        self, attn: Attention, hidden_states: Tensor, encoder_hidden_states: Tensor, attention_mask: Tensor
    ) -> Tensor:
        query, key, value = (
            layer(source).unflatten(-1, (attn.heads, -1))
            for layer, source in (
                (attn.to_q, hidden_states),
                (attn.to_k, encoder_hidden_states),
                (attn.to_v, encoder_hidden_states),
            )
        )
        result: Tensor = attn.to_out[0](mix(query, key, value, attention_mask))
        return result


class _Block(nn.Module):
    def __init__(self, block: Any) -> None:
        super().__init__()
        block.attn2.processor = _Masked()
        self.block = block

    def forward(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor, encoder_attention_bias: Tensor, modulation: Tensor
    ) -> Tensor:
        """[batch, image, width] to the same."""
        result: Tensor = self.block(
            hidden_states,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_bias,
            timestep=modulation,
        )
        return result


class _Final(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.norm_out = model.norm_out
        self.scale_shift_table = model.scale_shift_table
        self.proj_out = model.proj_out
        self.patch: int = model.config.patch_size
        self.channels: int = model.config.in_channels

    def forward(self, hidden_states: Tensor, embedded_timestep: Tensor) -> Tensor:
        """[batch, image, width] to [batch, image, patch features], float32."""
        shift, scale = (self.scale_shift_table[None] + embedded_timestep[:, None]).chunk(2, dim=1)
        tokens = self.proj_out(self.norm_out(hidden_states) * (1 + scale) + shift)
        return to_packed(tokens, self.patch, self.channels).float()


def _reference(folder: Path) -> Watched:
    model: Any = PixArtTransformer2DModel.from_pretrained(folder, torch_dtype=torch.float32).eval()
    patch, channels = model.config.patch_size, model.config.in_channels
    kept: dict[str, Tensor] = {}
    model.adaln_single.register_forward_hook(lambda _, __, result: kept.update(embedded_timestep=result[1]))

    def arguments(inputs: Mapping[str, Tensor]) -> dict[str, Any]:
        size = inputs.get("picture_size")
        return {
            "hidden_states": unpack(inputs["latents"], inputs["img_ids"], patch),
            "encoder_hidden_states": inputs["prompt_embeds"],
            "encoder_attention_mask": inputs["prompt_attention_mask"],
            "timestep": inputs["timestep"],
            "added_cond_kwargs": {
                "resolution": size,
                "aspect_ratio": None if size is None else size[:, :1] / size[:, 1:],
            },
        }

    def named(taken: dict[str, Any], result: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        given = {name: taken[name] for name in ("hidden_states", "encoder_hidden_states")}
        bias = {"encoder_attention_bias": taken["encoder_attention_mask"][:, None]}
        return given | bias | {"modulation": taken["timestep"]} | kept, {"hidden_states": result}

    def packed(_: Mapping[str, Tensor], prediction: Tensor) -> Tensor:
        return pack(prediction[:, :channels], patch)

    return Watched(model, model.transformer_blocks, arguments, named, packed)
