"""Z-Image: one stream of the picture's tokens followed by the text's, both refined before.

Diffusers fills both up to multiples of 32 tokens. Here pictures have multiples of 32 tokens, and so have texts.
"""

from __future__ import annotations

__all__ = ["FAMILY"]

import math
from collections.abc import Mapping
from typing import Any

import torch
from diffusers import ZImageTransformer2DModel
from diffusers.models.transformers.transformer_z_image import SEQ_MULTI_OF
from torch import Tensor

from dbcache_export import spec
from dbcache_export.encoders import tokenizer
from dbcache_export.families import inputs, rotary, tensors
from dbcache_export.families.family import Cut, Family, Kind, Sampling, Source
from dbcache_export.families.layers import Block, Layers
from dbcache_export.families.literal import Literal
from dbcache_export.families.patches import pack, to_packed, unpack
from dbcache_export.families.rotary import MASKED, angles, attend
from dbcache_export.families.sizes import Picture
from dbcache_export.families.texts import Texts, of_one_encoder, refuse_left_padding, whole
from dbcache_export.families.watched import Tensors, Watch
from dbcache_export.guidance import fused
from dbcache_export.language import chat, language_model

_PATCH = 2
#: The layers of this patch size, as the original names them.
_KEY = "2-1"
#: Tokens on each side in multiples of which a picture has multiples of 32 tokens.
_SIDE = 8
_DEFAULT_CELLS = 128
_MAX_TEXT = 512


def _texts(source: Source, _: Mapping[str, spec.Tensor]) -> Texts | None:
    """Qwen3 in its chat template, one layer before its end."""
    parts = whole(source.folder, ("text_encoder", "tokenizer"))
    if parts is None:
        return None
    names = ("prompt_embeds", "prompt_embeds_mask")
    encoder = language_model(parts[0], "qwen", (-2,), source.options, source.fake, names, tokens="qwen")
    prefix, suffix = chat(
        parts[1], lambda prompt: [{"role": "user", "content": prompt}], add_generation_prompt=True, enable_thinking=True
    )
    # No token more than diffusers fills up to: text and picture are one stream, of whose change all tokens are a part.
    template: dict[str, Any] = {"prefix": prefix, "suffix": suffix, "padding": "longest", "multiple_of": SEQ_MULTI_OF}
    read = tokenizer(parts[1], _MAX_TEXT, **template)
    refuse_left_padding(read, parts[1], "Z-Image")
    return of_one_encoder(encoder, read, "qwen")


#: Variants of Z-Image (Omni) have other values.
_FIXED = {
    "all_patch_size": ([2], (2,)),
    "all_f_patch_size": ([1], (1,)),
    "qk_norm": (True,),
    "siglip_feat_dim": (None,),
}


