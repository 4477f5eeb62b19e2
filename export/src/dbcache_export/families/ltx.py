"""LTX-Video: blocks over a video, each of which looks at the text, which stays as it is."""

from __future__ import annotations

__all__ = ["plan", "transformer"]

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import LTXVideoTransformer3DModel
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional

from dbcache_export import checkpoint, spec
from dbcache_export.families.literal import Literal, literal_timesteps
from dbcache_export.families.parts import configuration, under
from dbcache_export.families.positions import counted, over_grid
from dbcache_export.families.rotary import mix, rotate
from dbcache_export.families.video import Transformer, Video, original, prefix_mask, templates, video_plan
from dbcache_export.families.video_text import t5_texts
from dbcache_export.families.watched import Watched
from dbcache_export.guidance import fused
from dbcache_export.pipeline_calls import CALLS
from dbcache_export.scheduler import prediction, scheduler
from dbcache_export.spec import DTYPES, Graph, Options, Plan
from dbcache_export.template import fake_module

_CONTEXT = ("hidden_states", "encoder_hidden_states", "temb", "attention_bias", "rotary_cos", "rotary_sin")
#: Of the pipeline's defaults and its autoencoder.
_WIDTH, _HEIGHT, _FRAMES, _FPS = 704, 512, 161, 25.0
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


def plan(folder: Path, options: Options, fake: FakeTensorMode) -> Plan:
    """The plan of an LTX-Video text-to-video pipeline or transformer."""
    inner = folder / "transformer" if (folder / "transformer").is_dir() else folder
    parts = transformer(inner, options, fake)
    return video_plan(
        folder,
        options,
        fake,
        parts,
        texts=t5_texts(folder, parts.tensors, _MAX_TEXT, "told", options, fake),
        scheduler=scheduler(folder, CALLS["ltx"], _SCHEDULER),
        guidance=fused(3.0, "uncond"),
        steps=50,
        prediction=prediction(folder, _SCHEDULER),
    )


def transformer(folder: Path, options: Options, fake: FakeTensorMode) -> Transformer:
    """Cuts the transformer in `folder` into embed, blocks and final.

    Raises:
        ExportError: It is a variant with other inputs.
    """
    config = configuration(
        folder,
        LTXVideoTransformer3DModel,
        lambda config: {"patch_size": [1], "patch_size_t": [1], "out_channels": [None, config["in_channels"]]},
    )
    width = config["num_attention_heads"] * config["attention_head_dim"]
    compute, layers = options.compute, config["num_layers"]
    video = Video(
        layout="bcfhw",
        channels=config["in_channels"],
        downscale=_DOWNSCALE,
        temporal_downscale=_TEMPORAL_DOWNSCALE,
        patch=1,
        width=_WIDTH,
        height=_HEIGHT,
        frames=_FRAMES,
        fps=_FPS,
    )
    tensors = {
        "latents": spec.Tensor("f32", video.latents()),
        "timestep": spec.Tensor("f32", ("batch",)),
        "prompt_embeds": spec.Tensor("f32", ("batch", "text", config["caption_channels"])),
        "prompt_attention_mask": spec.Tensor("f32", ("batch", "text")),
        "fps": spec.Tensor("f32", (1,)),
        "hidden_states": spec.Tensor(compute, ("batch", "image", width)),
        "encoder_hidden_states": spec.Tensor(compute, ("batch", "text", width)),
        "temb": spec.Tensor(compute, ("batch", 1, 6 * width)),
        "embedded_timestep": spec.Tensor(compute, ("batch", 1, width)),
        "attention_bias": spec.Tensor(compute, ("batch", 1, 1, "text")),
        "rotary_cos": spec.Tensor("f32", ("image", width)),
        "rotary_sin": spec.Tensor("f32", ("image", width)),
        "prediction": spec.Tensor("f32", video.latents()),
    }
    inputs = {
        "latents": {"per": "step", "from": "latents"},
        "timestep": {"per": "step", "from": "timestep"},
        "prompt_embeds": {"per": "request", "from": "text"},
        "prompt_attention_mask": {"per": "request", "from": "text"},
        "fps": {"per": "request", "from": "fps"},
    }
    model: Any = fake_module(fake, compute, lambda: LTXVideoTransformer3DModel(**(config | {"num_layers": 1})))
    literal_timesteps(model)
    template = templates(tensors, video.patch)
    kind = template("block", _Block(model.transformer_blocks[0]), _CONTEXT, _CONTEXT[:1])
    embedded = (*_CONTEXT, "embedded_timestep")
    return Transformer(
        description=f"LTX-Video transformer: {layers} blocks, width {width}",
        checkpoint=checkpoint.read(folder, "transformer"),
        video=video,
        tensors=tensors,
        inputs=inputs,
        streams=_CONTEXT[:1],
        embed=Graph(
            "embed.onnx", template("embed", _Embed(model, DTYPES[compute][0]), tuple(inputs), embedded), "transformer"
        ),
        blocks=tuple(
            spec.Block(
                "block",
                Graph(f"block_{i:03}.onnx", kind, "transformer", under(f"transformer_blocks.{i}.")),
                group="transformer_blocks",
            )
            for i in range(layers)
        ),
        final=Graph(
            "final.onnx",
            template("final", _Final(model), ("hidden_states", "embedded_timestep", "latents"), ("prediction",)),
            "transformer",
        ),
        reference=lambda: _reference(folder),
        text=(1, _MAX_TEXT),
        examples={"prompt_attention_mask": prefix_mask},
    )


