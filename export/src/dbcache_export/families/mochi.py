"""Mochi: blocks over a video and a narrower text stream; the last one leaves the text behind."""

from __future__ import annotations

__all__ = ["plan", "transformer"]

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import MochiTransformer3DModel
from diffusers.models.transformers.transformer_mochi import MochiTransformerBlock
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional

from dbcache_export import checkpoint, spec
from dbcache_export.families.literal import literal_timesteps
from dbcache_export.families.parts import configuration, under
from dbcache_export.families.positions import counted
from dbcache_export.families.rotary import mix
from dbcache_export.families.video import Transformer, Video, original, prefix_mask, templates, video_plan
from dbcache_export.families.video_text import t5_texts
from dbcache_export.families.watched import Watched
from dbcache_export.guidance import fused
from dbcache_export.pipeline_calls import CALLS
from dbcache_export.scheduler import prediction, scheduler
from dbcache_export.spec import DTYPES, Graph, Options, Plan
from dbcache_export.template import fake_module

_STREAMS = ("hidden_states", "encoder_hidden_states")
_CONTEXT = (*_STREAMS, "temb", "attention_bias", "text_mask", "rotary_cos", "rotary_sin")
#: Of the pipeline's defaults.
_WIDTH, _HEIGHT, _FRAMES, _FPS = 848, 480, 19, 30.0
_DOWNSCALE, _TEMPORAL_DOWNSCALE = 8, 6
#: The scheduler with which Mochi was published.
_SCHEDULER = {"_class_name": "FlowMatchEulerDiscreteScheduler", "invert_sigmas": True}


def plan(folder: Path, options: Options, fake: FakeTensorMode) -> Plan:
    """The plan of a Mochi pipeline or transformer."""
    inner = folder / "transformer" if (folder / "transformer").is_dir() else folder
    parts = transformer(inner, options, fake)
    return video_plan(
        folder,
        options,
        fake,
        parts,
        texts=t5_texts(folder, parts.tensors, parts.text[1], "masked", options, fake),
        scheduler=scheduler(folder, CALLS["mochi"], _SCHEDULER),
        guidance=fused(4.5, "uncond"),
        steps=64,
        prediction=prediction(folder, _SCHEDULER),
    )


