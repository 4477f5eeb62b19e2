"""DiT: blocks over the picture; each embeds the timestep and the class label on its own."""

from __future__ import annotations

__all__ = ["plan", "transformer"]

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DiTTransformer2DModel
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional

from dbcache_export import checkpoint, spec
from dbcache_export.errors import ExportError
from dbcache_export.families.literal import literal_timesteps
from dbcache_export.families.parts import Transformer, configuration, picture_plan, templates, under
from dbcache_export.families.patches import embed_patches, pack, projected, sinusoidal_positions, to_packed, unpack
from dbcache_export.families.watched import Watched
from dbcache_export.guidance import fused
from dbcache_export.pipeline_calls import CALLS
from dbcache_export.scheduler import prediction, scheduler
from dbcache_export.spec import DTYPES, Graph, Options, Plan
from dbcache_export.template import fake_module

_CONTEXT = ("timestep_sinusoids", "label")


def plan(folder: Path, options: Options, fake: FakeTensorMode) -> Plan:
    """The plan of a DiT pipeline.

    Raises:
        ExportError: There is no scheduler.
    """
    inner = folder / "transformer"
    if not (folder / "scheduler").is_dir():
        raise ExportError(f"{folder} has no scheduler", "give the folder of the whole pipeline")
    return picture_plan(
        folder,
        options,
        fake,
        transformer(inner, options, fake),
        scheduler=scheduler(folder, CALLS["dit"]),
        guidance=fused(4.0, "cond"),
        steps=50,
        prediction=prediction(folder),
    )


def transformer(folder: Path, options: Options, fake: FakeTensorMode) -> Transformer:
    """Cuts the transformer in `folder` into embed, blocks and final.

    Raises:
        ExportError: It is a variant with other inputs.
    """
    fixed = {"norm_type": ("ada_norm_zero",), "upcast_attention": (False,), "dropout": (0.0,)}

    def understood(config: Mapping[str, Any]) -> Mapping[str, Sequence[Any]]:
        return fixed | {"out_channels": (None, config["in_channels"], 2 * config["in_channels"])}

    config = configuration(folder, DiTTransformer2DModel, understood)
    dtype, layers, labels = DTYPES[options.compute][0], config["num_layers"], config["num_embeds_ada_norm"]
    width = config["num_attention_heads"] * config["attention_head_dim"]
    features = config["in_channels"] * config["patch_size"] ** 2
    tensors = {
        "latents": spec.Tensor("f32", ("batch", "image", features)),
        "timestep": spec.Tensor("f32", ("batch",)),
        "class_labels": spec.Tensor("i64", ("batch",)),
        "img_ids": spec.Tensor("f32", ("image", 3)),
        "hidden_states": spec.Tensor(options.compute, ("batch", "image", width)),
        "timestep_sinusoids": spec.Tensor(options.compute, ("batch", 256)),
        "label": spec.Tensor("i64", ("batch", 1)),
        "prediction": spec.Tensor("f32", ("batch", "image", features)),
    }
    inputs: dict[str, dict[str, Any]] = {
        "latents": {"per": "step", "from": "latents"},
        "timestep": {"per": "step", "from": "timestep"},
        # The last row of the table of labels is that of no label.
        "class_labels": {"per": "request", "from": {"given": {"unconditional": labels}}},
        "img_ids": {"per": "request", "from": "grid"},
    }
    model: Any = fake_module(fake, options.compute, lambda: DiTTransformer2DModel(**(config | {"num_layers": 1})))
    template = templates(tensors)
    streams = ("hidden_states",)
    embed = _Embed(model, dtype)  # before the block gives its sinusoids away
    block = template("block", _Block(model.transformer_blocks[0], dtype), (*streams, *_CONTEXT), streams)
    return Transformer(
        description=f"DiT transformer: {layers} blocks, width {width}, {labels} labels",
        checkpoint=checkpoint.read(folder, "transformer"),
        tensors=tensors,
        inputs=inputs,
        streams=streams,
        embed=Graph(
            "embed.onnx",
            template("embed", embed, tuple(inputs), (*streams, *_CONTEXT)),
            "transformer",
            projected,
        ),
        blocks=tuple(
            spec.Block(
                "block",
                Graph(f"block_{i:03}.onnx", block, "transformer", under(f"transformer_blocks.{i}.")),
                group="transformer_blocks",
            )
            for i in range(layers)
        ),
        final=Graph(
            "final.onnx",
            template("final", _Final(model, dtype), (*streams, *_CONTEXT), ("prediction",)),
            "transformer",
            lambda name: (
                name.replace("emb.", "transformer_blocks.0.norm1.emb.", 1) if name.startswith("emb.") else name
            ),
        ),
        reference=lambda: _reference(folder),
        shifts_latents=False,
        channels=config["in_channels"],
        patch=config["patch_size"],
        cells=config["sample_size"],
        oblong=False,
        examples={"class_labels": lambda shape, random: torch.randint(0, labels + 1, tuple(shape), generator=random)},
    )


