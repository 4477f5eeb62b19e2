"""FLUX.2: double blocks over an image and a text stream, then single blocks over both joined.

All blocks of a kind share their modulations, which `embed` makes.
"""

from __future__ import annotations

__all__ = ["plan", "transformer"]

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import Flux2Transformer2DModel
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from dbcache_export import checkpoint, spec
from dbcache_export.families.flux2_text import flux2_text
from dbcache_export.families.literal import literal_timesteps
from dbcache_export.families.parts import Transformer, configuration, picture_plan, templates, under
from dbcache_export.families.watched import Watched
from dbcache_export.folder import read_json
from dbcache_export.guidance import separate
from dbcache_export.pipeline_calls import CALLS
from dbcache_export.scheduler import prediction, scheduler
from dbcache_export.spec import DTYPES, Graph, Options, Plan
from dbcache_export.template import fake_module

_STREAMS = ("hidden_states", "encoder_hidden_states")
_ROTARY = ("rotary_cos", "rotary_sin")
#: A latent cell has the channels of two by two cells of the autoencoder, so a token is one cell of 16 pixels.
_PATCH, _DOWNSCALE, _DEFAULT_CELLS = 1, 16, 64
_MAX_TEXT = 512


def plan(folder: Path, options: Options, fake: FakeTensorMode) -> Plan:
    """The plan of a FLUX.2 pipeline or transformer.

    Raises:
        ExportError: It is a variant with other inputs, or its text encoder is another.
    """
    inner = folder / "transformer" if (folder / "transformer").is_dir() else folder
    parts = transformer(inner, options, fake)
    embeds_guidance = "guidance" in parts.inputs
    guidance = {"kind": "embedded", "default": 4.0} if embeds_guidance else _guidance(folder)
    return picture_plan(
        folder,
        options,
        fake,
        parts,
        texts=flux2_text(folder, parts.tensors["prompt_embeds"], options, fake),
        scheduler=scheduler(folder, CALLS["flux2"]),
        guidance=guidance,
        steps=4 if guidance["kind"] == "none" else 50,
        prediction=prediction(folder),
    )


def _guidance(folder: Path) -> dict[str, Any]:
    """Of a model that takes no scale: klein pipelines are guided unless they say that they are distilled."""
    index = folder / "model_index.json"
    pipeline = read_json(index) if index.is_file() else {}
    is_distilled = pipeline.get("is_distilled", pipeline.get("_class_name") != "Flux2KleinPipeline")
    return {"kind": "none"} if is_distilled else separate(4.0)


def transformer(folder: Path, options: Options, fake: FakeTensorMode) -> Transformer:
    """Cuts the transformer in `folder` into embed, blocks and final.

    Raises:
        ExportError: It is a variant with other inputs.
    """
    config = configuration(
        folder,
        Flux2Transformer2DModel,
        lambda config: {"patch_size": (1,), "out_channels": (None, config["in_channels"])},
    )
    dtype = DTYPES[options.compute][0]
    head = config["attention_head_dim"]
    width = config["num_attention_heads"] * head
    tensors = {
        "latents": spec.Tensor("f32", ("batch", "image", config["in_channels"])),
        "timestep": spec.Tensor("f32", ("batch",)),
        "prompt_embeds": spec.Tensor("f32", ("batch", "text", config["joint_attention_dim"])),
        "img_ids": spec.Tensor("f32", ("image", 3)),
        "guidance": spec.Tensor("f32", ("batch",)),
        "hidden_states": spec.Tensor(options.compute, ("batch", "image", width)),
        "encoder_hidden_states": spec.Tensor(options.compute, ("batch", "text", width)),
        "temb": spec.Tensor(options.compute, ("batch", width)),
        "image_modulation": spec.Tensor(options.compute, ("batch", 6 * width)),
        "text_modulation": spec.Tensor(options.compute, ("batch", 6 * width)),
        "single_modulation": spec.Tensor(options.compute, ("batch", 3 * width)),
        "rotary_cos": spec.Tensor("f32", ("total", head)),
        "rotary_sin": spec.Tensor("f32", ("total", head)),
        "prediction": spec.Tensor("f32", ("batch", "image", config["in_channels"])),
    }
    inputs = {
        "latents": {"per": "step", "from": "latents"},
        "timestep": {"per": "step", "from": "sigma"},
        "prompt_embeds": {"per": "request", "from": "text"},
        "img_ids": {"per": "request", "from": "grid"},
        "guidance": {"per": "request", "from": "guidance"},
    }
    if not config["guidance_embeds"]:
        del tensors["guidance"], inputs["guidance"]
    small = config | {"num_layers": 1, "num_single_layers": 1}
    model: Any = fake_module(fake, options.compute, lambda: Flux2Transformer2DModel(**small))
    template = templates(tensors)
    modulations = ("image_modulation", "text_modulation", "single_modulation")
    double = template("double", _Double(model.transformer_blocks[0]), (*_STREAMS, *modulations[:2], *_ROTARY), _STREAMS)
    single = template(
        "single", _Single(model.single_transformer_blocks[0]), (*_STREAMS, modulations[2], *_ROTARY), _STREAMS
    )
    kinds = [(double, "transformer_blocks", config["num_layers"])]
    kinds += [(single, "single_transformer_blocks", config["num_single_layers"])]
    places = [(kind, group, i) for kind, group, count in kinds for i in range(count)]
    return Transformer(
        description=(
            f"FLUX.2 transformer: {config['num_layers']} double and {config['num_single_layers']} single blocks, "
            f"width {width}"
        ),
        checkpoint=checkpoint.read(folder, "transformer"),
        tensors=tensors,
        inputs=inputs,
        streams=_STREAMS,
        embed=Graph(
            "embed.onnx",
            template("embed", _Embed(model, dtype), tuple(inputs), (*_STREAMS, "temb", *modulations, *_ROTARY)),
            "transformer",
        ),
        blocks=tuple(
            spec.Block(
                kind.name,
                Graph(f"block_{i:03}.onnx", kind, "transformer", under(f"{group}.{place}.")),
                joins_streams=kind.name == "single",
                group=group,
                joined=kind.name == "single",
            )
            for i, (kind, group, place) in enumerate(places)
        ),
        final=Graph(
            "final.onnx", template("final", _Final(model), ("hidden_states", "temb"), ("prediction",)), "transformer"
        ),
        reference=lambda: _reference(folder),
        channels=config["in_channels"],
        patch=_PATCH,
        cells=_DEFAULT_CELLS,
        downscale=_DOWNSCALE,
        text=(1, _MAX_TEXT),
    )


