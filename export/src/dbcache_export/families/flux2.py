"""FLUX.2: double blocks over an image and a text stream, then single blocks over both joined.

All blocks of a kind share their modulations, which `embed` makes.
"""

from __future__ import annotations

__all__ = ["FAMILY"]

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import Flux2Transformer2DModel
from torch import Tensor

from dbcache_export.families import inputs, tensors
from dbcache_export.families.family import Cut, Family, Kind, Sampling, Source
from dbcache_export.families.flux2_text import flux2_text
from dbcache_export.families.layers import Block, Layers
from dbcache_export.families.sizes import Picture
from dbcache_export.families.watched import Tensors, Watch, keep, text_first
from dbcache_export.folder import read_json
from dbcache_export.guidance import NONE, embedded, separate

#: A latent cell has the channels of two by two cells of the autoencoder, so a token is one cell of 16 pixels.
_PATCH, _DOWNSCALE, _DEFAULT_CELLS = 1, 16, 64
_MAX_TEXT = 512


def _sampling(source: Source) -> Sampling:
    """Of models that take no scale, those of klein pipelines are guided unless they say that they are distilled."""
    if source.config["guidance_embeds"]:
        return Sampling(embedded(4.0), steps=50)
    index = source.folder / "model_index.json"
    pipeline = read_json(index) if index.is_file() else {}
    is_distilled = pipeline.get("is_distilled", pipeline.get("_class_name") != "Flux2KleinPipeline")
    return Sampling(NONE, steps=4) if is_distilled else Sampling(separate(4.0), steps=50)


def _cut(model: Any, source: Source) -> Cut:
    config, width = source.config, source.width
    doubles, singles = config["num_layers"], config["num_single_layers"]
    head = config["attention_head_dim"]
    double = Kind("double", _Double(model.transformer_blocks[0]))
    single = Kind("single", _Single(model.single_transformer_blocks[0]), joins_streams=True, joined=True)
    return Cut(
        description=f"FLUX.2 transformer: {doubles} double and {singles} single blocks, width {width}",
        sizes=Picture(config["in_channels"], _PATCH, _DEFAULT_CELLS, downscale=_DOWNSCALE),
        inputs={
            "timestep": inputs.SIGMA,
            "prompt_embeds": inputs.states(config["joint_attention_dim"]),
            "img_ids": inputs.GRID,
            **({"guidance": inputs.GUIDANCE} if config["guidance_embeds"] else {}),
        },
        inside={
            **tensors.streams(width),
            "temb": ("batch", width),
            "image_modulation": ("batch", 6 * width),
            "text_modulation": ("batch", 6 * width),
            "single_modulation": ("batch", 3 * width),
            **tensors.tables("total", head),
        },
        lists={"transformer_blocks": [double] * doubles, "single_transformer_blocks": [single] * singles},
        text=(1, _MAX_TEXT),
    )


class _Embed(Layers):
    """From the inputs of a request and a step to the streams and what every block needs."""

    layers = (
        "time_guidance_embed",
        "double_stream_modulation_img",
        "double_stream_modulation_txt",
        "single_stream_modulation",
        "x_embedder",
        "context_embedder",
        "pos_embed",
    )

    def forward(
        self,
        latents: Tensor,
        timestep: Tensor,
        prompt_embeds: Tensor,
        img_ids: Tensor,
        guidance: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Ids have four axes: (0, row, column, 0) for the picture, (0, 0, 0, place) for the text."""
        temb = self._timestep(timestep * 1000, None if guidance is None else guidance * 1000)
        places = torch.arange(prompt_embeds.shape[1], dtype=torch.float32)[:, None]
        text_ids = torch.cat((torch.zeros_like(places).expand(-1, 3), places), 1)
        ids = torch.cat((text_ids, torch.cat((img_ids, torch.zeros_like(img_ids[:, :1])), 1)))
        cos, sin = self.pos_embed(ids)
        return (
            self.x_embedder(latents.to(self.dtype)),
            self.context_embedder(prompt_embeds.to(self.dtype)),
            temb,
            self.double_stream_modulation_img(temb),
            self.double_stream_modulation_txt(temb),
            self.single_stream_modulation(temb),
            cos,
            sin,
        )

    def _timestep(self, timestep: Tensor, guidance: Tensor | None) -> Tensor:
        """As the original, whose sinusoids would be rounded if the timestep had 16 bits."""
        embed = self.time_guidance_embed
        result: Tensor = embed.timestep_embedder(embed.time_proj(timestep).to(self.dtype))
        if guidance is not None:
            result = result + embed.guidance_embedder(embed.time_proj(guidance).to(self.dtype))
        return result


class _Double(Block):
    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        image_modulation: Tensor,
        text_modulation: Tensor,
        rotary_cos: Tensor,
        rotary_sin: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """[batch, image, width] and [batch, text, width] to the same."""
        text, image = self.block(
            hidden_states, encoder_hidden_states, image_modulation, text_modulation, (rotary_cos, rotary_sin)
        )
        return image, text


class _Single(Block):
    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        single_modulation: Tensor,
        rotary_cos: Tensor,
        rotary_sin: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """The same, over the text's tokens followed by the picture's."""
        text, image = self.block(
            hidden_states,
            encoder_hidden_states,
            single_modulation,
            (rotary_cos, rotary_sin),
            split_hidden_states=True,
        )
        return image, text


def _watch(model: Any) -> Watch:
    temb = keep(model.time_guidance_embed, lambda result: {"temb": result})
    text = keep(model.context_embedder, lambda result: {"text": result})

    def arguments(given: Mapping[str, Tensor]) -> dict[str, Any]:
        grid, length = given["img_ids"], given["prompt_embeds"].shape[1]
        return {
            "img_ids": torch.cat((grid, torch.zeros(len(grid), 1)), 1),
            "txt_ids": torch.stack([torch.tensor([0.0, 0.0, 0.0, place]) for place in range(length)]),
        }

    def apart(joined: Tensor) -> Tensors:
        length = text["text"].shape[1]
        return {"hidden_states": joined[:, length:], "encoder_hidden_states": joined[:, :length]}

    def others(taken: Mapping[str, Any]) -> Tensors:
        given = tensors.rotary(taken["image_rotary_emb"]) | temb
        if "temb_mod_img" in taken:
            return given | {"image_modulation": taken["temb_mod_img"], "text_modulation": taken["temb_mod_txt"]}
        return given | apart(taken["hidden_states"]) | {"single_modulation": taken["temb_mod"]}

    def made(result: Any) -> Tensors:
        """Before single blocks, the original has joined the streams."""
        return apart(result) if isinstance(result, Tensor) else text_first(result)

    return Watch(others, made, arguments)


FAMILY = Family(
    title="FLUX.2",
    model=Flux2Transformer2DModel,
    pipelines=("Flux2Pipeline", "Flux2KleinPipeline"),
    fixed=lambda config: {"patch_size": (1,), "out_channels": (None, config["in_channels"])},
    few={"num_layers": 1, "num_single_layers": 1},
    embed=_Embed,
    cut=_cut,
    watch=_watch,
    texts=flux2_text,
    calls="flux2",
    sampling=_sampling,
)
