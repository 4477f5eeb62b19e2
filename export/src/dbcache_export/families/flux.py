"""FLUX.1: double blocks over an image and a text stream, then single blocks over both joined.

A model folder is a diffusers pipeline (transformer, and where present text encoders, VAE and scheduler) or the
transformer's folder alone, whose conditioning then comes from outside.
"""

from __future__ import annotations

__all__ = ["Transformer", "plan", "transformer"]

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers import FluxTransformer2DModel
from torch._subclasses.fake_tensor import FakeTensorMode

from dbcache_export import checkpoint, spec, text, vae
from dbcache_export.errors import ExportError
from dbcache_export.families.flux_parts import Block, Embed, Final, FluxReference
from dbcache_export.families.parts import configuration, dimensions, size, templates, under
from dbcache_export.folder import documents, model_name
from dbcache_export.pipeline_calls import CALLS
from dbcache_export.scheduler import prediction, scheduler
from dbcache_export.spec import DTYPES, Graph, Options, Plan, Tensor
from dbcache_export.template import fake_module

#: Latent cells on each side of a token.
_PATCH = 2
#: Of FLUX.1's autoencoder, for a folder without one.
_DOWNSCALE = 8
#: diffusers' FLUX pipeline makes pictures of 128 latent cells a side unless told otherwise.
_DEFAULT_CELLS = 128
_MAX_BATCH = 16
_MAX_TEXT = 512


@dataclass(frozen=True)
class Transformer:
    """The transformer's share of a Plan."""

    config: Mapping[str, Any]
    checkpoint: checkpoint.Checkpoint
    tensors: dict[str, Tensor]
    inputs: dict[str, dict[str, str]]
    embed: Graph
    blocks: tuple[spec.Block, ...]
    final: Graph

    def description(self) -> str:
        """The architecture in a line."""
        c = self.config
        width = c["num_attention_heads"] * c["attention_head_dim"]
        millions = self.checkpoint.values() / 1e6
        return (
            f"FLUX transformer: {c['num_layers']} double and {c['num_single_layers']} single blocks, width {width}, "
            f"{millions:.3g} M parameters"
        )


def plan(folder: Path, options: Options, fake: FakeTensorMode) -> Plan:
    """The plan of a FLUX pipeline or transformer.

    Raises:
        ExportError: The folder is incomplete or holds a variant with other inputs (Fill, Control, Kontext …).
    """
    inner = folder / "transformer" if (folder / "transformer").is_dir() else folder
    parts = transformer(inner, options, fake)
    decoder = vae.decoder(folder / "vae", options, fake) if (folder / "vae").is_dir() else None
    texts = text.flux_text(folder, options, fake, embeds_guidance=parts.config["guidance_embeds"])
    channels = parts.config["in_channels"] // _PATCH**2
    if decoder and decoder.channels != channels:
        raise ExportError(
            f"{folder}: the VAE has {decoder.channels} latent channels, the transformer expects {channels}",
            "give a plain text-to-image pipeline",
        )
    if decoder and options.downscale not in (None, decoder.downscale):
        raise ExportError(f"--downscale {options.downscale}, but the VAE's is {decoder.downscale}", "leave it out")
    embeds_guidance = bool(parts.config["guidance_embeds"])
    downscale = decoder.downscale if decoder else options.downscale or _DOWNSCALE
    sizes = size(options, downscale, _PATCH, _DEFAULT_CELLS)
    return Plan(
        name=options.name or model_name(folder),
        description=parts.description(),
        dimensions=dimensions(sizes, downscale, _PATCH, _MAX_BATCH, (1, _MAX_TEXT), decodes=decoder is not None),
        tensors=parts.tensors | (decoder.tensors if decoder else {}),
        inputs=parts.inputs,
        streams=["hidden_states", "encoder_hidden_states"],
        embed=parts.embed,
        blocks=parts.blocks,
        final=parts.final,
        prediction=prediction(folder),
        latents={"layout": "tokens", "channels": channels, "downscale": downscale, "patch": _PATCH},
        size=sizes,
        scheduler=scheduler(folder, CALLS["flux"]),
        guidance={"kind": "embedded", "default": 3.5} if embeds_guidance else {"kind": "none"},
        steps=28 if embeds_guidance else 4,  # the distilled model without guidance is made for few steps
        checkpoints={"transformer": parts.checkpoint}
        | (texts.checkpoints if texts else {})
        | ({"vae": decoder.checkpoint} if decoder else {}),
        ignored=(texts.ignored if texts else {}) | ({"vae": decoder.ignored} if decoder else {}),
        reference=lambda: FluxReference(inner),
        text=texts.text if texts else None,
        decode=decoder.graph if decoder else None,
        documents=documents(folder),
    )


