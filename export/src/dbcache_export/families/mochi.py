"""Mochi: blocks over a video and a narrower text stream; the last one leaves the text behind."""

from __future__ import annotations

__all__ = ["FAMILY"]

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from diffusers import MochiTransformer3DModel
from torch import Tensor
from torch.nn import functional

from dbcache_export.families import inputs, tensors
from dbcache_export.families.family import Cut, Family, Kind, Sampling, Source
from dbcache_export.families.layers import Block, Layers, split_heads
from dbcache_export.families.positions import counted
from dbcache_export.families.rotary import mix
from dbcache_export.families.sizes import Video
from dbcache_export.families.video import Grid, VideoProjection
from dbcache_export.families.video_text import t5_texts
from dbcache_export.families.watched import Tensors, Watch
from dbcache_export.guidance import fused

#: Of the pipeline's defaults.
_VIDEO: Any = {"width": 848, "height": 480, "frames": 19, "fps": 30.0}
_DOWNSCALE, _TEMPORAL_DOWNSCALE = 8, 6
#: The scheduler with which Mochi was published.
_SCHEDULER = {"_class_name": "FlowMatchEulerDiscreteScheduler", "invert_sigmas": True}


def _cut(model: Any, source: Source) -> Cut:
    config, layers, width = source.config, source.config["num_layers"], source.width
    heads, head = config["num_attention_heads"], config["attention_head_dim"]
    first, last = model.transformer_blocks
    kinds = [Kind("block", _Block(first))] * (layers - 1)
    return Cut(
        description=f"Mochi transformer: {layers} blocks, width {width}",
        sizes=Video(config["in_channels"], config["patch_size"], _DOWNSCALE, _TEMPORAL_DOWNSCALE, **_VIDEO),
        inputs={
            "timestep": inputs.TIMESTEP,
            "prompt_embeds": inputs.states(config["text_embed_dim"]),
            "prompt_attention_mask": inputs.TEXT_MASK,
        },
        inside={
            **tensors.streams(width, config["pooled_projection_dim"]),
            "temb": ("batch", width),
            "attention_bias": ("batch", 1, 1, "total"),
            "text_mask": ("batch", "text", 1),
            **tensors.tables("image", heads, head // 2),
        },
        lists={"transformer_blocks": [*kinds, Kind("last", _Block(last), gives=tensors.STREAMS[:1])]},
        text=(1, config["max_sequence_length"]),
    )


class _Embed(Layers):
    """From the inputs of a request and a step to the streams and what every block needs."""

    layers = ("patch_embed", "time_embed", "pos_frequencies")

    def prepare(self, model: Any) -> None:
        """See `Layers`."""
        self.area: int = model.rope.target_area

    def forward(
        self, latents: Tensor, timestep: Tensor, prompt_embeds: Tensor, prompt_attention_mask: Tensor
    ) -> tuple[Tensor, ...]:
        """[batch, channels, frames, height, width], [batch], [batch, text, width], [batch, text] of 1 and 0."""
        grid = Grid(latents, self.config.patch_size)
        temb, encoder_hidden_states = self.time_embed(
            timestep, prompt_embeds.to(self.dtype), prompt_attention_mask, hidden_dtype=self.dtype
        )
        hidden_states = grid.embed_frames(self.patch_embed.proj, latents.to(self.dtype).transpose(1, 2).flatten(0, 1))
        lowest = torch.finfo(self.dtype).min
        bias = functional.pad((1 - prompt_attention_mask) * lowest, (grid.tokens, 0))
        text_mask = prompt_attention_mask[:, :, None].to(self.dtype)
        angles = self._angles(*grid.sides)
        bias = bias[:, None, None].to(self.dtype)
        return hidden_states, encoder_hidden_states, temb, bias, text_mask, angles.cos(), angles.sin()

    def _angles(self, frames: int, rows: int, columns: int) -> Tensor:
        """[image, heads, half a head]: rows and columns are scaled to the area of the pictures of training."""
        frame, row, column = counted(frames, rows, columns)
        height, width = row[-1] + 1, column[-1] + 1
        scale = (self.area / (height * width)).sqrt()
        places = [frame, (row + 0.5 - height / 2) * scale, (column + 0.5 - width / 2) * scale]
        frequencies = self.pos_frequencies.float().flatten(1)
        along = [torch.outer(place, frequency) for place, frequency in zip(places, frequencies, strict=True)]
        angles = along[0][:, None, None] + along[1][:, None] + along[2]
        return angles.flatten(0, 2).unflatten(1, self.pos_frequencies.shape[1:])


class _MaskedAttention:
    """The processor of a MochiAttention, over all samples at once.

    The original takes the padding out of each sample's text and puts zeros in its place afterwards; here padding is
    masked as a key and its result is multiplied by zero.
    """

    def __init__(self, attention_bias: Tensor, text_mask: Tensor) -> None:
        self.attention_bias = attention_bias
        self.text_mask = text_mask

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: None,
        image_rotary_emb: tuple[Tensor, Tensor],
    ) -> tuple[Tensor, Tensor]:
        heads = partial(split_heads, attn)
        query = _turned(attn.norm_q(heads(attn.to_q(hidden_states))), *image_rotary_emb)
        key = _turned(attn.norm_k(heads(attn.to_k(hidden_states))), *image_rotary_emb)
        value = heads(attn.to_v(hidden_states))
        query = torch.cat([query, attn.norm_added_q(heads(attn.add_q_proj(encoder_hidden_states)))], dim=1)
        key = torch.cat([key, attn.norm_added_k(heads(attn.add_k_proj(encoder_hidden_states)))], dim=1)
        value = torch.cat([value, heads(attn.add_v_proj(encoder_hidden_states))], dim=1)
        result = mix(query, key, value, self.attention_bias)
        video, text = result.split_with_sizes((hidden_states.shape[1], encoder_hidden_states.shape[1]), dim=1)
        video = attn.to_out[0](video)
        if attn.context_pre_only:
            return video, text
        return video, attn.to_add_out(text * self.text_mask)


