"""PixArt-α and PixArt-Σ: blocks over the picture, which look at the text but do not change it."""

from __future__ import annotations

__all__ = ["FAMILY"]

from collections.abc import Mapping
from typing import Any

from diffusers import PixArtTransformer2DModel
from torch import Tensor

from dbcache_export import spec
from dbcache_export.encoders import t5, tokenizer
from dbcache_export.errors import ExportError
from dbcache_export.families import inputs, tensors
from dbcache_export.families.family import Cut, Family, Kind, Sampling, Source
from dbcache_export.families.layers import Block, Layers, PlainAttention
from dbcache_export.families.patches import embed_patches, pack, sinusoidal_positions, to_packed, unpack
from dbcache_export.families.sizes import Picture
from dbcache_export.families.texts import Texts, of_one_encoder, whole
from dbcache_export.families.watched import Tensors, Watch, keep
from dbcache_export.folder import read_json
from dbcache_export.guidance import fused
from dbcache_export.prompts import CAPTION

#: Tokens of PixArt-Σ, and of PixArt-α.
_MAX_TEXT, _ALPHA_TEXT = 300, 120
#: Added to the scores of padding; finite, as in diffusers.
_MASKED = -10000.0


def _texts(source: Source, made: Mapping[str, spec.Tensor]) -> Texts | None:
    """T5, which does not look at padding; prompts are cleaned as captions from the web."""
    parts = whole(source.folder, ("text_encoder", "tokenizer"))
    if parts is None:
        return None
    index = source.folder / "model_index.json"
    alpha = index.is_file() and read_json(index).get("_class_name") == "PixArtAlphaPipeline"
    read = tokenizer(parts[1], _ALPHA_TEXT if alpha else _MAX_TEXT)
    outputs = ("prompt_embeds", "prompt_attention_mask")
    encoder = t5(parts[0], "text_000.onnx", read.length, made["prompt_embeds"], source.options, source.fake, outputs)
    return of_one_encoder(encoder, read, "t5", clean=CAPTION)


def _cut(model: Any, source: Source) -> Cut:
    config, layers, width = source.config, source.config["num_layers"], source.width
    if not config["caption_channels"]:
        raise ExportError(
            f"{source.transformer / 'config.json'} has no caption_channels", "only models that project their text fit"
        )
    (block,) = model.transformer_blocks
    block.attn2.processor = PlainAttention()
    return Cut(
        description=f"PixArt transformer: {layers} blocks, width {width}",
        sizes=Picture(config["in_channels"], config["patch_size"], config["sample_size"], shifts_latents=False),
        inputs={
            "timestep": inputs.TIMESTEP,
            "prompt_embeds": inputs.states(config["caption_channels"]),
            "prompt_attention_mask": inputs.PADDED_TEXT_MASK,
            "img_ids": inputs.GRID,
            **({"picture_size": inputs.Input("size", ("batch", 2))} if model.use_additional_conditions else {}),
        },
        inside={
            **tensors.streams(width),
            "encoder_attention_bias": ("batch", 1, 1, "text"),
            "modulation": ("batch", 6 * width),
            "embedded_timestep": ("batch", width),
        },
        streams=tensors.STREAMS[:1],
        lists={"transformer_blocks": [Kind("block", _Block(block))] * layers},
        text=(1, _MAX_TEXT),
    )


class _Embed(Layers):
    """From the inputs of a request and a step to the picture's stream and what every block needs."""

    layers = ("pos_embed.proj", "adaln_single", "caption_projection")

    def prepare(self, model: Any) -> None:
        """See `Layers`."""
        self.base: int = model.pos_embed.base_size
        self.scale: float = model.pos_embed.interpolation_scale

    def forward(
        self,
        latents: Tensor,
        timestep: Tensor,
        prompt_embeds: Tensor,
        prompt_attention_mask: Tensor,
        img_ids: Tensor,
        picture_size: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """PixArt-α's large models are told the picture's size and its height divided by its width."""
        patches = embed_patches(self.proj, latents.to(self.dtype))
        positions = sinusoidal_positions(img_ids, patches.shape[2], self.base, self.scale)
        size = _size(picture_size)
        modulation, embedded = self.adaln_single(timestep, size, batch_size=latents.shape[0], hidden_dtype=self.dtype)
        bias = (1 - prompt_attention_mask.to(self.dtype)) * _MASKED
        text = self.caption_projection(prompt_embeds.to(self.dtype))
        return (patches + positions).to(self.dtype), text, bias[:, None, None], modulation, embedded


def _size(picture_size: Tensor | None) -> dict[str, Tensor | None]:
    if picture_size is None:
        return {"resolution": None, "aspect_ratio": None}
    return {"resolution": picture_size, "aspect_ratio": picture_size[:, :1] / picture_size[:, 1:]}


class _Block(Block):
    def forward(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor, encoder_attention_bias: Tensor, modulation: Tensor
    ) -> Tensor:
        """[batch, image, width] to the same."""
        result: Tensor = self.block(
            hidden_states,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_bias,
            timestep=modulation,
        )
        return result


class _Final(Layers):
    layers = ("norm_out", "scale_shift_table", "proj_out")

    def forward(self, hidden_states: Tensor, embedded_timestep: Tensor) -> Tensor:
        """[batch, image, width] to [batch, image, patch features], float32."""
        shift, scale = (self.scale_shift_table[None] + embedded_timestep[:, None]).chunk(2, dim=1)
        tokens = self.proj_out(self.norm_out(hidden_states) * (1 + scale) + shift)
        return to_packed(tokens, self.config.patch_size, self.config.in_channels).float()


def _watch(model: Any) -> Watch:
    patch, channels = model.config.patch_size, model.config.in_channels
    kept = keep(model.adaln_single, lambda result: {"embedded_timestep": result[1]})

    def arguments(given: Mapping[str, Tensor]) -> dict[str, Any]:
        return {
            "hidden_states": unpack(given["latents"], given["img_ids"], patch),
            "encoder_attention_mask": given["prompt_attention_mask"],
            "added_cond_kwargs": _size(given.get("picture_size")),
        }

    def others(taken: Mapping[str, Any]) -> Tensors:
        bias = taken["encoder_attention_mask"][:, None]
        return {"encoder_attention_bias": bias, "modulation": taken["timestep"]} | kept

    return Watch(others, arguments=arguments, packed=lambda _, prediction: pack(prediction[:, :channels], patch))


FAMILY = Family(
    title="PixArt-α, PixArt-Σ",
    model=PixArtTransformer2DModel,
    pipelines=("PixArtAlphaPipeline", "PixArtSigmaPipeline"),
    fixed=lambda config: {
        "norm_type": ("ada_norm_single",),
        "norm_elementwise_affine": (False,),
        "attention_type": ("default",),
        "upcast_attention": (False,),
        "dropout": (0.0,),
        "out_channels": (None, config["in_channels"], 2 * config["in_channels"]),
    },
    embed=_Embed,
    cut=_cut,
    final=_Final,
    watch=_watch,
    texts=_texts,
    calls="pixart",
    needs_scheduler=True,
    sampling=lambda _: Sampling(fused(4.5, "uncond"), steps=20),
)