def transformer(folder: Path, options: Options, fake: FakeTensorMode) -> Transformer:
    """Cuts the transformer in `folder` into embed, blocks and final.

    Raises:
        ExportError: It is a variant with other inputs.
    """
    config = configuration(
        folder,
        FluxTransformer2DModel,
        lambda config: {"patch_size": (1,), "out_channels": (None, config["in_channels"])},
    )
    dtype = options.compute
    small = dict(config) | {"num_layers": 1, "num_single_layers": 1}
    model = fake_module(fake, dtype, lambda: FluxTransformer2DModel(**small))
    assert isinstance(model, FluxTransformer2DModel)
    tensors = _tensors(config, options)
    inputs = _inputs(config)
    context = ("hidden_states", "encoder_hidden_states", "temb", "rotary_cos", "rotary_sin")
    streams = context[:2]

    template = templates(tensors)
    double = template("double", Block(model.transformer_blocks[0]), context, streams)
    single = template("single", Block(model.single_transformer_blocks[0]), context, streams)
    kinds = [(double, "transformer_blocks", config["num_layers"])]
    kinds += [(single, "single_transformer_blocks", config["num_single_layers"])]
    places = [(kind, group, i) for kind, group, count in kinds for i in range(count)]
    return Transformer(
        config,
        checkpoint.read(folder, "transformer"),
        tensors,
        inputs,
        Graph(
            "embed.onnx",
            template("embed", Embed(model, DTYPES[dtype][0]), tuple(inputs), context),
            "transformer",
        ),
        tuple(
            spec.Block(
                kind.name,
                Graph(f"block_{i:03}.onnx", kind, "transformer", under(f"{group}.{place}.")),
                joins_streams=kind.name == "single",
                group=group,
            )
            for i, (kind, group, place) in enumerate(places)
        ),
        Graph(
            "final.onnx",
            template("final", Final(model), ("hidden_states", "temb"), ("prediction",)),
            "transformer",
        ),
    )


def _tensors(config: Mapping[str, Any], options: Options) -> dict[str, Tensor]:
    """Outside float32, inside the compute type."""
    dtype = options.compute
    width = config["num_attention_heads"] * config["attention_head_dim"]
    tensors = {
        "latents": Tensor("f32", ("batch", "image", config["in_channels"])),
        "timestep": Tensor("f32", ("batch",)),
        "guidance": Tensor("f32", ("batch",)),
        "prompt_embeds": Tensor("f32", ("batch", "text", config["joint_attention_dim"])),
        "pooled_projections": Tensor("f32", ("batch", config["pooled_projection_dim"])),
        "img_ids": Tensor("f32", ("image", 3)),
        "txt_ids": Tensor("f32", ("text", 3)),
        "hidden_states": Tensor(dtype, ("batch", "image", width)),
        "encoder_hidden_states": Tensor(dtype, ("batch", "text", width)),
        "temb": Tensor(dtype, ("batch", width)),
        "rotary_cos": Tensor("f32", ("total", config["attention_head_dim"])),
        "rotary_sin": Tensor("f32", ("total", config["attention_head_dim"])),
        "prediction": Tensor("f32", ("batch", "image", config["in_channels"])),
    }
    if not config["guidance_embeds"]:
        del tensors["guidance"]
    return tensors


def _inputs(config: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """In the order of `Embed.forward`."""
    inputs = {
        "latents": {"per": "step", "from": "latents"},
        "timestep": {"per": "step", "from": "sigma"},
        "prompt_embeds": {"per": "request", "from": "text"},
        "pooled_projections": {"per": "request", "from": "text"},
        "img_ids": {"per": "request", "from": "grid"},
        "txt_ids": {"per": "request", "from": "zeros"},
    }
    if config["guidance_embeds"]:
        inputs["guidance"] = {"per": "request", "from": "guidance"}
    return inputs
