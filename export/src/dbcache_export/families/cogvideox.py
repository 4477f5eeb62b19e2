"""CogVideoX: blocks over a video and a text stream. The 2 B model adds its positions, the 5 B model rotates by them."""

from __future__ import annotations

__all__ = ["plan", "transformer"]

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import CogVideoXTransformer3DModel
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from dbcache_export import checkpoint, spec
from dbcache_export.families.literal import literal_timesteps
from dbcache_export.families.parts import configuration, under
from dbcache_export.families.positions import counted, over_grid, rotary_tables, sinusoids
from dbcache_export.families.video import Transformer, Video, original, templates, video_plan
from dbcache_export.families.video_text import t5_texts
from dbcache_export.families.watched import Watched
from dbcache_export.guidance import fused
from dbcache_export.pipeline_calls import CALLS
from dbcache_export.scheduler import prediction, scheduler
from dbcache_export.spec import DTYPES, Graph, Options, Plan
from dbcache_export.template import fake_module

_STREAMS = ("hidden_states", "encoder_hidden_states")
_ROTARY = ("rotary_cos", "rotary_sin")
_DOWNSCALE, _FPS = 8, 8.0
#: The scheduler with which CogVideoX was published.
_SCHEDULER = {
    "_class_name": "CogVideoXDDIMScheduler",
    "clip_sample": False,
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
}


def plan(folder: Path, options: Options, fake: FakeTensorMode) -> Plan:
    """The plan of a CogVideoX text-to-video pipeline or transformer."""
    inner = folder / "transformer" if (folder / "transformer").is_dir() else folder
    parts = transformer(inner, options, fake)
    return video_plan(
        folder,
        options,
        fake,
        parts,
        texts=t5_texts(folder, parts.tensors, parts.text[1], "seen", options, fake),
        scheduler=scheduler(folder, CALLS["cogvideox"], _SCHEDULER),
        guidance=fused(6.0, "uncond"),
        steps=50,
        prediction=prediction(folder, _SCHEDULER),
    )


def transformer(folder: Path, options: Options, fake: FakeTensorMode) -> Transformer:
    """Cuts the transformer in `folder` into embed, blocks and final.

    Raises:
        ExportError: It is a variant with other inputs, such as an image, or CogVideoX 1.5.
    """
    fixed: dict[str, Sequence[Any]] = {
        "patch_size_t": [None],
        "ofs_embed_dim": [None],
        "use_learned_positional_embeddings": [False],
        "attention_head_dim": range(16, 1025, 16),
    }

    def understood(config: Mapping[str, Any]) -> Mapping[str, Sequence[Any]]:
        return fixed | {"out_channels": [config["in_channels"]]}

    config = configuration(folder, CogVideoXTransformer3DModel, understood)
    width = config["num_attention_heads"] * config["attention_head_dim"]
    video = Video(
        layout="bfchw",
        channels=config["in_channels"],
        downscale=_DOWNSCALE,
        temporal_downscale=config["temporal_compression_ratio"],
        patch=config["patch_size"],
        width=config["sample_width"] * _DOWNSCALE,
        height=config["sample_height"] * _DOWNSCALE,
        frames=config["sample_frames"],
        fps=_FPS,
    )
    rotates: bool = config["use_rotary_positional_embeddings"]
    tensors = {
        "latents": spec.Tensor("f32", video.latents()),
        "timestep": spec.Tensor("f32", ("batch",)),
        "prompt_embeds": spec.Tensor("f32", ("batch", "text", config["text_embed_dim"])),
        "hidden_states": spec.Tensor(options.compute, ("batch", "image", width)),
        "encoder_hidden_states": spec.Tensor(options.compute, ("batch", "text", width)),
        "temb": spec.Tensor(options.compute, ("batch", config["time_embed_dim"])),
        "prediction": spec.Tensor("f32", video.latents()),
    }
    if rotates:
        tensors |= {name: spec.Tensor("f32", ("image", config["attention_head_dim"])) for name in _ROTARY}
    inputs = {
        "latents": {"per": "step", "from": "latents"},
        "timestep": {"per": "step", "from": "timestep"},
        "prompt_embeds": {"per": "request", "from": "text"},
    }
    model: Any = fake_module(fake, options.compute, lambda: CogVideoXTransformer3DModel(**(config | {"num_layers": 1})))
    context = (*_STREAMS, "temb", *(_ROTARY if rotates else ()))
    literal_timesteps(model)
    template = templates(tensors, video.patch)
    kind = template("block", _Block(model.transformer_blocks[0]), context, _STREAMS)
    layers = config["num_layers"]
    most = config["max_text_seq_length"]
    return Transformer(
        description=f"CogVideoX transformer: {layers} blocks, width {width}, "
        + ("rotary positions" if rotates else "added positions"),
        checkpoint=checkpoint.read(folder, "transformer"),
        video=video,
        tensors=tensors,
        inputs=inputs,
        streams=_STREAMS,
        embed=Graph(
            "embed.onnx",
            template("embed", _Embed(model, DTYPES[options.compute][0]), tuple(inputs), context),
            "transformer",
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
            template("final", _Final(model), ("hidden_states", "temb", "latents"), ("prediction",)),
            "transformer",
        ),
        reference=lambda: _reference(folder),
        text=(most, most),  # as the model was trained: padding is attended to
    )


