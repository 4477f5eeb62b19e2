"""LTX-Video: blocks over a video, each of which looks at the text, which stays as it is."""

from __future__ import annotations

__all__ = ["FAMILY"]

import math
from collections.abc import Mapping
from typing import Any

import torch
from diffusers import LTXVideoTransformer3DModel
from torch import Tensor
from torch.nn import functional

from dbcache_export.families import inputs, tensors
from dbcache_export.families.family import Cut, Family, Kind, Sampling, Source
from dbcache_export.families.layers import Block, Layers, split_heads
from dbcache_export.families.literal import Literal
from dbcache_export.families.positions import counted, over_grid
from dbcache_export.families.rotary import mix, rotate
from dbcache_export.families.sizes import Video
from dbcache_export.families.video_text import t5_texts
from dbcache_export.families.watched import Tensors, Watch, keep
from dbcache_export.guidance import fused

#: Of the pipeline's defaults and its autoencoder.
_VIDEO: Any = {"width": 704, "height": 512, "frames": 161, "fps": 25.0}
_DOWNSCALE, _TEMPORAL_DOWNSCALE = 32, 8
_MAX_TEXT = 128
#: The scheduler with which LTX-Video was published.
_SCHEDULER = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "use_dynamic_shifting": True,
    "base_shift": 0.95,
    "max_shift": 2.05,
    "base_image_seq_len": 1024,
    "max_image_seq_len": 4096,
    "shift_terminal": 0.1,
}


def _cut(model: Any, source: Source) -> Cut:
    config, layers, width = source.config, source.config["num_layers"], source.width
    (block,) = model.transformer_blocks
    for attention in (block.attn1, block.attn2):
        attention.processor = _Attention()
    return Cut(
        description=f"LTX-Video transformer: {layers} blocks, width {width}",
        sizes=Video(config["in_channels"], 1, _DOWNSCALE, _TEMPORAL_DOWNSCALE, **_VIDEO),
        inputs={
            "timestep": inputs.TIMESTEP,
            "prompt_embeds": inputs.states(config["caption_channels"]),
            "prompt_attention_mask": inputs.TEXT_MASK,
            "fps": inputs.Input("fps", (1,)),
        },
        inside={
            **tensors.streams(width),
            "temb": ("batch", 1, 6 * width),
            "embedded_timestep": ("batch", 1, width),
            "attention_bias": ("batch", 1, 1, "text"),
            **tensors.tables("image", width),
        },
        streams=tensors.STREAMS[:1],
        lists={"transformer_blocks": [Kind("block", _Block(block))] * layers},
        embedded=(*tensors.STREAMS, "temb", "attention_bias", *tensors.ROTARY, "embedded_timestep"),
        text=(1, _MAX_TEXT),
    )


