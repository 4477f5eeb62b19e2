"""CogVideoX: blocks over a video and a text stream. The 2 B model adds its positions, the 5 B model rotates by them."""

from __future__ import annotations

__all__ = ["FAMILY"]

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import CogVideoXTransformer3DModel
from torch import Tensor

from dbcache_export.families import inputs, tensors
from dbcache_export.families.family import Cut, Family, Kind, Sampling, Source
from dbcache_export.families.layers import Block, Layers
from dbcache_export.families.positions import counted, over_grid, rotary_tables, sinusoids
from dbcache_export.families.sizes import Video
from dbcache_export.families.texts import Texts
from dbcache_export.families.video import Grid
from dbcache_export.families.video_text import t5_texts
from dbcache_export.families.watched import Tensors, Watch
from dbcache_export.guidance import fused
from dbcache_export.spec import Tensor as Port

_DOWNSCALE, _FPS = 8, 8.0
#: The axes of the latents.
_AXES = "bfchw"
#: The scheduler with which CogVideoX was published.
_SCHEDULER = {
    "_class_name": "CogVideoXDDIMScheduler",
    "clip_sample": False,
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
}


def _texts(source: Source, made: Mapping[str, Port]) -> Texts | None:
    """As many tokens as the model was trained with."""
    return t5_texts(source, made, source.config["max_text_seq_length"], "seen")


def _cut(model: Any, source: Source) -> Cut:
    config, layers, width = source.config, source.config["num_layers"], source.width
    head = config["attention_head_dim"]
    sizes = Video(
        channels=config["in_channels"],
        patch=config["patch_size"],
        downscale=_DOWNSCALE,
        temporal_downscale=config["temporal_compression_ratio"],
        width=config["sample_width"] * _DOWNSCALE,
        height=config["sample_height"] * _DOWNSCALE,
        frames=config["sample_frames"],
        fps=_FPS,
        axes=_AXES,
    )
    rotates: bool = config["use_rotary_positional_embeddings"]
    # Manifests have the tables behind the prediction.
    positions = {"prediction": Port("f32", sizes.latents()), **tensors.tables("image", head)} if rotates else {}
    most = config["max_text_seq_length"]
    return Cut(
        description=f"CogVideoX transformer: {layers} blocks, width {width}, "
        + ("rotary positions" if rotates else "added positions"),
        sizes=sizes,
        inputs={"timestep": inputs.TIMESTEP, "prompt_embeds": inputs.states(config["text_embed_dim"])},
        inside={**tensors.streams(width), "temb": ("batch", config["time_embed_dim"]), **positions},
        lists={"transformer_blocks": [Kind("block", _Block(model.transformer_blocks[0]))] * layers},
        embedded=(*tensors.STREAMS, "temb", *(tensors.ROTARY if rotates else ())),
        text=(most, most),  # as the model was trained: padding is attended to
    )


class _Embed(Layers):
    """From the inputs of a request and a step to the streams and what every block needs."""

    layers = ("patch_embed", "time_proj", "time_embedding")

    def forward(self, latents: Tensor, timestep: Tensor, prompt_embeds: Tensor) -> tuple[Tensor, ...]:
        """[batch, frames, channels, height, width], [batch] and [batch, text, width] to streams, temb and tables."""
        config = self.config
        grid = Grid(latents, config.patch_size, _AXES)
        temb = self.time_embedding(self.time_proj(timestep).to(self.dtype))
        encoder_hidden_states = self.patch_embed.text_proj(prompt_embeds.to(self.dtype))
        hidden_states = grid.embed_frames(self.patch_embed.proj, latents.to(self.dtype).flatten(0, 1))
        if config.use_rotary_positional_embeddings:
            return hidden_states, encoder_hidden_states, temb, *_rotary(config, *grid.sides)
        hidden_states = hidden_states + _positions(config, *grid.sides).to(self.dtype)
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


class _Block(Block):
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


class _Final(Layers):
    layers = ("norm_final", "norm_out", "proj_out")

    def forward(self, hidden_states: Tensor, temb: Tensor, latents: Tensor) -> Tensor:
        """[batch, image, width] to the shape of the latents, float32."""
        grid = Grid(latents, self.config.patch_size, _AXES)
        return grid.latents(self.proj_out(self.norm_out(self.norm_final(hidden_states), temb=temb)), "cpp")


def _watch(model: Any) -> Watch:
    def arguments(given: Mapping[str, Tensor]) -> dict[str, Any]:
        return {"image_rotary_emb": _pipeline_rotary(model.config, given["latents"])}

    def others(taken: Mapping[str, Any]) -> Tensors:
        turns = taken["image_rotary_emb"]
        return tensors.rotary(turns) if turns else {}

    return Watch(others, arguments=arguments)


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


FAMILY = Family(
    title="CogVideoX 1.0",
    model=CogVideoXTransformer3DModel,
    pipelines=("CogVideoXPipeline",),
    fixed=lambda config: {
        "patch_size_t": [None],
        "ofs_embed_dim": [None],
        "use_learned_positional_embeddings": [False],
        "attention_head_dim": range(16, 1025, 16),
        "out_channels": [config["in_channels"]],
    },
    embed=_Embed,
    cut=_cut,
    final=_Final,
    watch=_watch,
    texts=_texts,
    calls="cogvideox",
    published=_SCHEDULER,
    sampling=lambda _: Sampling(fused(6.0, "uncond"), steps=50),
)
