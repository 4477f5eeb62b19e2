"""Stable Diffusion 3 and 3.5: blocks over an image and a text stream; the last one leaves the text behind.

Stable Diffusion 3.5 medium's first blocks have a second attention over the picture alone (`dual`).
"""

from __future__ import annotations

__all__ = ["FAMILY"]

from collections.abc import Mapping
from functools import partial
from typing import Any

from diffusers import SD3Transformer2DModel
from diffusers.models.attention import JointTransformerBlock
from torch import Tensor, nn

from dbcache_export.families import inputs, tensors
from dbcache_export.families.family import Cut, Family, Kind, Sampling, Source
from dbcache_export.families.layers import Block, Layers, Modulated
from dbcache_export.families.patches import embed_patches, pack, to_packed, unpack
from dbcache_export.families.sd3_text import sd3_text
from dbcache_export.families.sizes import Picture
from dbcache_export.families.watched import Watch, text_first
from dbcache_export.guidance import fused
from dbcache_export.template import fake_module

#: CLIP's 77 and T5's 512 tokens.
_MAX_TEXT = 589


def _cut(model: Any, source: Source) -> Cut:
    config, width = source.config, source.width
    layers, patch = config["num_layers"], config["patch_size"]
    places = [(place in config["dual_attention_layers"], place == layers - 1) for place in range(layers)]
    kinds = {place: _kind(source, *place) for place in dict.fromkeys(places)}
    return Cut(
        description=f"Stable Diffusion 3 transformer: {layers} joint blocks, width {width}",
        sizes=Picture(
            channels=config["in_channels"],
            patch=patch,
            cells=config["sample_size"],
            max_cells=config["pos_embed_max_size"] * patch,
        ),
        inputs={
            "timestep": inputs.TIMESTEP,
            "prompt_embeds": inputs.states(config["joint_attention_dim"]),
            "pooled_projections": inputs.pooled(config["pooled_projection_dim"]),
            "img_ids": inputs.GRID,
        },
        inside={**tensors.streams(width), "temb": ("batch", width)},
        lists={"transformer_blocks": [kinds[place] for place in places]},
        text=(1, _MAX_TEXT),
    )


def _kind(source: Source, dual: bool, last: bool) -> Kind:
    """Blocks with or without a second attention, and with or without an output for the text."""
    module = fake_module(source.fake, source.options.compute, partial(_block, source.config, dual, last))
    return Kind(("dual" if dual else "joint") + ("_last" if last else ""), module, tensors.STREAMS[: 1 if last else 2])


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


class _Embed(Layers):
    """From the inputs of a request and a step to the streams and what every block needs."""

    layers = ("pos_embed", "time_text_embed", "context_embedder")

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


class _Block(Block):
    def forward(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor, temb: Tensor
    ) -> Tensor | tuple[Tensor, Tensor]:
        """[batch, image, width] and [batch, text, width] to the same, or to the first alone."""
        text, image = self.block(hidden_states=hidden_states, encoder_hidden_states=encoder_hidden_states, temb=temb)
        return image if text is None else (image, text)


class _Final(Modulated):
    def forward(self, hidden_states: Tensor, temb: Tensor) -> Tensor:
        """[batch, image, width] to [batch, image, patch features], float32."""
        return to_packed(self.projected(hidden_states, temb), self.config.patch_size).float()


def _watch(model: Any) -> Watch:
    patch = model.config.patch_size
    return Watch(
        made=text_first,
        arguments=lambda given: {"hidden_states": unpack(given["latents"], given["img_ids"], patch)},
        packed=lambda _, prediction: pack(prediction, patch),
    )


FAMILY = Family(
    title="Stable Diffusion 3, 3.5",
    model=SD3Transformer2DModel,
    pipelines=("StableDiffusion3Pipeline",),
    fixed=lambda config: {"qk_norm": (None, "rms_norm"), "out_channels": (None, config["in_channels"])},
    embed=_Embed,
    cut=_cut,
    final=_Final,
    watch=_watch,
    texts=sd3_text,
    calls="sd3",
    sampling=lambda _: Sampling(fused(7.0, "uncond"), steps=28),
)
