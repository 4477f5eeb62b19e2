"""Wan 2.1 and 2.2: blocks over a video, each of which looks at the text, which stays as it is."""

from __future__ import annotations

__all__ = ["plan", "transformer"]

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from dbcache_export import checkpoint, spec
from dbcache_export.errors import ExportError, listed
from dbcache_export.families.literal import literal_timesteps
from dbcache_export.families.parts import configuration, under
from dbcache_export.families.positions import counted, rotary_tables
from dbcache_export.families.rotary import mix, rotate
from dbcache_export.families.video import Transformer, Video, low_noise, original, templates, video_plan
from dbcache_export.families.video_text import t5_texts
from dbcache_export.families.watched import Watched
from dbcache_export.folder import arguments, read_json
from dbcache_export.guidance import separate
from dbcache_export.pipeline_calls import CALLS
from dbcache_export.prompts import WAN
from dbcache_export.scheduler import prediction, scheduler, train_steps
from dbcache_export.spec import DTYPES, Graph, Options, Plan
from dbcache_export.template import fake_module, keep_float32

_CONTEXT = ("hidden_states", "encoder_hidden_states", "modulation", "rotary_cos", "rotary_sin")
#: What diffusers keeps in float32 in models of 16 bits.
_FLOAT32 = ("time_embedder", "scale_shift_table", "norm1", "norm2", "norm3")
#: Channels of the latents of Wan 2.2's own autoencoder: (pixels per cell, default width, height, frames, fps).
_AUTOENCODERS = {16: (8, 832, 480, 81, 16.0), 48: (16, 1280, 704, 121, 24.0)}
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


def plan(folder: Path, options: Options, fake: FakeTensorMode) -> Plan:
    """The plan of a Wan text-to-video pipeline or transformer.

    Raises:
        ExportError: It is a variant with other inputs, or its two transformers do not fit each other.
    """
    inner = folder / "transformer" if (folder / "transformer").is_dir() else folder
    parts = transformer(inner, options, fake)
    sampling = scheduler(folder, CALLS["wan"], _SCHEDULER)
    second = _second(folder, parts, sampling)
    return video_plan(
        folder,
        options,
        fake,
        parts,
        texts=t5_texts(folder, parts.tensors, _MAX_TEXT, "zeroed", options, fake, WAN),
        scheduler=sampling,
        guidance=separate(_GUIDANCE[0] if second else 5.0),
        steps=40 if second else 50,
        prediction=prediction(folder, _SCHEDULER),
        second=second,
    )


def _second(
    folder: Path, parts: Transformer, sampling: Mapping[str, Any]
) -> tuple[spec.LowNoise, checkpoint.Checkpoint] | None:
    """The transformer of the later steps, in pipelines that have one.

    Raises:
        ExportError: The pipeline does not say when it takes over, or it is of another form.
    """
    other, index = folder / "transformer_2", folder / "model_index.json"
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
    if sampling.get("inverted"):
        raise ExportError(
            f"{folder}: invert_sigmas does not go with two transformers, of which the second takes over as noise falls",
            "switch it off",
        )
    return low_noise(parts, other, ratio * train_steps(sampling), _GUIDANCE[1], lambda: _reference(other))


def transformer(folder: Path, options: Options, fake: FakeTensorMode) -> Transformer:
    """Cuts the transformer in `folder` into embed, blocks and final.

    Raises:
        ExportError: It is a variant with other inputs, such as an image.
    """
    fixed: dict[str, Sequence[Any]] = {"image_dim": [None], "added_kv_proj_dim": [None], "pos_embed_seq_len": [None]}
    fixed |= {"patch_size": [(1, side, side) for side in (1, 2)]}

    def understood(config: Mapping[str, Any]) -> Mapping[str, Sequence[Any]]:
        return fixed | {"out_channels": [None, config["in_channels"]]}

    config = configuration(folder, WanTransformer3DModel, understood)
    head = config["attention_head_dim"]
    width = config["num_attention_heads"] * head
    compute, layers = options.compute, config["num_layers"]
    downscale, picture_width, picture_height, frames, fps = _AUTOENCODERS.get(config["in_channels"], _AUTOENCODERS[16])
    video = Video(
        layout="bcfhw",
        channels=config["in_channels"],
        downscale=downscale,
        temporal_downscale=_TEMPORAL_DOWNSCALE,
        patch=config["patch_size"][1],
        width=picture_width,
        height=picture_height,
        frames=frames,
        fps=fps,
    )
    tensors = {
        "latents": spec.Tensor("f32", video.latents()),
        "timestep": spec.Tensor("f32", ("batch",)),
        "prompt_embeds": spec.Tensor("f32", ("batch", "text", config["text_dim"])),
        "hidden_states": spec.Tensor(compute, ("batch", "image", width)),
        "encoder_hidden_states": spec.Tensor(compute, ("batch", "text", width)),
        "temb": spec.Tensor(compute, ("batch", width)),
        "modulation": spec.Tensor(compute, ("batch", 6, width)),
        "rotary_cos": spec.Tensor("f32", ("image", 1, head)),
        "rotary_sin": spec.Tensor("f32", ("image", 1, head)),
        "prediction": spec.Tensor("f32", video.latents()),
    }
    inputs = {
        "latents": {"per": "step", "from": "latents"},
        "timestep": {"per": "step", "from": "timestep"},
        "prompt_embeds": {"per": "request", "from": "text"},
    }
    model: Any = fake_module(fake, compute, lambda: WanTransformer3DModel(**(config | {"num_layers": 1})))
    keep_float32(fake, model, _FLOAT32)
    literal_timesteps(model)
    template = templates(tensors, video.patch)
    kind = template("block", _Block(model.blocks[0]), _CONTEXT, _CONTEXT[:1])
    return Transformer(
        description=f"Wan transformer: {layers} blocks, width {width}",
        checkpoint=checkpoint.read(folder, "transformer"),
        video=video,
        tensors=tensors,
        inputs=inputs,
        streams=_CONTEXT[:1],
        embed=Graph(
            "embed.onnx",
            template("embed", _Embed(model, DTYPES[compute][0]), tuple(inputs), (*_CONTEXT, "temb")),
            "transformer",
        ),
        blocks=tuple(
            spec.Block("block", Graph(f"block_{i:03}.onnx", kind, "transformer", under(f"blocks.{i}.")), group="blocks")
            for i in range(layers)
        ),
        final=Graph(
            "final.onnx",
            template("final", _Final(model), ("hidden_states", "temb", "latents"), ("prediction",)),
            "transformer",
        ),
        reference=lambda: _reference(folder),
        text=(1, _MAX_TEXT),
    )


