"""DiT: blocks over the picture; each embeds the timestep and the class label on its own."""

from __future__ import annotations

__all__ = ["FAMILY"]

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import DiTTransformer2DModel
from torch import Tensor, nn
from torch.nn import functional

from dbcache_export.families import inputs, tensors
from dbcache_export.families.family import GRAPHS, Cut, Family, Kind, Sampling, Source
from dbcache_export.families.layers import Block, Layers
from dbcache_export.families.patches import embed_patches, pack, sinusoidal_positions, to_packed, unpack
from dbcache_export.families.sizes import Picture
from dbcache_export.families.watched import Tensors, Watch
from dbcache_export.guidance import fused
from dbcache_export.spec import Tensor as Port


def _cut(model: Any, source: Source) -> Cut:
    config, layers, width = source.config, source.config["num_layers"], source.width
    labels = config["num_embeds_ada_norm"]
    (block,) = model.transformer_blocks
    block.norm1.emb.time_proj = nn.Identity()  # embed has taken the sinusoids

    def any_label(shape: Sequence[int], random: torch.Generator) -> Tensor:
        return torch.randint(0, labels + 1, tuple(shape), generator=random)

    return Cut(
        description=f"DiT transformer: {layers} blocks, width {width}, {labels} labels",
        sizes=Picture(config["in_channels"], config["patch_size"], config["sample_size"], shifts_latents=False),
        inputs={
            "timestep": inputs.TIMESTEP,
            # The last row of the table of labels is that of no label.
            "class_labels": inputs.Input(
                {"given": {"unconditional": labels}}, ("batch",), dtype="i64", example=any_label
            ),
            "img_ids": inputs.GRID,
        },
        inside={
            "hidden_states": ("batch", "image", width),
            "timestep_sinusoids": ("batch", 256),
            "label": Port("i64", ("batch", 1)),
        },
        streams=tensors.STREAMS[:1],
        lists={"transformer_blocks": [Kind("block", _Block(block))] * layers},
        oblong=False,
    )


class _Embed(Layers):
    """From the inputs of a request and a step to the stream and what every block needs."""

    layers = ("pos_embed.proj", "transformer_blocks.0.norm1.emb.time_proj")

    def forward(
        self, latents: Tensor, timestep: Tensor, class_labels: Tensor, img_ids: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Sinusoids are the same for every block; what each makes of them is not."""
        patches = embed_patches(self.proj, latents.to(self.dtype))
        base = self.config.sample_size // self.config.patch_size
        positions = sinusoidal_positions(img_ids, patches.shape[2], base, 1.0)
        sinusoids = self.time_proj(timestep).to(self.dtype)
        return (patches + positions).to(self.dtype), sinusoids, class_labels[:, None]


class _Block(Block):
    def forward(self, hidden_states: Tensor, timestep_sinusoids: Tensor, label: Tensor) -> Tensor:
        """[batch, image, width] to the same."""
        result: Tensor = self.block(hidden_states, timestep=timestep_sinusoids, class_labels=label[:, 0])
        return result


class _Final(Layers):
    layers = ("transformer_blocks.0.norm1.emb", "norm_out", "proj_out_1", "proj_out_2")

    def forward(self, hidden_states: Tensor, timestep_sinusoids: Tensor, label: Tensor) -> Tensor:
        """[batch, image, width] to [batch, image, patch features], float32; the first block's embedding modulates."""
        conditioning = self.emb(timestep_sinusoids, label[:, 0], hidden_dtype=self.dtype)
        shift, scale = self.proj_out_1(functional.silu(conditioning)).chunk(2, dim=1)
        tokens = self.proj_out_2(self.norm_out(hidden_states) * (1 + scale[:, None]) + shift[:, None])
        return to_packed(tokens, self.config.patch_size, self.config.in_channels).float()


def _watch(model: Any) -> Watch:
    patch, channels = model.config.patch_size, model.config.in_channels
    time_proj = model.transformer_blocks[0].norm1.emb.time_proj

    def others(taken: Mapping[str, Any]) -> Tensors:
        return {"timestep_sinusoids": time_proj(taken["timestep"]), "label": taken["class_labels"][:, None]}

    return Watch(
        others,
        arguments=lambda given: {"hidden_states": unpack(given["latents"], given["img_ids"], patch)},
        packed=lambda _, prediction: pack(prediction[:, :channels], patch),
    )


FAMILY = Family(
    title="DiT",
    checked=GRAPHS,
    model=DiTTransformer2DModel,
    pipelines=("DiTPipeline",),
    fixed=lambda config: {
        "norm_type": ("ada_norm_zero",),
        "upcast_attention": (False,),
        "dropout": (0.0,),
        "out_channels": (None, config["in_channels"], 2 * config["in_channels"]),
    },
    embed=_Embed,
    cut=_cut,
    final=_Final,
    watch=_watch,
    calls="dit",
    needs_scheduler=True,
    sampling=lambda _: Sampling(fused(4.0, "cond"), steps=50),
)
