"""Qwen-Image: blocks over an image and a text stream, with rotary positions around the middle of the picture."""

from __future__ import annotations

__all__ = ["plan", "transformer"]

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import QwenImageTransformer2DModel
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from dbcache_export import checkpoint, spec
from dbcache_export.encoders import qwen, tokenizer
from dbcache_export.errors import ExportError
from dbcache_export.families.literal import Literal, literal_timesteps
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
from dbcache_export.families.rotary import MASKED, mix, rotate, tables
from dbcache_export.families.watched import Watched
from dbcache_export.guidance import separate
from dbcache_export.pipeline_calls import CALLS
from dbcache_export.scheduler import prediction, scheduler
from dbcache_export.spec import DTYPES, Graph, Options, Plan
from dbcache_export.template import fake_module

_PATCH = 2
_STREAMS = ("hidden_states", "encoder_hidden_states")
_CONTEXT = ("attention_bias", "temb", "rotary_cos", "rotary_sin")
_THETA = 10000.0
#: diffusers' pipeline makes pictures of 128 latent cells a side unless told otherwise.
_DEFAULT_CELLS = 128
#: The positions in diffusers' tables: half of them to each side of the middle.
_MAX_CELLS = 4096
_MAX_TEXT = 1024
#: Tokens of a prompt that the pipeline hands on, unless told otherwise.
_PROMPT = 512
#: The chat template of diffusers' pipeline, whose first 34 tokens are those in front of the prompt.
_PREFIX = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, spatial "
    "relationships of the objects and background:<|im_end|>\n<|im_start|>user\n"
)
_SUFFIX = "<|im_end|>\n<|im_start|>assistant\n"
_DROP = 34


def plan(folder: Path, options: Options, fake: FakeTensorMode) -> Plan:
    """The plan of a Qwen-Image pipeline or transformer."""
    inner = folder / "transformer" if (folder / "transformer").is_dir() else folder
    parts = transformer(inner, options, fake)
    return picture_plan(
        folder,
        options,
        fake,
        parts,
        texts=_text(folder, options, fake),
        scheduler=scheduler(folder, CALLS["qwen_image"]),
        guidance=separate(4.0, "renormalised", needs_negative=True),
        steps=50,
        prediction=prediction(folder),
    )


def _text(folder: Path, options: Options, fake: FakeTensorMode) -> Texts | None:
    """Qwen2.5-VL, asked to describe a picture; what it makes of the instruction in front of the prompt is left out."""
    parts = whole(folder, ("text_encoder", "tokenizer"))
    if parts is None:
        return None
    encoder = qwen(parts[0], "text_000.onnx", "qwen", _DROP, options, fake, ("prompt_embeds", "prompt_embeds_mask"))
    template: dict[str, Any] = {"prefix": _PREFIX, "suffix": _SUFFIX, "drop": _DROP, "padding": "longest"}
    tokenizers = {"qwen": tokenizer(parts[1], _PROMPT + _DROP, **template)}
    if tokenizers["qwen"].pad_side != "right":
        raise ExportError(f"{parts[1]} pads on the left", "set padding_side to right, as Qwen-Image has it")
    if json.loads(tokenizers["qwen"].json)["truncation"]["direction"] != "Right":  # the pipeline then cuts at both ends
        raise ExportError(f"{parts[1]} cuts on the left", "set truncation_side to right, as Qwen-Image has it")
    graph = (encoder.graph, {"input_ids": ("qwen", "ids"), "attention_mask": ("qwen", "mask")})
    return Texts(spec.Text(tokenizers, [graph], unconditional=" "), [encoder])