class _Embed(nn.Module):
    """From the inputs of a request and a step to the stream and what every block needs."""

    def __init__(self, model: LTXVideoTransformer3DModel, dtype: torch.dtype) -> None:
        super().__init__()
        self.proj_in = model.proj_in
        self.time_embed = model.time_embed
        self.caption_projection = model.caption_projection
        self.rope = model.rope
        self.dtype = dtype
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
        query, key, value = (states.unflatten(2, (attn.heads, -1)) for states in (query, key, value))
        projected: Tensor = attn.to_out[0](mix(query, key, value, attention_mask))
        return projected


class _Block(nn.Module):
    def __init__(self, block: Any) -> None:
        super().__init__()
        self.block = block
        for attention in (block.attn1, block.attn2):
            attention.processor = _Attention()

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


class _Final(nn.Module):
    def __init__(self, model: LTXVideoTransformer3DModel) -> None:
        super().__init__()
        self.norm_out = model.norm_out
        self.proj_out = model.proj_out
        self.scale_shift_table = model.scale_shift_table

    def forward(self, hidden_states: Tensor, embedded_timestep: Tensor, latents: Tensor) -> Tensor:
        """[batch, image, width] to the shape of the latents, which are taken for that shape only; float32."""
        _, _, frames, height, width = latents.shape
        torch._check(hidden_states.shape[1] == frames * height * width)
        shift, scale = (self.scale_shift_table + embedded_timestep).chunk(2, dim=1)
        tokens = self.proj_out(self.norm_out(hidden_states) * (1 + scale) + shift)
        return tokens.transpose(1, 2).reshape(latents.shape).float()


def _reference(folder: Path) -> Watched:
    model = original(LTXVideoTransformer3DModel, folder)
    kept: dict[str, Tensor] = {}  # no block takes it, the last layers do
    model.time_embed.register_forward_hook(lambda _, __, result: kept.update(embedded_timestep=result[1][:, None]))

    def arguments(inputs: Mapping[str, Tensor]) -> dict[str, Any]:
        frames, height, width = inputs["latents"].shape[2:]
        return {
            "hidden_states": inputs["latents"].flatten(2).transpose(1, 2),
            "encoder_hidden_states": inputs["prompt_embeds"],
            "timestep": inputs["timestep"],
            "encoder_attention_mask": inputs["prompt_attention_mask"],
            "num_frames": frames,
            "height": height,
            "width": width,
            "rope_interpolation_scale": (_TEMPORAL_DOWNSCALE / float(inputs["fps"]), _DOWNSCALE, _DOWNSCALE),
        }

    def named(taken: dict[str, Any], result: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        cos, sin = (table[0] for table in taken["image_rotary_emb"])
        inputs = {name: taken[name] for name in _CONTEXT[:3]}
        inputs |= {"attention_bias": taken["encoder_attention_mask"][:, None], "rotary_cos": cos, "rotary_sin": sin}
        return inputs | kept, {"hidden_states": result}

    def packed(inputs: Mapping[str, Tensor], result: Tensor) -> Tensor:
        return result.transpose(1, 2).reshape(inputs["latents"].shape)

    return Watched(model, model.transformer_blocks, arguments, named, packed)