class _Embed(nn.Module):
    """From the inputs of a request and a step to the stream and what every block needs."""

    def __init__(self, model: WanTransformer3DModel, dtype: torch.dtype) -> None:
        super().__init__()
        self.patch_embedding = model.patch_embedding
        self.condition_embedder = model.condition_embedder
        self.patch: int = model.config.patch_size[1]
        self.widths = [model.rope.t_dim, model.rope.h_dim, model.rope.w_dim]
        self.dtype = dtype

    def forward(self, latents: Tensor, timestep: Tensor, prompt_embeds: Tensor) -> tuple[Tensor, ...]:
        """[batch, channels, frames, height, width], [batch] and [batch, text, width]."""
        _, _, frames, height, width = latents.shape
        hidden_states = self.patch_embedding(latents.to(self.dtype)).flatten(2).transpose(1, 2)
        temb, modulation, text, _ = self.condition_embedder(timestep, prompt_embeds.to(self.dtype))
        places = counted(frames, height // self.patch, width // self.patch)
        cos, sin = rotary_tables(places, self.widths, 10000.0)
        return hidden_states, text, modulation.unflatten(1, (6, -1)), cos[:, None], sin[:, None], temb


class _Attention:
    """The processor of a WanAttention, which turns pairs of features without writing into slices."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: None = None,
        rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        seen = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query = attn.norm_q(attn.to_q(hidden_states)).unflatten(2, (attn.heads, -1))
        key = attn.norm_k(attn.to_k(seen)).unflatten(2, (attn.heads, -1))
        value = attn.to_v(seen).unflatten(2, (attn.heads, -1))
        if rotary_emb is not None:
            query, key = rotate(query, *rotary_emb), rotate(key, *rotary_emb)
        projected: Tensor = attn.to_out[0](mix(query, key, value, None))
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
        modulation: Tensor,
        rotary_cos: Tensor,
        rotary_sin: Tensor,
    ) -> Tensor:
        """[batch, image, width] to the same."""
        video: Tensor = self.block(hidden_states, encoder_hidden_states, modulation, (rotary_cos, rotary_sin))
        return video


class _Final(nn.Module):
    def __init__(self, model: WanTransformer3DModel) -> None:
        super().__init__()
        self.norm_out = model.norm_out
        self.proj_out = model.proj_out
        self.scale_shift_table = model.scale_shift_table
        self.patch: int = model.config.patch_size[1]

    def forward(self, hidden_states: Tensor, temb: Tensor, latents: Tensor) -> Tensor:
        """[batch, image, width] to the shape of the latents, which are taken for that shape only; float32."""
        batch, channels, frames, height, width = latents.shape
        rows, columns = height // self.patch, width // self.patch
        torch._check(hidden_states.shape[1] == frames * rows * columns)
        shift, scale = (self.scale_shift_table + temb[:, None]).chunk(2, dim=1)
        normed = (self.norm_out(hidden_states.float()) * (1 + scale) + shift).to(hidden_states.dtype)
        cells = self.proj_out(normed).reshape(batch, frames, rows, columns, self.patch, self.patch, channels)
        return cells.permute(0, 6, 1, 2, 4, 3, 5).reshape(latents.shape).float()


def _reference(folder: Path) -> Watched:
    model = original(WanTransformer3DModel, folder)
    kept: dict[str, Tensor] = {}  # no block takes temb, the last layers do
    model.condition_embedder.register_forward_hook(lambda _, __, result: kept.update(temb=result[0]))

    def arguments(inputs: Mapping[str, Tensor]) -> dict[str, Any]:
        return {
            "hidden_states": inputs["latents"],
            "encoder_hidden_states": inputs["prompt_embeds"],
            "timestep": inputs["timestep"],
        }

    def named(taken: dict[str, Any], result: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        cos, sin = (table[0] for table in taken["rotary_emb"])
        inputs = {name: taken[name] for name in _CONTEXT[:2]}
        inputs |= {"modulation": taken["temb"], "rotary_cos": cos, "rotary_sin": sin}
        return inputs | kept, {"hidden_states": result}

    return Watched(model, model.blocks, arguments, named)