class _Embed(Layers):
    """From the inputs of a request and a step to the stream and what every block needs."""

    layers = ("proj_in", "time_embed", "caption_projection", "rope")

    def prepare(self, model: Any) -> None:
        """See `Layers`."""
        self.frequencies = Literal(
            lambda: model.rope.theta ** torch.linspace(0.0, 1.0, model.rope.dim // 6) * math.pi / 2.0
        )

    def forward(
        self, latents: Tensor, timestep: Tensor, prompt_embeds: Tensor, prompt_attention_mask: Tensor, fps: Tensor
    ) -> tuple[Tensor, ...]:
        """[batch, channels, frames, height, width], [batch], [batch, text, width], [batch, text] of 1 and 0, [1]."""
        batch, _, frames, height, width = latents.shape
        hidden_states = self.proj_in(latents.to(self.dtype).flatten(2).transpose(1, 2))
        temb, embedded = self.time_embed(timestep, batch_size=batch, hidden_dtype=self.dtype)
        text = self.caption_projection(prompt_embeds.to(self.dtype))
        bias = ((1 - prompt_attention_mask.to(self.dtype)) * -10000.0)[:, None, None]
        cos, sin = self._rotary(frames, height, width, fps)
        return hidden_states, text, temb[:, None], bias, cos, sin, embedded[:, None]

    def _rotary(self, frames: int, height: int, width: int, fps: Tensor) -> tuple[Tensor, Tensor]:
        """[image, width]: frequencies of frame, row and column take turns; positions are in seconds and pixels."""
        frame, row, column = counted(frames, height, width)
        places = [
            frame * (_TEMPORAL_DOWNSCALE / fps) / self.rope.base_num_frames,
            row * _DOWNSCALE / self.rope.base_height,
            column * _DOWNSCALE / self.rope.base_width,
        ]
        grid = over_grid([place[:, None] for place in places])
        angles = (self.frequencies.tensor() * (grid[:, :, None] * 2 - 1)).transpose(1, 2).flatten(1)
        rest = (self.rope.dim % 6, 0)
        cos = torch.stack([angles.cos()] * 2, dim=2).flatten(1)
        sin = torch.stack([angles.sin()] * 2, dim=2).flatten(1)
        return functional.pad(cos, rest, value=1.0), functional.pad(sin, rest)


class _Attention:
    """The processor of an LTXAttention, for a mask that is the same for all heads and queries."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        seen = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = attn.norm_q(attn.to_q(hidden_states)), attn.norm_k(attn.to_k(seen)), attn.to_v(seen)
        if image_rotary_emb is not None:
            query, key = rotate(query, *image_rotary_emb), rotate(key, *image_rotary_emb)
        query, key, value = (split_heads(attn, states) for states in (query, key, value))
        projected: Tensor = attn.to_out[0](mix(query, key, value, attention_mask))
        return projected


class _Block(Block):
    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        temb: Tensor,
        attention_bias: Tensor,
        rotary_cos: Tensor,
        rotary_sin: Tensor,
    ) -> Tensor:
        """[batch, image, width] to the same."""
        rotary = (rotary_cos, rotary_sin)
        video: Tensor = self.block(hidden_states, encoder_hidden_states, temb, rotary, attention_bias)
        return video


class _Final(Layers):
    layers = ("norm_out", "proj_out", "scale_shift_table")

    def forward(self, hidden_states: Tensor, embedded_timestep: Tensor, latents: Tensor) -> Tensor:
        """[batch, image, width] to the shape of the latents, which are taken for that shape only; float32."""
        _, _, frames, height, width = latents.shape
        torch._check(hidden_states.shape[1] == frames * height * width)
        shift, scale = (self.scale_shift_table + embedded_timestep).chunk(2, dim=1)
        tokens = self.proj_out(self.norm_out(hidden_states) * (1 + scale) + shift)
        return tokens.transpose(1, 2).reshape(latents.shape).float()


def _watch(model: Any) -> Watch:
    kept = keep(model.time_embed, lambda result: {"embedded_timestep": result[1][:, None]})

    def arguments(given: Mapping[str, Tensor]) -> dict[str, Any]:
        frames, height, width = given["latents"].shape[2:]
        return {
            "hidden_states": given["latents"].flatten(2).transpose(1, 2),
            "encoder_attention_mask": given["prompt_attention_mask"],
            "num_frames": frames,
            "height": height,
            "width": width,
            "rope_interpolation_scale": (_TEMPORAL_DOWNSCALE / float(given["fps"]), _DOWNSCALE, _DOWNSCALE),
        }

    def others(taken: Mapping[str, Any]) -> Tensors:
        turns = tensors.rotary(table[0] for table in taken["image_rotary_emb"])
        return turns | {"attention_bias": taken["encoder_attention_mask"][:, None]} | kept

    def packed(given: Mapping[str, Tensor], result: Tensor) -> Tensor:
        return result.transpose(1, 2).reshape(given["latents"].shape)

    return Watch(others, arguments=arguments, packed=packed)


FAMILY = Family(
    title="LTX-Video",
    model=LTXVideoTransformer3DModel,
    pipelines=("LTXPipeline",),
    fixed=lambda config: {"patch_size": [1], "patch_size_t": [1], "out_channels": [None, config["in_channels"]]},
    embed=_Embed,
    cut=_cut,
    final=_Final,
    watch=_watch,
    texts=lambda source, made: t5_texts(source, made, _MAX_TEXT, "told"),
    calls="ltx",
    published=_SCHEDULER,
    sampling=lambda _: Sampling(fused(3.0, "uncond"), steps=50),
)