class _Embed(nn.Module):
    """From the inputs of a request and a step to the streams and what every block needs."""

    def __init__(self, model: Any, dtype: torch.dtype) -> None:
        super().__init__()
        self.time_guidance_embed = model.time_guidance_embed
        self.double_stream_modulation_img = model.double_stream_modulation_img
        self.double_stream_modulation_txt = model.double_stream_modulation_txt
        self.single_stream_modulation = model.single_stream_modulation
        self.x_embedder = model.x_embedder
        self.context_embedder = model.context_embedder
        self.pos_embed = model.pos_embed
        self.dtype = dtype
        literal_timesteps(self)

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


class _Double(nn.Module):
    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

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


class _Single(nn.Module):
    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

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


class _Final(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.norm_out = model.norm_out
        self.proj_out = model.proj_out

    def forward(self, hidden_states: Tensor, temb: Tensor) -> Tensor:
        """[batch, image, width] to [batch, image, channels], float32."""
        prediction: Tensor = self.proj_out(self.norm_out(hidden_states, temb))
        return prediction.float()


def _reference(folder: Path) -> Watched:
    model: Any = Flux2Transformer2DModel.from_pretrained(folder, torch_dtype=torch.float32).eval()
    kept: dict[str, Tensor] = {}
    model.time_guidance_embed.register_forward_hook(lambda _, __, result: kept.update(temb=result))
    model.context_embedder.register_forward_hook(lambda _, __, result: kept.update(text=result))

    def arguments(inputs: Mapping[str, Tensor]) -> dict[str, Any]:
        grid, length = inputs["img_ids"], inputs["prompt_embeds"].shape[1]
        return {
            "hidden_states": inputs["latents"],
            "encoder_hidden_states": inputs["prompt_embeds"],
            "timestep": inputs["timestep"],
            "img_ids": torch.cat((grid, torch.zeros(len(grid), 1)), 1),
            "txt_ids": torch.stack([torch.tensor([0.0, 0.0, 0.0, place]) for place in range(length)]),
            "guidance": inputs.get("guidance"),
        }

    def named(taken: dict[str, Any], result: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        given = dict(zip(_ROTARY, taken["image_rotary_emb"], strict=True)) | {"temb": kept["temb"]}
        if "temb_mod_img" in taken:
            given |= {name: taken[name] for name in _STREAMS}
            given |= {"image_modulation": taken["temb_mod_img"], "text_modulation": taken["temb_mod_txt"]}
            return given, dict(zip(reversed(_STREAMS), result, strict=True))
        length = kept["text"].shape[1]  # the original has joined the streams

        def streams(joined: Tensor) -> dict[str, Tensor]:
            return {"hidden_states": joined[:, length:], "encoder_hidden_states": joined[:, :length]}

        return given | streams(taken["hidden_states"]) | {"single_modulation": taken["temb_mod"]}, streams(result)

    blocks = [*model.transformer_blocks, *model.single_transformer_blocks]
    return Watched(model, blocks, arguments, named)