def transformer(folder: Path, options: Options, fake: FakeTensorMode) -> Transformer:
    """Cuts the transformer in `folder` into embed, blocks and final.

    Raises:
        ExportError: It is a variant with other inputs.
    """
    config = configuration(
        folder, MochiTransformer3DModel, lambda config: {"out_channels": [None, config["in_channels"]]}
    )
    heads, head = config["num_attention_heads"], config["attention_head_dim"]
    width = heads * head
    compute, layers = options.compute, config["num_layers"]
    video = Video(
        layout="bcfhw",
        channels=config["in_channels"],
        downscale=_DOWNSCALE,
        temporal_downscale=_TEMPORAL_DOWNSCALE,
        patch=config["patch_size"],
        width=_WIDTH,
        height=_HEIGHT,
        frames=_FRAMES,
        fps=_FPS,
    )
    tensors = {
        "latents": spec.Tensor("f32", video.latents()),
        "timestep": spec.Tensor("f32", ("batch",)),
        "prompt_embeds": spec.Tensor("f32", ("batch", "text", config["text_embed_dim"])),
        "prompt_attention_mask": spec.Tensor("f32", ("batch", "text")),
        "hidden_states": spec.Tensor(compute, ("batch", "image", width)),
        "encoder_hidden_states": spec.Tensor(compute, ("batch", "text", config["pooled_projection_dim"])),
        "temb": spec.Tensor(compute, ("batch", width)),
        "attention_bias": spec.Tensor(compute, ("batch", 1, 1, "total")),
        "text_mask": spec.Tensor(compute, ("batch", "text", 1)),
        "rotary_cos": spec.Tensor("f32", ("image", heads, head // 2)),
        "rotary_sin": spec.Tensor("f32", ("image", heads, head // 2)),
        "prediction": spec.Tensor("f32", video.latents()),
    }
    inputs = {
        "latents": {"per": "step", "from": "latents"},
        "timestep": {"per": "step", "from": "timestep"},
        "prompt_embeds": {"per": "request", "from": "text"},
        "prompt_attention_mask": {"per": "request", "from": "text"},
    }
    model: Any = fake_module(fake, compute, lambda: MochiTransformer3DModel(**(config | {"num_layers": 2})))
    literal_timesteps(model)
    template = templates(tensors, video.patch)
    first, last = model.transformer_blocks
    kinds = [template("block", _Block(first), _CONTEXT, _STREAMS)] * (layers - 1)
    kinds.append(template("last", _Block(last), _CONTEXT, _STREAMS[:1]))
    return Transformer(
        description=f"Mochi transformer: {layers} blocks, width {width}",
        checkpoint=checkpoint.read(folder, "transformer"),
        video=video,
        tensors=tensors,
        inputs=inputs,
        streams=_STREAMS,
        embed=Graph(
            "embed.onnx", template("embed", _Embed(model, DTYPES[compute][0]), tuple(inputs), _CONTEXT), "transformer"
        ),
        blocks=tuple(
            spec.Block(
                kind.name,
                Graph(f"block_{i:03}.onnx", kind, "transformer", under(f"transformer_blocks.{i}.")),
                group="transformer_blocks",
            )
            for i, kind in enumerate(kinds)
        ),
        final=Graph(
            "final.onnx",
            template("final", _Final(model), ("hidden_states", "temb", "latents"), ("prediction",)),
            "transformer",
        ),
        reference=lambda: _reference(folder),
        text=(1, config["max_sequence_length"]),
        examples={"prompt_attention_mask": prefix_mask},
    )


class _Embed(nn.Module):
    """From the inputs of a request and a step to the streams and what every block needs."""

    def __init__(self, model: MochiTransformer3DModel, dtype: torch.dtype) -> None:
        super().__init__()
        self.patch_embed = model.patch_embed
        self.time_embed = model.time_embed
        self.pos_frequencies = model.pos_frequencies
        self.patch: int = model.config.patch_size
        self.area: int = model.rope.target_area
        self.dtype = dtype

    def forward(
        self, latents: Tensor, timestep: Tensor, prompt_embeds: Tensor, prompt_attention_mask: Tensor
    ) -> tuple[Tensor, ...]:
        """[batch, channels, frames, height, width], [batch], [batch, text, width], [batch, text] of 1 and 0."""
        batch, channels, frames, height, width = latents.shape
        rows, columns = height // self.patch, width // self.patch
        temb, encoder_hidden_states = self.time_embed(
            timestep, prompt_embeds.to(self.dtype), prompt_attention_mask, hidden_dtype=self.dtype
        )
        pictures = latents.to(self.dtype).transpose(1, 2).reshape(batch * frames, channels, height, width)
        hidden_states = self.patch_embed.proj(pictures).flatten(2).transpose(1, 2)
        hidden_states = hidden_states.reshape(batch, frames * rows * columns, hidden_states.shape[2])
        lowest = torch.finfo(self.dtype).min
        bias = functional.pad((1 - prompt_attention_mask) * lowest, (frames * rows * columns, 0))
        text_mask = prompt_attention_mask[:, :, None].to(self.dtype)
        angles = self._angles(frames, rows, columns)
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
        def heads(value: Tensor) -> Tensor:
            return value.unflatten(2, (attn.heads, -1))

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


class _Block(nn.Module):
    def __init__(self, block: MochiTransformerBlock) -> None:
        super().__init__()
        self.block = block

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


class _Final(nn.Module):
    def __init__(self, model: MochiTransformer3DModel) -> None:
        super().__init__()
        self.norm_out = model.norm_out
        self.proj_out = model.proj_out
        self.patch: int = model.config.patch_size

    def forward(self, hidden_states: Tensor, temb: Tensor, latents: Tensor) -> Tensor:
        """[batch, image, width] to the shape of the latents, which are taken for that shape only; float32."""
        batch, channels, frames, height, width = latents.shape
        rows, columns = height // self.patch, width // self.patch
        torch._check(hidden_states.shape[1] == frames * rows * columns)
        tokens = self.proj_out(self.norm_out(hidden_states, temb))
        cells = tokens.reshape(batch, frames, rows, columns, self.patch, self.patch, channels)
        return cells.permute(0, 6, 1, 2, 4, 3, 5).reshape(latents.shape).float()


def _reference(folder: Path) -> Watched:
    model = original(MochiTransformer3DModel, folder)

    def arguments(inputs: Mapping[str, Tensor]) -> dict[str, Any]:
        return {
            "hidden_states": inputs["latents"],
            "encoder_hidden_states": inputs["prompt_embeds"],
            "timestep": inputs["timestep"],
            "encoder_attention_mask": inputs["prompt_attention_mask"].bool(),
        }

    def named(taken: dict[str, Any], result: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        mask = taken["encoder_attention_mask"].float()
        images = taken["hidden_states"].shape[1]
        bias = functional.pad((1 - mask) * torch.finfo(torch.float32).min, (images, 0))[:, None, None]
        inputs = {name: taken[name] for name in (*_STREAMS, "temb")}
        inputs |= {"attention_bias": bias, "text_mask": mask[:, :, None]}
        inputs |= dict(zip(("rotary_cos", "rotary_sin"), taken["image_rotary_emb"], strict=True))
        unchanged = result[1] is taken["encoder_hidden_states"]
        return inputs, dict(zip(_STREAMS[:1] if unchanged else _STREAMS, result, strict=not unchanged))

    return Watched(model, model.transformer_blocks, arguments, named)
