"""Stable Diffusion 3 and 3.5: blocks over an image and a text stream; the last one leaves the text behind.

Stable Diffusion 3.5 medium's first blocks have a second attention over the picture alone (`dual`).
"""

from __future__ import annotations

__all__ = ["plan", "transformer"]

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import SD3Transformer2DModel
from diffusers.models.attention import JointTransformerBlock
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from dbcache_export import checkpoint, spec
from dbcache_export.families.literal import literal_timesteps
from dbcache_export.families.parts import Transformer, configuration, picture_plan, templates, under
from dbcache_export.families.patches import embed_patches, pack, to_packed, unpack
from dbcache_export.families.sd3_text import sd3_text
from dbcache_export.families.watched import Watched
from dbcache_export.guidance import fused
from dbcache_export.pipeline_calls import CALLS
from dbcache_export.scheduler import prediction, scheduler
from dbcache_export.spec import DTYPES, Graph, Options, Plan
from dbcache_export.template import fake_module

_STREAMS = ("hidden_states", "encoder_hidden_states")
#: CLIP's 77 and T5's 512 tokens.
_MAX_TEXT = 589


def plan(folder: Path, options: Options, fake: FakeTensorMode) -> Plan:
    """The plan of a Stable Diffusion 3 pipeline or transformer."""
    inner = folder / "transformer" if (folder / "transformer").is_dir() else folder
    parts = transformer(inner, options, fake)
    return picture_plan(
        folder,
        options,
        fake,
        parts,
        texts=sd3_text(folder, parts.tensors, options, fake),
        scheduler=scheduler(folder, CALLS["sd3"]),
        guidance=fused(7.0, "uncond"),
        steps=28,
        prediction=prediction(folder),
    )


def transformer(folder: Path, options: Options, fake: FakeTensorMode) -> Transformer:
    """Cuts the transformer in `folder` into embed, blocks and final.

    Raises:
        ExportError: It is a variant with other inputs.
    """
    config = configuration(
        folder,
        SD3Transformer2DModel,
        lambda config: {"qk_norm": (None, "rms_norm"), "out_channels": (None, config["in_channels"])},
    )
    dtype, layers = DTYPES[options.compute][0], config["num_layers"]
    width = config["num_attention_heads"] * config["attention_head_dim"]
    features = config["patch_size"] ** 2
    tensors = {
        "latents": spec.Tensor("f32", ("batch", "image", config["in_channels"] * features)),
        "timestep": spec.Tensor("f32", ("batch",)),
        "prompt_embeds": spec.Tensor("f32", ("batch", "text", config["joint_attention_dim"])),
        "pooled_projections": spec.Tensor("f32", ("batch", config["pooled_projection_dim"])),
        "img_ids": spec.Tensor("f32", ("image", 3)),
        "hidden_states": spec.Tensor(options.compute, ("batch", "image", width)),
        "encoder_hidden_states": spec.Tensor(options.compute, ("batch", "text", width)),
        "temb": spec.Tensor(options.compute, ("batch", width)),
        "prediction": spec.Tensor("f32", ("batch", "image", config["in_channels"] * features)),
    }
    inputs = {
        "latents": {"per": "step", "from": "latents"},
        "timestep": {"per": "step", "from": "timestep"},
        "prompt_embeds": {"per": "request", "from": "text"},
        "pooled_projections": {"per": "request", "from": "text"},
        "img_ids": {"per": "request", "from": "grid"},
    }
    model = fake_module(fake, options.compute, lambda: SD3Transformer2DModel(**(config | {"num_layers": 1})))
    template = templates(tensors)
    kinds: dict[tuple[bool, bool], spec.Template] = {}
    blocks = []
    for i in range(layers):
        dual, last = i in config["dual_attention_layers"], i == layers - 1
        if (dual, last) not in kinds:
            name = ("dual" if dual else "joint") + ("_last" if last else "")
            module = fake_module(fake, options.compute, partial(_block, config, dual, last))
            kinds[dual, last] = template(name, module, (*_STREAMS, "temb"), _STREAMS[: 1 if last else 2])
        kind = kinds[dual, last]
        graph = Graph(f"block_{i:03}.onnx", kind, "transformer", under(f"transformer_blocks.{i}."))
        blocks.append(spec.Block(kind.name, graph, group="transformer_blocks"))
    return Transformer(
        description=f"Stable Diffusion 3 transformer: {layers} joint blocks, width {width}",
        checkpoint=checkpoint.read(folder, "transformer"),
        tensors=tensors,
        inputs=inputs,
        streams=_STREAMS,
        embed=Graph(
            "embed.onnx",
            template("embed", _Embed(model, dtype), tuple(inputs), (*_STREAMS, "temb")),
            "transformer",
        ),
        blocks=tuple(blocks),
        final=Graph(
            "final.onnx",
            template("final", _Final(model), ("hidden_states", "temb"), ("prediction",)),
            "transformer",
        ),
        reference=lambda: _reference(folder),
        channels=config["in_channels"],
        patch=config["patch_size"],
        cells=config["sample_size"],
        max_cells=config["pos_embed_max_size"] * config["patch_size"],
        text=(1, _MAX_TEXT),
    )