def _cut(model: Any, source: Source) -> Cut:
    config, layers, width = source.config, source.config["n_layers"], source.config["dim"]
    most = min(config["axes_lens"][1:]) * _PATCH
    for block in (*model.noise_refiner, *model.context_refiner, *model.layers):
        block.attention.processor = _Real()
    return Cut(
        description=f"Z-Image transformer: {layers} blocks, width {width}",
        sizes=Picture(config["in_channels"], _PATCH, min(_DEFAULT_CELLS, most), max_cells=most, multiple=_SIDE),
        inputs={
            "timestep": inputs.SIGMA,
            "prompt_embeds": inputs.states(config["cap_feat_dim"]),
            "prompt_embeds_mask": inputs.PADDED_TEXT_MASK,
            "img_ids": inputs.GRID,
        },
        inside={
            "hidden_states": ("batch", "total", width),
            "attention_bias": ("batch", 1, 1, "total"),
            "adaln_input": ("batch", min(width, 256)),
            **tensors.tables("batch", "total", 1, width // config["n_heads"]),
        },
        streams=tensors.STREAMS[:1],
        lists={"layers": [Kind("block", _Block(model.layers[0]))] * layers},
        text=(SEQ_MULTI_OF, _MAX_TEXT),
        ignored=("x_pad_token",),
    )


class _Embed(Layers):
    """From the inputs of a request and a step to the joined stream and what every block needs."""

    layers = ("all_x_embedder", "noise_refiner", "context_refiner", "cap_embedder", "cap_pad_token", "t_embedder.mlp")

    def prepare(self, model: Any) -> None:
        """See `Layers`."""
        half = model.t_embedder.frequency_embedding_size // 2
        self.frequencies = Literal(lambda: torch.exp(-math.log(10000) * torch.arange(half).float() / half))

    def forward(
        self, latents: Tensor, timestep: Tensor, prompt_embeds: Tensor, prompt_embeds_mask: Tensor, img_ids: Tensor
    ) -> tuple[Tensor, ...]:
        """A text's last 32 tokens are filled up with a token for padding; what is behind them is not looked at."""
        batch, words = prompt_embeds_mask.shape
        tokens = latents.shape[1]
        turns = (_time(timestep) * self.config.t_scale)[:, None] * self.frequencies.tensor()
        adaln_input = self.mlp(torch.cat((turns.cos(), turns.sin()), 1).to(self.dtype))

        places = torch.arange(words, dtype=torch.float32)[None].expand(batch, -1)
        filled = (prompt_embeds_mask.sum(1, keepdim=True) / SEQ_MULTI_OF).ceil() * SEQ_MULTI_OF
        seen = places < filled
        zeros = torch.zeros_like(places)
        text_angle = self._angle(places + 1, zeros, zeros)
        frame = (filled + 1).expand(-1, tokens)
        image_angle = self._angle(frame, img_ids[:, 1][None].expand(batch, -1), img_ids[:, 2][None].expand(batch, -1))
        text_turns = [turn * seen[..., None, None] for turn in _turns(text_angle)]
        image_turns = _turns(image_angle)
        text_bias = torch.where(seen, 0.0, MASKED).to(self.dtype)

        image = self.all_x_embedder[_KEY](_to_original(latents, self.all_x_embedder[_KEY].in_features).to(self.dtype))
        for block in self.noise_refiner:
            image = block(image, None, image_turns, adaln_input)
        text = self.cap_embedder(prompt_embeds.to(self.dtype))
        text = torch.where(prompt_embeds_mask[..., None] > 0, text, self.cap_pad_token)
        for block in self.context_refiner:
            text = block(text, text_bias[:, None, None], text_turns)
        text = text * seen[..., None]

        bias = torch.cat((torch.zeros_like(latents[..., 0]).to(self.dtype), text_bias), 1)[:, None, None]
        cos, sin = (torch.cat(pair, 1) for pair in zip(image_turns, text_turns, strict=True))
        return torch.cat((image, text), 1), bias, adaln_input, cos, sin

    def _angle(self, *positions: Tensor) -> Tensor:
        parts = [
            angles(position, width, self.config.rope_theta, torch.float64)
            for position, width in zip(positions, self.config.axes_dims, strict=True)
        ]
        return torch.cat(parts, -1).float()


def _time(sigma: Tensor) -> Tensor:
    """The model's time, 0 for noise and 1 for a picture, rounded as in the pipeline's way from timesteps of 1000."""
    return (1000 - sigma * 1000) / 1000


def _turns(angle: Tensor) -> tuple[Tensor, Tensor]:
    cos, sin = rotary.tables(angle)
    return cos[:, :, None], sin[:, :, None]


def _to_original(latents: Tensor, features: int) -> Tensor:
    """Features in the order (channel, row, column) to (row, column, channel)."""
    cells = latents.unflatten(2, (features // _PATCH**2, _PATCH, _PATCH))
    return cells.permute(0, 1, 3, 4, 2).flatten(2)


class _Real:
    """Self-attention with rotary embeddings in real arithmetic."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        freqs_cis: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        assert freqs_cis is not None
        result: Tensor = attn.to_out[0](attend(attn, hidden_states, *freqs_cis, attention_mask))
        return result


class _Block(Block):
    def forward(
        self, hidden_states: Tensor, attention_bias: Tensor, adaln_input: Tensor, rotary_cos: Tensor, rotary_sin: Tensor
    ) -> Tensor:
        """[batch, image + text, width] to the same."""
        result: Tensor = self.block(hidden_states, attention_bias, (rotary_cos, rotary_sin), adaln_input)
        return result


class _Final(Layers):
    layers = ("all_final_layer",)

    def forward(self, hidden_states: Tensor, adaln_input: Tensor, latents: Tensor) -> Tensor:
        """The picture's tokens to [batch, image, patch features], float32; the model gives the velocity's negative."""
        tokens = self.all_final_layer[_KEY](hidden_states[:, : latents.shape[1]], c=adaln_input)
        return -to_packed(tokens, _PATCH).float()


def _watch(_: Any) -> Watch:
    def arguments(given: Mapping[str, Tensor]) -> dict[str, Any]:
        texts = zip(given["prompt_embeds"], given["prompt_embeds_mask"], strict=True)
        return {
            "x": list(unpack(given["latents"], given["img_ids"], _PATCH)[:, :, None]),
            "t": _time(given["timestep"]),
            "cap_feats": [text[mask > 0] for text, mask in texts],
        }

    def others(taken: Mapping[str, Any]) -> Tensors:
        turns, mask = taken["freqs_cis"].repeat_interleave(2, 2)[:, :, None], taken["attn_mask"]
        seen = torch.ones_like(taken["x"][..., 0], dtype=torch.bool) if mask is None else mask
        bias = torch.where(seen, 0.0, MASKED)[:, None, None]
        given = {"hidden_states": taken["x"], "attention_bias": bias, "adaln_input": taken["adaln_input"]}
        return given | tensors.rotary((turns.real, turns.imag))

    def packed(_: Mapping[str, Tensor], prediction: Any) -> Tensor:
        return -pack(torch.stack(prediction)[:, :, 0], _PATCH)

    return Watch(others, arguments=arguments, packed=packed)


FAMILY = Family(
    title="Z-Image",
    model=ZImageTransformer2DModel,
    pipelines=("ZImagePipeline",),
    fixed=lambda _: _FIXED,
    few={"n_layers": 1},
    embed=_Embed,
    cut=_cut,
    final=_Final,
    watch=_watch,
    texts=_texts,
    calls="z_image",
    sampling=lambda _: Sampling(fused(5.0, "cond", "difference"), steps=50),
)
