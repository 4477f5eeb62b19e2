"""FLUX.1: double blocks over an image and a text stream, then single blocks over both joined."""

from __future__ import annotations

__all__ = ["FAMILY"]

from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor

from dbcache_export.families import inputs, tensors
from dbcache_export.families.family import Cut, Family, Kind, Sampling, Source
from dbcache_export.families.flux_text import flux_text
from dbcache_export.families.layers import Block, Layers
from dbcache_export.families.sizes import Picture
from dbcache_export.families.watched import Watch, text_first
from dbcache_export.guidance import NONE, embedded

#: Latent cells on each side of a token.
_PATCH = 2
#: diffusers' FLUX pipeline makes pictures of 128 latent cells a side unless told otherwise.
_DEFAULT_CELLS = 128
_MAX_TEXT = 512


def _sampling(source: Source) -> Sampling:
    """The distilled model without guidance is made for few steps."""
    return Sampling(embedded(3.5), steps=28) if source.config["guidance_embeds"] else Sampling(NONE, steps=4)


def _cut(model: Any, source: Source) -> Cut:
    config, width = source.config, source.width
    doubles, singles = config["num_layers"], config["num_single_layers"]
    double = Kind("double", _Block(model.transformer_blocks[0]))
    single = Kind("single", _Block(model.single_transformer_blocks[0]), joins_streams=True)
    return Cut(
        description=f"FLUX transformer: {doubles} double and {singles} single blocks, width {width}",
        sizes=Picture(config["in_channels"] // _PATCH**2, _PATCH, _DEFAULT_CELLS),
        inputs={
            "timestep": inputs.SIGMA,
            **({"guidance": inputs.GUIDANCE} if config["guidance_embeds"] else {}),
            "prompt_embeds": inputs.states(config["joint_attention_dim"]),
            "pooled_projections": inputs.pooled(config["pooled_projection_dim"]),
            "img_ids": inputs.GRID,
            "txt_ids": inputs.Input("zeros", ("text", 3)),
        },
        inside={
            **tensors.streams(width),
            "temb": ("batch", width),
            **tensors.tables("total", config["attention_head_dim"]),
        },
        lists={"transformer_blocks": [double] * doubles, "single_transformer_blocks": [single] * singles},
        text=(1, _MAX_TEXT),
    )


class _Embed(Layers):
    """From the inputs of a request and a step to the streams and what every block needs.

    Everything that crosses the engine's boundary is float32. In 16-bit models sigma and guidance stay float32 up to
    their sinusoids; diffusers rounds them first, which in bfloat16 leaves 8 bits of the timestep.
    """

    layers = ("x_embedder", "context_embedder", "time_text_embed", "pos_embed")

    def forward(
        self,
        latents: Tensor,
        timestep: Tensor,
        prompt_embeds: Tensor,
        pooled_projections: Tensor,
        img_ids: Tensor,
        txt_ids: Tensor,
        guidance: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """The streams, the conditioning of the modulations, and the rotary tables.

        Args:
            latents: [batch, image, patch features].
            timestep: [batch], sigma.
            prompt_embeds: [batch, text, text width].
            pooled_projections: [batch, pooled width].
            img_ids: [image, 3].
            txt_ids: [text, 3].
            guidance: [batch], where the model embeds the scale.

        Returns:
            hidden_states [batch, image, width], encoder_hidden_states [batch, text, width], temb [batch, width],
            rotary_cos and rotary_sin [text + image, head width], float32.
        """
        scales = (timestep * 1000,) if guidance is None else (timestep * 1000, guidance * 1000)
        temb = self.time_text_embed(*scales, pooled_projections.to(self.dtype))
        rotary_cos, rotary_sin = self.pos_embed(torch.cat((txt_ids, img_ids)))
        hidden_states = self.x_embedder(latents.to(self.dtype))
        encoder_hidden_states = self.context_embedder(prompt_embeds.to(self.dtype))
        return hidden_states, encoder_hidden_states, temb, rotary_cos, rotary_sin


class _Block(Block):
    """A block of either kind: both map (image, text) to (image, text)."""

    def forward(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor, temb: Tensor, rotary_cos: Tensor, rotary_sin: Tensor
    ) -> tuple[Tensor, Tensor]:
        """[batch, image, width] and [batch, text, width] to the same."""
        rotary = (rotary_cos, rotary_sin)
        text, image = self.block(hidden_states, encoder_hidden_states, temb, image_rotary_emb=rotary)
        return image, text


FAMILY = Family(
    title="FLUX.1",
    model=FluxTransformer2DModel,
    pipelines=("FluxPipeline",),
    fixed=lambda config: {"patch_size": (1,), "out_channels": (None, config["in_channels"])},
    few={"num_layers": 1, "num_single_layers": 1},
    embed=_Embed,
    cut=_cut,
    watch=lambda _: Watch(lambda taken: tensors.rotary(taken["image_rotary_emb"]), text_first),
    texts=lambda source, _: flux_text(
        source.folder, source.options, source.fake, embeds_guidance=source.config["guidance_embeds"]
    ),
    calls="flux",
    sampling=_sampling,
)