def _turned(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """[batch, image, heads, head], in pairs of neighbours by tables of half a head: a table for each head is large."""
    even, odd = states.float().unflatten(-1, (-1, 2)).unbind(-1)
    pairs = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1)
    return pairs.flatten(-2).to(states.dtype)


class _Block(Block):
    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        temb: Tensor,
        attention_bias: Tensor,
        text_mask: Tensor,
        rotary_cos: Tensor,
        rotary_sin: Tensor,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """[batch, image, width] and [batch, text, text width] to the same, or to the first alone."""
        self.block.attn1.processor = _MaskedAttention(attention_bias, text_mask)
        video, text = self.block(
            hidden_states, encoder_hidden_states, temb, None, image_rotary_emb=(rotary_cos, rotary_sin)
        )
        return video if self.block.context_pre_only else (video, text)


class _Final(VideoProjection):
    features = "ppc"


def _watch(_: Any) -> Watch:
    def arguments(given: Mapping[str, Tensor]) -> dict[str, Any]:
        return {"encoder_attention_mask": given["prompt_attention_mask"].bool()}

    def others(taken: Mapping[str, Any]) -> Tensors:
        mask = taken["encoder_attention_mask"].float()
        images = taken["hidden_states"].shape[1]
        bias = functional.pad((1 - mask) * torch.finfo(torch.float32).min, (images, 0))[:, None, None]
        return {"attention_bias": bias, "text_mask": mask[:, :, None]} | tensors.rotary(taken["image_rotary_emb"])

    return Watch(others, arguments=arguments)


FAMILY = Family(
    title="Mochi",
    model=MochiTransformer3DModel,
    pipelines=("MochiPipeline",),
    fixed=lambda config: {"out_channels": [None, config["in_channels"]]},
    few={"num_layers": 2},
    embed=_Embed,
    cut=_cut,
    final=_Final,
    watch=_watch,
    texts=lambda source, made: t5_texts(source, made, source.config["max_sequence_length"], "masked"),
    calls="mochi",
    published=_SCHEDULER,
    sampling=lambda _: Sampling(fused(4.5, "uncond"), steps=64),
)