class _Embed(nn.Module):
    """From the inputs of a request and a step to the streams and what every block needs."""

    def __init__(self, model: CogVideoXTransformer3DModel, dtype: torch.dtype) -> None:
        super().__init__()
        self.patch_embed = model.patch_embed
        self.time_proj = model.time_proj
        self.time_embedding = model.time_embedding
        self.config = model.config
        self.dtype = dtype

    def forward(self, latents: Tensor, timestep: Tensor, prompt_embeds: Tensor) -> tuple[Tensor, ...]:
        """[batch, frames, channels, height, width], [batch] and [batch, text, width] to streams, temb and tables."""
        config = self.config
        batch, frames, channels, height, width = latents.shape
        rows, columns = height // config.patch_size, width // config.patch_size
        temb = self.time_embedding(self.time_proj(timestep).to(self.dtype))
        encoder_hidden_states = self.patch_embed.text_proj(prompt_embeds.to(self.dtype))
        pictures = latents.to(self.dtype).reshape(batch * frames, channels, height, width)
        hidden_states = self.patch_embed.proj(pictures).flatten(2).transpose(1, 2)
        hidden_states = hidden_states.reshape(batch, frames * rows * columns, hidden_states.shape[2])
        if config.use_rotary_positional_embeddings:
            return hidden_states, encoder_hidden_states, temb, *_rotary(config, frames, rows, columns)
        hidden_states = hidden_states + _positions(config, frames, rows, columns).to(self.dtype)
        return hidden_states, encoder_hidden_states, temb


