"""HunyuanVideo: double blocks over a video and a text stream, then single blocks over both joined."""

from __future__ import annotations

__all__ = ["FAMILY"]

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import HunyuanVideoTransformer3DModel
from torch import Tensor
from torch.nn import functional

from dbcache_export import spec
from dbcache_export.encoders import clip, tokenizer
from dbcache_export.families import inputs, tensors
from dbcache_export.families.family import Cut, Family, Kind, Sampling, Source
from dbcache_export.families.layers import Block, Layers, PlainAttention
from dbcache_export.families.positions import counted, rotary_tables
from dbcache_export.families.sizes import Video
from dbcache_export.families.texts import Texts, refuse_left_padding, whole
from dbcache_export.families.video import Grid, VideoProjection
from dbcache_export.families.watched import Tensors, Watch
from dbcache_export.guidance import NONE, embedded
from dbcache_export.language import language_model
from dbcache_export.spec import Graph

#: Of the pipeline's defaults and its autoencoder.
_VIDEO: Any = {"width": 1280, "height": 720, "frames": 129, "fps": 15.0}
_DOWNSCALE, _TEMPORAL_DOWNSCALE = 8, 4
_MAX_TEXT, _CLIP_TEXT = 256, 77
#: The chat template of diffusers' pipeline, whose first 95 tokens are those in front of the prompt.
_PREFIX = (
    "<|start_header_id|>system<|end_header_id|>\n\nDescribe the video by detailing the following aspects: "
    "1. The main content and theme of the video."
    "2. The color, shape, size, texture, quantity, text, and spatial relationships of the objects."
    "3. Actions, events, behaviors temporal relationships, physical movement changes of the objects."
    "4. background environment, light, style and atmosphere."
    "5. camera angles, movements, and transitions used in the video:<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\n"
)
_SUFFIX = "<|eot_id|>"
_DROP = 95
#: The scheduler with which HunyuanVideo was published.
_SCHEDULER = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 7.0}


