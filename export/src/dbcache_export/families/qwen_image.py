"""Qwen-Image: blocks over an image and a text stream, with rotary positions around the middle of the picture."""

from __future__ import annotations

__all__ = ["FAMILY"]

import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from diffusers import QwenImageTransformer2DModel
from torch import Tensor, nn

from dbcache_export import spec
from dbcache_export.encoders import qwen, tokenizer
from dbcache_export.errors import ExportError
from dbcache_export.families import inputs, rotary, tensors
from dbcache_export.families.family import Cut, Family, Kind, Sampling, Source
from dbcache_export.families.layers import Block, Layers, split_heads
from dbcache_export.families.literal import Literal
from dbcache_export.families.rotary import MASKED, mix, rotate
from dbcache_export.families.sizes import Picture
from dbcache_export.families.texts import Texts, of_one_encoder, refuse_left_padding, whole
from dbcache_export.families.watched import Tensors, Watch, text_first
from dbcache_export.guidance import separate

_PATCH = 2
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


def _texts(source: Source, _: Mapping[str, spec.Tensor]) -> Texts | None:
    """Qwen2.5-VL, asked to describe a picture; what it makes of the instruction in front of the prompt is left out."""
    parts = whole(source.folder, ("text_encoder", "tokenizer"))
    if parts is None:
        return None
    names = ("prompt_embeds", "prompt_embeds_mask")
    encoder = qwen(parts[0], "text_000.onnx", "qwen", _DROP, source.options, source.fake, names)
    template: dict[str, Any] = {"prefix": _PREFIX, "suffix": _SUFFIX, "drop": _DROP, "padding": "longest"}
    read = tokenizer(parts[1], _PROMPT + _DROP, **template)
    refuse_left_padding(read, parts[1], "Qwen-Image")
    if json.loads(read.json)["truncation"]["direction"] != "Right":  # the pipeline then cuts at both ends
        raise ExportError(f"{parts[1]} cuts on the left", "set truncation_side to right, as Qwen-Image has it")
    return of_one_encoder(encoder, read, "qwen", unconditional=" ")


def _fixed(config: Mapping[str, Any]) -> Mapping[str, Sequence[Any]]:
    off = ("guidance_embeds", "zero_cond_t", "use_additional_t_cond", "use_layer3d_rope")
    channels = config["in_channels"] // _PATCH**2
    return {"patch_size": (_PATCH,), "out_channels": (channels,)} | dict.fromkeys(off, (False,))


def _cut(model: Any, source: Source) -> Cut:
    config, layers, width = source.config, source.config["num_layers"], source.width
    head = config["attention_head_dim"]
    (block,) = model.transformer_blocks
    block.attn.processor = _Real()
    return Cut(
        description=f"Qwen-Image transformer: {layers} blocks, width {width}",
        sizes=Picture(config["in_channels"] // _PATCH**2, _PATCH, _DEFAULT_CELLS, max_cells=_MAX_CELLS),
        inputs={
            "timestep": inputs.SIGMA,
            "prompt_embeds": inputs.states(config["joint_attention_dim"]),
            "prompt_embeds_mask": inputs.PADDED_TEXT_MASK,
            "img_ids": inputs.GRID,
        },
        inside={
            **tensors.streams(width),
            "attention_bias": ("batch", 1, 1, "total"),
            "temb": ("batch", width),
            **tensors.tables("total", 1, head),
        },
        lists={"transformer_blocks": [Kind("block", _Block(block))] * layers},
        text=(1, _MAX_TEXT),
    )


class _Embed(Layers):
    """From the inputs of a request and a step to the streams and what every block needs."""

    layers = ("img_in", "txt_norm", "txt_in", "time_text_embed")

    def prepare(self, model: Any) -> None:
        """See `Layers`."""
        self.frequencies = [
            Literal(partial(lambda axis: 1.0 / _THETA ** (torch.arange(0, axis, 2).float() / axis), axis))
            for axis in model.config.axes_dims_rope
        ]

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
        cos, sin = rotary.tables(angle)
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
                split_heads(attn, layer(source))
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


class _Block(Block):
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


def _watch(_: Any) -> Watch:
    def arguments(given: Mapping[str, Tensor]) -> dict[str, Any]:
        rows, columns = (int(side) + 1 for side in given["img_ids"].amax(0)[1:])
        return {
            "encoder_hidden_states_mask": given["prompt_embeds_mask"],
            "img_shapes": [[(1, rows, columns)]] * len(given["latents"]),
        }

    def others(taken: Mapping[str, Any]) -> Tensors:
        image, text = taken["image_rotary_emb"]
        turns = torch.cat((text, image)).repeat_interleave(2, 1)[:, None]
        hidden_states, mask = taken["hidden_states"], taken["encoder_hidden_states_mask"]
        seen = torch.cat((mask, torch.ones_like(hidden_states[..., 0], dtype=torch.bool)), 1)
        bias = torch.where(seen, 0.0, MASKED)[:, None, None]
        return {"attention_bias": bias} | tensors.rotary((turns.real, turns.imag))

    return Watch(others, text_first, arguments)


FAMILY = Family(
    title="Qwen-Image",
    model=QwenImageTransformer2DModel,
    pipelines=("QwenImagePipeline",),
    fixed=_fixed,
    embed=_Embed,
    cut=_cut,
    watch=_watch,
    texts=_texts,
    calls="qwen_image",
    sampling=lambda _: Sampling(separate(4.0, "renormalised", needs_negative=True), steps=50),
)