def transformer(folder: Path, options: Options, fake: FakeTensorMode) -> Transformer:
    """Cuts the transformer in `folder` into embed, blocks and final.

    Raises:
        ExportError: It is a variant with other inputs (Edit, Layered …).
    """
    off = ("guidance_embeds", "zero_cond_t", "use_additional_t_cond", "use_layer3d_rope")

    def understood(config: Mapping[str, Any]) -> Mapping[str, Sequence[Any]]:
        channels = config["in_channels"] // _PATCH**2
        return {"patch_size": (_PATCH,), "out_channels": (channels,)} | dict.fromkeys(off, (False,))

    config = configuration(folder, QwenImageTransformer2DModel, understood)
    dtype, layers = DTYPES[options.compute][0], config["num_layers"]
    head = config["attention_head_dim"]
    width = config["num_attention_heads"] * head
    tensors = {
        "latents": spec.Tensor("f32", ("batch", "image", config["in_channels"])),
        "timestep": spec.Tensor("f32", ("batch",)),
        "prompt_embeds": spec.Tensor("f32", ("batch", "text", config["joint_attention_dim"])),
        "prompt_embeds_mask": spec.Tensor("f32", ("batch", "text")),
        "img_ids": spec.Tensor("f32", ("image", 3)),
        "hidden_states": spec.Tensor(options.compute, ("batch", "image", width)),
        "encoder_hidden_states": spec.Tensor(options.compute, ("batch", "text", width)),
        "attention_bias": spec.Tensor(options.compute, ("batch", 1, 1, "total")),
        "temb": spec.Tensor(options.compute, ("batch", width)),
        "rotary_cos": spec.Tensor("f32", ("total", 1, head)),
        "rotary_sin": spec.Tensor("f32", ("total", 1, head)),
        "prediction": spec.Tensor("f32", ("batch", "image", config["in_channels"])),
    }
    inputs = {
        "latents": {"per": "step", "from": "latents"},
        "timestep": {"per": "step", "from": "sigma"},
        "prompt_embeds": {"per": "request", "from": "text"},
        "prompt_embeds_mask": {"per": "request", "from": "text"},
        "img_ids": {"per": "request", "from": "grid"},
    }
    small = config | {"num_layers": 1}
    model: Any = fake_module(fake, options.compute, lambda: QwenImageTransformer2DModel(**small))
    template = templates(tensors)
    block = template("block", _Block(model.transformer_blocks[0]), (*_STREAMS, *_CONTEXT), _STREAMS)
    embed = _Embed(model, config["axes_dims_rope"], dtype)
    return Transformer(
        description=f"Qwen-Image transformer: {layers} blocks, width {width}",
        checkpoint=checkpoint.read(folder, "transformer"),
        tensors=tensors,
        inputs=inputs,
        streams=_STREAMS,
        embed=Graph("embed.onnx", template("embed", embed, tuple(inputs), (*_STREAMS, *_CONTEXT)), "transformer"),
        blocks=tuple(
            spec.Block(
                "block",
                Graph(f"block_{i:03}.onnx", block, "transformer", under(f"transformer_blocks.{i}.")),
                group="transformer_blocks",
            )
            for i in range(layers)
        ),
        final=Graph(
            "final.onnx", template("final", _Final(model), ("hidden_states", "temb"), ("prediction",)), "transformer"
        ),
        reference=lambda: _reference(folder),
        channels=config["in_channels"] // _PATCH**2,
        patch=_PATCH,
        cells=_DEFAULT_CELLS,
        max_cells=_MAX_CELLS,
        text=(1, _MAX_TEXT),
        examples={"prompt_embeds_mask": padded},
    )


class _Embed(nn.Module):
    """From the inputs of a request and a step to the streams and what every block needs."""

    def __init__(self, model: Any, axes: tuple[int, int, int], dtype: torch.dtype) -> None:
        super().__init__()
        self.img_in = model.img_in
        self.txt_norm = model.txt_norm
        self.txt_in = model.txt_in
        self.time_text_embed = model.time_text_embed
        self.frequencies = [
            Literal(partial(lambda axis: 1.0 / _THETA ** (torch.arange(0, axis, 2).float() / axis), axis))
            for axis in axes
        ]
        self.dtype = dtype
        literal_timesteps(self)

    def forward(
        self, latents: Tensor, timestep: Tensor, prompt_embeds: Tensor, prompt_embeds_mask: Tensor, img_ids: Tensor
    ) -> tuple[Tensor, ...]:
        """Positions run from the picture's middle to both sides; the text's go on along the diagonal."""
        hidden_states = self.img_in(latents.to(self.dtype))
        encoder_hidden_states = self.txt_in(self.txt_norm(prompt_embeds.to(self.dtype)))
        temb = self.time_text_embed(timestep, hidden_states)
        sides = img_ids[:, 1:].long().amax(0) + 1
        below = sides // 2
        places = img_ids - torch.cat((torch.zeros_like(below[:1]), sides - below))
        text = torch.arange(prompt_embeds.shape[1]) + below.amax(0)
        positions = torch.cat((text[:, None].expand(-1, 3).float(), places))
        angle = torch.cat([positions[:, i, None] * each.tensor() for i, each in enumerate(self.frequencies)], 1)
        cos, sin = tables(angle)
        seen = torch.cat((prompt_embeds_mask, torch.ones_like(latents[..., 0])), 1) > 0
        bias = torch.where(seen, 0.0, MASKED).to(self.dtype)
        return hidden_states, encoder_hidden_states, bias[:, None, None], temb, cos[:, None], sin[:, None]


