"""Wan 2.1 and 2.2: blocks over a video, each of which looks at the text, which stays as it is."""

from __future__ import annotations

__all__ = ["FAMILY"]

from collections.abc import Mapping
from typing import Any

from diffusers import WanTransformer3DModel
from torch import Tensor

from dbcache_export.errors import ExportError, listed
from dbcache_export.families import inputs, tensors
from dbcache_export.families.family import Cut, Family, Kind, Sampling, Second, Source
from dbcache_export.families.layers import Block, Layers, PlainAttention
from dbcache_export.families.positions import counted, rotary_tables
from dbcache_export.families.sizes import Video
from dbcache_export.families.video import Grid
from dbcache_export.families.video_text import t5_texts
from dbcache_export.families.watched import Tensors, Watch, keep
from dbcache_export.folder import arguments, read_json
from dbcache_export.guidance import separate
from dbcache_export.prompts import WAN
from dbcache_export.scheduler import train_steps

#: The folder of the transformer of the later steps, in pipelines that have one.
_SECOND = "transformer_2"
#: What diffusers keeps in float32 in models of 16 bits.
_FLOAT32 = ("time_embedder", "scale_shift_table", "norm1", "norm2", "norm3")
#: By the channels of the latents, which say whether the autoencoder is Wan 2.2's own: its sizes.
_VIDEOS: Mapping[int, Mapping[str, Any]] = {
    16: {"downscale": 8, "width": 832, "height": 480, "frames": 81, "fps": 16.0},
    48: {"downscale": 16, "width": 1280, "height": 704, "frames": 121, "fps": 24.0},
}
_TEMPORAL_DOWNSCALE = 4
_MAX_TEXT = 512
#: Scales with which pipelines of two transformers were published: of the first, and of the second.
_GUIDANCE = (4.0, 3.0)
#: The scheduler with which Wan was published.
_SCHEDULER = {
    "_class_name": "UniPCMultistepScheduler",
    "prediction_type": "flow_prediction",
    "use_flow_sigmas": True,
    "flow_shift": 3.0,
}


def _second(source: Source, scheduler: Mapping[str, Any]) -> Second | None:
    """The transformer of the later steps, in pipelines that have one.

    Raises:
        ExportError: The pipeline does not say when it takes over, or it is of another form.
    """
    folder, other, index = source.folder, source.folder / _SECOND, source.folder / "model_index.json"
    ratio = read_json(index).get("boundary_ratio") if index.is_file() or other.is_dir() else None
    if not other.is_dir():
        if ratio is not None:
            raise ExportError(
                f"{folder} has no transformer_2, but its model_index.json has the boundary_ratio {ratio}",
                "give the complete pipeline, or one transformer's folder",
            )
        return None
    if not isinstance(ratio, (int, float)) or not 0 < ratio < 1:
        raise ExportError(
            f"{folder} has two transformers, but its model_index.json has the boundary_ratio {ratio}",
            "give the complete pipeline, or one transformer's folder",
        )
    forms = [arguments(one, WanTransformer3DModel) for one in (folder / "transformer", other)]
    if forms[0] != forms[1]:
        differing = sorted(name for name in {*forms[0], *forms[1]} if forms[0].get(name) != forms[1].get(name))
        raise ExportError(
            f"the two transformers of {folder} differ in {listed(differing)}", "give a plain text-to-video pipeline"
        )
    if scheduler.get("inverted"):
        raise ExportError(
            f"{folder}: invert_sigmas does not go with two transformers, of which the second takes over as noise falls",
            "switch it off",
        )
    return Second(other, below=ratio * train_steps(scheduler), guidance=_GUIDANCE[1])


def _sampling(source: Source) -> Sampling:
    has_two = (source.folder / _SECOND).is_dir()
    return Sampling(separate(_GUIDANCE[0]), steps=40) if has_two else Sampling(separate(5.0), steps=50)