def _positions(config: Any, frames: int, rows: int, columns: int) -> Tensor:
    """[image, width]: a quarter of the width says the frame, one half of the rest the column, the other the row."""
    width = config.num_attention_heads * config.attention_head_dim
    frame, row, column = counted(frames, rows, columns)
    across = sinusoids(column / config.spatial_interpolation_scale, 3 * width // 8)
    down = sinusoids(row / config.spatial_interpolation_scale, 3 * width // 8)
    picture = over_grid([down, across])
    picture = torch.cat([picture[:, 3 * width // 8 :], picture[:, : 3 * width // 8]], dim=1)
    return over_grid([sinusoids(frame / config.temporal_interpolation_scale, width // 4), picture])


def _rotary(config: Any, frames: int, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Tables over a grid that is fitted into the model's own and moved to its middle, as diffusers' pipeline does."""
    frame, row, column = counted(frames, rows, columns)
    height, width = row[-1] + 1, column[-1] + 1
    base_height, base_width = config.sample_height // config.patch_size, config.sample_width // config.patch_size
    is_tall = height / width > base_height / base_width
    fitted_height = torch.where(is_tall, float(base_height), torch.round(base_width / width * height))
    fitted_width = torch.where(is_tall, torch.round(base_height / height * width), float(base_width))
    row = _fitted(row, height, torch.round((base_height - fitted_height) / 2), fitted_height)
    column = _fitted(column, width, torch.round((base_width - fitted_width) / 2), fitted_width)
    head = config.attention_head_dim
    return rotary_tables([frame, row, column], [head // 4, head // 8 * 3, head // 8 * 3], 10000.0)


def _fitted(index: Tensor, count: Tensor, start: Tensor, length: Tensor) -> Tensor:
    """`count` even steps from `start` to (start + length) · (count − 1) / count."""
    end = (start + length) * (count - 1) / count
    return start + index * (end - start) / (count - 1).clamp(min=1)


class _Block(nn.Module):
    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        temb: Tensor,
        rotary_cos: Tensor | None = None,
        rotary_sin: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """[batch, image, width] and [batch, text, width] to the same."""
        rotary = None if rotary_cos is None else (rotary_cos, rotary_sin)
        video, text = self.block(hidden_states, encoder_hidden_states, temb, image_rotary_emb=rotary)
        return video, text


class _Final(nn.Module):
    def __init__(self, model: CogVideoXTransformer3DModel) -> None:
        super().__init__()
        self.norm_final = model.norm_final
        self.norm_out = model.norm_out
        self.proj_out = model.proj_out
        self.patch: int = model.config.patch_size

    def forward(self, hidden_states: Tensor, temb: Tensor, latents: Tensor) -> Tensor:
        """[batch, image, width] to the shape of the latents, which are taken for that shape only; float32."""
        batch, frames, channels, height, width = latents.shape
        rows, columns = height // self.patch, width // self.patch
        torch._check(hidden_states.shape[1] == frames * rows * columns)
        tokens = self.proj_out(self.norm_out(self.norm_final(hidden_states), temb=temb))
        cells = tokens.reshape(batch, frames, rows, columns, channels, self.patch, self.patch)
        return cells.permute(0, 1, 4, 2, 5, 3, 6).reshape(latents.shape).float()


def _reference(folder: Path) -> Watched:
    model = original(CogVideoXTransformer3DModel, folder)

    def arguments(inputs: Mapping[str, Tensor]) -> dict[str, Any]:
        return {
            "hidden_states": inputs["latents"],
            "encoder_hidden_states": inputs["prompt_embeds"],
            "timestep": inputs["timestep"],
            "image_rotary_emb": _pipeline_rotary(model.config, inputs["latents"]),
        }

    def named(taken: dict[str, Any], result: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        rotary = dict(zip(_ROTARY, taken["image_rotary_emb"] or (), strict=False))
        return {name: taken[name] for name in (*_STREAMS, "temb")} | rotary, dict(zip(_STREAMS, result, strict=True))

    return Watched(model, model.transformer_blocks, arguments, named)


def _pipeline_rotary(config: Any, latents: Tensor) -> tuple[Tensor, Tensor] | None:
    """What CogVideoXPipeline gives its transformer."""
    if not config.use_rotary_positional_embeddings:
        return None
    from diffusers.models.embeddings import get_3d_rotary_pos_embed
    from diffusers.pipelines.cogvideo.pipeline_cogvideox import get_resize_crop_region_for_grid

    patch = config.patch_size
    grid = (latents.shape[3] // patch, latents.shape[4] // patch)
    crop = get_resize_crop_region_for_grid(grid, config.sample_width // patch, config.sample_height // patch)
    tables: tuple[Tensor, Tensor] = get_3d_rotary_pos_embed(
        embed_dim=config.attention_head_dim, crops_coords=crop, grid_size=grid, temporal_size=latents.shape[1]
    )
    return tables