class _Real:
    """Joint attention over text and picture, with rotary embeddings in real arithmetic."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: None,
        encoder_hidden_states_mask: Tensor,
        image_rotary_emb: tuple[Tensor, Tensor],
    ) -> tuple[Tensor, Tensor]:
        def joined(text: nn.Module, image: nn.Module, norms: tuple[nn.Module, nn.Module] | None) -> Tensor:
            parts = [
                layer(source).unflatten(-1, (attn.heads, -1))
                for layer, source in ((text, encoder_hidden_states), (image, hidden_states))
            ]
            if norms:
                parts = [norm(part) for norm, part in zip(norms, parts, strict=True)]
            return torch.cat(parts, 1)

        query = joined(attn.add_q_proj, attn.to_q, (attn.norm_added_q, attn.norm_q))
        key = joined(attn.add_k_proj, attn.to_k, (attn.norm_added_k, attn.norm_k))
        value = joined(attn.add_v_proj, attn.to_v, None)
        mixed = mix(rotate(query, *image_rotary_emb), rotate(key, *image_rotary_emb), value, encoder_hidden_states_mask)
        length = encoder_hidden_states.shape[1]
        return attn.to_out[0](mixed[:, length:]), attn.to_add_out(mixed[:, :length])


class _Block(nn.Module):
    def __init__(self, block: Any) -> None:
        super().__init__()
        block.attn.processor = _Real()
        self.block = block

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_bias: Tensor,
        temb: Tensor,
        rotary_cos: Tensor,
        rotary_sin: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """[batch, image, width] and [batch, text, width] to the same."""
        text, image = self.block(hidden_states, encoder_hidden_states, attention_bias, temb, (rotary_cos, rotary_sin))
        return image, text


class _Final(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.norm_out = model.norm_out
        self.proj_out = model.proj_out

    def forward(self, hidden_states: Tensor, temb: Tensor) -> Tensor:
        """[batch, image, width] to [batch, image, patch features], float32."""
        prediction: Tensor = self.proj_out(self.norm_out(hidden_states, temb))
        return prediction.float()


def _reference(folder: Path) -> Watched:
    model: Any = QwenImageTransformer2DModel.from_pretrained(folder, torch_dtype=torch.float32).eval()

    def arguments(inputs: Mapping[str, Tensor]) -> dict[str, Any]:
        rows, columns = (int(side) + 1 for side in inputs["img_ids"].amax(0)[1:])
        return {
            "hidden_states": inputs["latents"],
            "timestep": inputs["timestep"],
            "encoder_hidden_states": inputs["prompt_embeds"],
            "encoder_hidden_states_mask": inputs["prompt_embeds_mask"],
            "img_shapes": [[(1, rows, columns)]] * len(inputs["latents"]),
        }

    def named(taken: dict[str, Any], result: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        image, text = taken["image_rotary_emb"]
        turns = torch.cat((text, image)).repeat_interleave(2, 1)[:, None]
        hidden_states, mask = taken["hidden_states"], taken["encoder_hidden_states_mask"]
        seen = torch.cat((mask, torch.ones_like(hidden_states[..., 0], dtype=torch.bool)), 1)
        bias = torch.where(seen, 0.0, MASKED)[:, None, None]
        given = {name: taken[name] for name in (*_STREAMS, "temb")}
        given |= {"attention_bias": bias, "rotary_cos": turns.real, "rotary_sin": turns.imag}
        return given, {"hidden_states": result[1], "encoder_hidden_states": result[0]}

    return Watched(model, model.transformer_blocks, arguments, named)