class _Embed(nn.Module):
    """From the inputs of a request and a step to the stream and what every block needs."""

    def __init__(self, model: Any, dtype: torch.dtype) -> None:
        super().__init__()
        self.proj = model.pos_embed.proj
        self.time_proj = model.transformer_blocks[0].norm1.emb.time_proj
        self.width: int = model.inner_dim
        self.base: int = model.pos_embed.base_size
        self.dtype = dtype
        literal_timesteps(self)

    def forward(
        self, latents: Tensor, timestep: Tensor, class_labels: Tensor, img_ids: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Sinusoids are the same for every block; what each makes of them is not."""
        patches = embed_patches(self.proj, latents.to(self.dtype))
        positions = sinusoidal_positions(img_ids, self.width, self.base, 1.0)
        sinusoids = self.time_proj(timestep).to(self.dtype)
        return (patches + positions).to(self.dtype), sinusoids, class_labels[:, None]


class _Block(nn.Module):
    def __init__(self, block: Any, dtype: torch.dtype) -> None:
        super().__init__()
        block.norm1.emb.time_proj = nn.Identity()
        self.block = block
        self.dtype = dtype

    def forward(self, hidden_states: Tensor, timestep_sinusoids: Tensor, label: Tensor) -> Tensor:
        """[batch, image, width] to the same."""
        result: Tensor = self.block(hidden_states, timestep=timestep_sinusoids, class_labels=label[:, 0])
        return result


class _Final(nn.Module):
    def __init__(self, model: Any, dtype: torch.dtype) -> None:
        super().__init__()
        self.emb = model.transformer_blocks[0].norm1.emb
        self.norm_out = model.norm_out
        self.proj_out_1 = model.proj_out_1
        self.proj_out_2 = model.proj_out_2
        self.patch: int = model.config.patch_size
        self.channels: int = model.config.in_channels
        self.dtype = dtype

    def forward(self, hidden_states: Tensor, timestep_sinusoids: Tensor, label: Tensor) -> Tensor:
        """[batch, image, width] to [batch, image, patch features], float32; the first block's embedding modulates."""
        conditioning = self.emb(timestep_sinusoids, label[:, 0], hidden_dtype=self.dtype)
        shift, scale = self.proj_out_1(functional.silu(conditioning)).chunk(2, dim=1)
        tokens = self.proj_out_2(self.norm_out(hidden_states) * (1 + scale[:, None]) + shift[:, None])
        return to_packed(tokens, self.patch, self.channels).float()


def _reference(folder: Path) -> Watched:
    model: Any = DiTTransformer2DModel.from_pretrained(folder, torch_dtype=torch.float32).eval()
    patch, channels = model.config.patch_size, model.config.in_channels
    time_proj = model.transformer_blocks[0].norm1.emb.time_proj

    def arguments(inputs: Mapping[str, Tensor]) -> dict[str, Any]:
        return {
            "hidden_states": unpack(inputs["latents"], inputs["img_ids"], patch),
            "timestep": inputs["timestep"],
            "class_labels": inputs["class_labels"],
        }

    def named(taken: dict[str, Any], result: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        given = {
            "hidden_states": taken["hidden_states"],
            "timestep_sinusoids": time_proj(taken["timestep"]),
            "label": taken["class_labels"][:, None],
        }
        return given, {"hidden_states": result}

    def packed(_: Mapping[str, Tensor], prediction: Tensor) -> Tensor:
        return pack(prediction[:, :channels], patch)

    return Watched(model, model.transformer_blocks, arguments, named, packed)