def _cut(model: Any, source: Source) -> Cut:
    config, layers, width = source.config, source.config["num_layers"], source.width
    head, channels = config["attention_head_dim"], config["in_channels"]
    video = _VIDEOS.get(channels, _VIDEOS[16])
    (block,) = model.blocks
    for attention in (block.attn1, block.attn2):
        attention.processor = PlainAttention()
    return Cut(
        description=f"Wan transformer: {layers} blocks, width {width}",
        sizes=Video(channels, config["patch_size"][1], temporal_downscale=_TEMPORAL_DOWNSCALE, **video),
        inputs={"timestep": inputs.TIMESTEP, "prompt_embeds": inputs.states(config["text_dim"])},
        inside={
            **tensors.streams(width),
            "temb": ("batch", width),
            "modulation": ("batch", 6, width),
            **tensors.tables("image", 1, head),
        },
        streams=tensors.STREAMS[:1],
        lists={"blocks": [Kind("block", _Block(block))] * layers},
        embedded=(*tensors.STREAMS, "modulation", *tensors.ROTARY, "temb"),
        text=(1, _MAX_TEXT),
    )


class _Embed(Layers):
    """From the inputs of a request and a step to the stream and what every block needs."""

    layers = ("patch_embedding", "condition_embedder")

    def prepare(self, model: Any) -> None:
        """See `Layers`."""
        self.patch: int = model.config.patch_size[1]
        self.widths = [model.rope.t_dim, model.rope.h_dim, model.rope.w_dim]

    def forward(self, latents: Tensor, timestep: Tensor, prompt_embeds: Tensor) -> tuple[Tensor, ...]:
        """[batch, channels, frames, height, width], [batch] and [batch, text, width]."""
        hidden_states = self.patch_embedding(latents.to(self.dtype)).flatten(2).transpose(1, 2)
        temb, modulation, text, _ = self.condition_embedder(timestep, prompt_embeds.to(self.dtype))
        cos, sin = rotary_tables(counted(*Grid(latents, self.patch).sides), self.widths, 10000.0)
        return hidden_states, text, modulation.unflatten(1, (6, -1)), cos[:, None], sin[:, None], temb


class _Block(Block):
    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        modulation: Tensor,
        rotary_cos: Tensor,
        rotary_sin: Tensor,
    ) -> Tensor:
        """[batch, image, width] to the same."""
        video: Tensor = self.block(hidden_states, encoder_hidden_states, modulation, (rotary_cos, rotary_sin))
        return video


class _Final(Layers):
    layers = ("norm_out", "proj_out", "scale_shift_table")

    def forward(self, hidden_states: Tensor, temb: Tensor, latents: Tensor) -> Tensor:
        """[batch, image, width] to the shape of the latents, float32."""
        grid = Grid(latents, self.config.patch_size[1])
        shift, scale = (self.scale_shift_table + temb[:, None]).chunk(2, dim=1)
        normed = (self.norm_out(hidden_states.float()) * (1 + scale) + shift).to(hidden_states.dtype)
        return grid.latents(self.proj_out(normed), "ppc")


def _watch(model: Any) -> Watch:
    kept = keep(model.condition_embedder, lambda result: {"temb": result[0]})

    def others(taken: Mapping[str, Any]) -> Tensors:
        """What the original's blocks call `temb` is their modulation; its last layers take the other one."""
        return {"modulation": taken["temb"]} | tensors.rotary(table[0] for table in taken["rotary_emb"]) | kept

    return Watch(others)


FAMILY = Family(
    title="Wan 2.1, 2.2",
    model=WanTransformer3DModel,
    pipelines=("WanPipeline",),
    fixed=lambda config: {
        "image_dim": [None],
        "added_kv_proj_dim": [None],
        "pos_embed_seq_len": [None],
        "patch_size": [(1, side, side) for side in (1, 2)],
        "out_channels": [None, config["in_channels"]],
    },
    float32=_FLOAT32,
    embed=_Embed,
    cut=_cut,
    final=_Final,
    watch=_watch,
    texts=lambda source, made: t5_texts(source, made, _MAX_TEXT, "zeroed", WAN),
    calls="wan",
    published=_SCHEDULER,
    sampling=_sampling,
    second=_second,
)