def _texts(source: Source, _: Mapping[str, spec.Tensor]) -> Texts | None:
    """Llama, asked to describe a video, two layers before its end; and what CLIP makes of the prompt alone."""
    options, fake = source.options, source.fake
    parts = whole(source.folder, ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    if parts is None:
        return None
    names = ("prompt_embeds", "prompt_attention_mask")
    llama = language_model(parts[0], "llama", (-3,), options, fake, names, tokens="llama", drop=_DROP)
    pooled = clip(parts[1], "text_001.onnx", "clip", options, fake, ("pooled_projections",), tokens=_CLIP_TEXT)
    template: dict[str, Any] = {"prefix": _PREFIX, "suffix": _SUFFIX, "drop": _DROP, "padding": "longest"}
    tokenizers = {
        "llama": tokenizer(parts[2], _MAX_TEXT + _DROP, **template),
        "clip": tokenizer(parts[3], _CLIP_TEXT),
    }
    refuse_left_padding(tokenizers["llama"], parts[2], "HunyuanVideo")
    graphs: list[tuple[Graph, Mapping[str, spec.TextInput]]] = [
        (llama.graph, {"input_ids": ("llama", "ids"), "attention_mask": ("llama", "mask")}),
        (pooled.graph, {"input_ids": ("clip", "ids")}),
    ]
    return Texts(spec.Text(tokenizers, graphs, unconditional=""), [llama, pooled])


def _cut(model: Any, source: Source) -> Cut:
    config, width = source.config, source.width
    doubles, singles = config["num_layers"], config["num_single_layers"]
    head = config["attention_head_dim"]
    double = Kind("double", _Block(model.transformer_blocks[0]))
    single = Kind("single", _Block(model.single_transformer_blocks[0]))
    return Cut(
        description=f"HunyuanVideo transformer: {doubles} double and {singles} single blocks, width {width}",
        sizes=Video(config["in_channels"], config["patch_size"], _DOWNSCALE, _TEMPORAL_DOWNSCALE, **_VIDEO),
        inputs={
            "timestep": inputs.TIMESTEP,
            **({"guidance": inputs.GUIDANCE} if config["guidance_embeds"] else {}),
            "prompt_embeds": inputs.states(config["text_embed_dim"]),
            "prompt_attention_mask": inputs.TEXT_MASK,
            "pooled_projections": inputs.pooled(config["pooled_projection_dim"]),
        },
        inside={
            **tensors.streams(width),
            "temb": ("batch", width),
            "attention_bias": ("batch", 1, 1, "total"),
            **tensors.tables("image", head),
        },
        lists={"transformer_blocks": [double] * doubles, "single_transformer_blocks": [single] * singles},
        text=(1, _MAX_TEXT),
    )


class _Embed(Layers):
    """From the inputs of a request and a step to the streams and what every block needs."""

    layers = ("x_embedder", "time_text_embed", "context_embedder")

    def prepare(self, model: Any) -> None:
        """See `Layers`."""
        for block in model.context_embedder.token_refiner.refiner_blocks:
            block.attn.processor = PlainAttention()

    def forward(
        self,
        latents: Tensor,
        timestep: Tensor,
        prompt_embeds: Tensor,
        prompt_attention_mask: Tensor,
        pooled_projections: Tensor,
        guidance: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """[batch, channels, frames, height, width], [batch], [batch, text, width], [batch, text] of 1 and 0, pooled."""
        grid = Grid(latents, self.config.patch_size)
        scale = None if guidance is None else guidance * 1000
        temb, _ = self.time_text_embed(timestep, pooled_projections.to(self.dtype), scale)
        hidden_states = self.x_embedder(latents.to(self.dtype))
        text = self._refined(prompt_embeds.to(self.dtype), timestep, prompt_attention_mask)
        bias = _bias(prompt_attention_mask, self.dtype)
        bias = functional.pad(bias, (grid.tokens, 0))[:, None, None]
        cos, sin = rotary_tables(counted(*grid.sides), self.config.rope_axes_dim, float(self.config.rope_theta))
        return hidden_states, text, temb, bias, cos, sin

    def _refined(self, states: Tensor, timestep: Tensor, mask: Tensor) -> Tensor:
        """The original, but that a mask is added to the scores: text sees text, padding the first token."""
        refiner = self.context_embedder
        weights = mask[:, :, None]
        pooled = ((states * weights).sum(dim=1) / weights.sum(dim=1)).to(self.dtype)
        temb = refiner.time_text_embed(timestep, pooled)
        states = refiner.proj_in(states)
        seen = mask[:, :, None] * mask[:, None]
        seen = torch.cat([torch.ones_like(seen[:, :, :1]), seen[:, :, 1:]], dim=2)
        bias = _bias(seen, self.dtype)[:, None]
        for block in refiner.token_refiner.refiner_blocks:
            states = block(states, temb, bias)
        return states


def _bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Zero where the mask is one, and the lowest value where it is zero."""
    return ((1 - mask) * torch.finfo(dtype).min).to(dtype)


class _Block(Block):
    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        temb: Tensor,
        attention_bias: Tensor,
        rotary_cos: Tensor,
        rotary_sin: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """[batch, image, width] and [batch, text, width] to the same."""
        rotary = (rotary_cos, rotary_sin)
        video, text = self.block(hidden_states, encoder_hidden_states, temb, attention_bias, rotary)
        return video, text


def _watch(_: Any) -> Watch:
    def arguments(given: Mapping[str, Tensor]) -> dict[str, Any]:
        scaled = {"guidance": given["guidance"] * 1000} if "guidance" in given else {}
        return scaled | {"encoder_attention_mask": given["prompt_attention_mask"].long()}

    def others(taken: Mapping[str, Any]) -> Tensors:
        bias = _bias(taken["attention_mask"].float(), torch.float32)
        return {"attention_bias": bias} | tensors.rotary(taken.get("freqs_cis") or taken["image_rotary_emb"])

    return Watch(others, arguments=arguments)


FAMILY = Family(
    title="HunyuanVideo",
    model=HunyuanVideoTransformer3DModel,
    pipelines=("HunyuanVideoPipeline",),
    fixed=lambda config: {
        "patch_size_t": [1],
        "image_condition_type": [None],
        "out_channels": [None, config["in_channels"]],
    },
    few={"num_layers": 1, "num_single_layers": 1},
    embed=_Embed,
    cut=_cut,
    final=VideoProjection,
    watch=_watch,
    texts=_texts,
    calls="hunyuan_video",
    published=_SCHEDULER,
    sampling=lambda source: Sampling(embedded(6.0) if source.config["guidance_embeds"] else NONE, steps=50),
)