def _block(config: Mapping[str, Any], dual: bool, last: bool) -> nn.Module:
    heads, head = config["num_attention_heads"], config["attention_head_dim"]
    return _Block(
        JointTransformerBlock(
            dim=heads * head,
            num_attention_heads=heads,
            attention_head_dim=head,
            context_pre_only=last,
            qk_norm=config["qk_norm"],
            use_dual_attention=dual,
        )
    )


class _Embed(nn.Module):
    """From the inputs of a request and a step to the streams and what every block needs."""

    def __init__(self, model: SD3Transformer2DModel, dtype: torch.dtype) -> None:
        super().__init__()
        self.pos_embed = model.pos_embed
        self.time_text_embed = model.time_text_embed
        self.context_embedder = model.context_embedder
        self.dtype = dtype
        literal_timesteps(self)

    def forward(
        self, latents: Tensor, timestep: Tensor, prompt_embeds: Tensor, pooled_projections: Tensor, img_ids: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Places the picture in the middle of the table of positions."""
        side = self.pos_embed.pos_embed_max_size
        places = img_ids[:, 1:].long()
        first = (side - (places.amax(0) + 1)) // 2
        row, column = (places + first).unbind(1)
        positions = self.pos_embed.pos_embed[0, row * side + column]
        patches = embed_patches(self.pos_embed.proj, latents.to(self.dtype))
        hidden_states = (patches + positions).to(self.dtype)
        temb = self.time_text_embed(timestep, pooled_projections.to(self.dtype))
        return hidden_states, self.context_embedder(prompt_embeds.to(self.dtype)), temb


class _Block(nn.Module):
    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor, temb: Tensor
    ) -> Tensor | tuple[Tensor, Tensor]:
        """[batch, image, width] and [batch, text, width] to the same, or to the first alone."""
        text, image = self.block(hidden_states=hidden_states, encoder_hidden_states=encoder_hidden_states, temb=temb)
        return image if text is None else (image, text)


class _Final(nn.Module):
    def __init__(self, model: SD3Transformer2DModel) -> None:
        super().__init__()
        self.norm_out = model.norm_out
        self.proj_out = model.proj_out
        self.patch: int = model.config.patch_size

    def forward(self, hidden_states: Tensor, temb: Tensor) -> Tensor:
        """[batch, image, width] to [batch, image, patch features], float32."""
        return to_packed(self.proj_out(self.norm_out(hidden_states, temb)), self.patch).float()


def _reference(folder: Path) -> Watched:
    model: Any = SD3Transformer2DModel.from_pretrained(folder, torch_dtype=torch.float32).eval()
    patch = model.config.patch_size

    def arguments(inputs: Mapping[str, Tensor]) -> dict[str, Any]:
        return {
            "hidden_states": unpack(inputs["latents"], inputs["img_ids"], patch),
            "encoder_hidden_states": inputs["prompt_embeds"],
            "pooled_projections": inputs["pooled_projections"],
            "timestep": inputs["timestep"],
        }

    def named(taken: dict[str, Any], result: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        given = {"hidden_states": result[1], "encoder_hidden_states": result[0]}
        return (
            {name: taken[name] for name in (*_STREAMS, "temb")},
            {name: value for name, value in given.items() if value is not None},
        )

    return Watched(model, model.transformer_blocks, arguments, named, lambda _, prediction: pack(prediction, patch))
