"""What families have in common: configuration, sizes, and the plan of a pipeline that makes pictures."""

from __future__ import annotations

__all__ = [
    "Texts",
    "Transformer",
    "configuration",
    "dimensions",
    "padded",
    "picture_plan",
    "size",
    "templates",
    "under",
    "whole",
]

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from dbcache_export import checkpoint, spec, vae
from dbcache_export.encoders import Encoder
from dbcache_export.errors import ExportError
from dbcache_export.folder import configuration, documents, model_name
from dbcache_export.spec import Graph, Options, Plan, Template, Tensor

_MAX_BATCH = 16


@dataclass(frozen=True)
class Transformer:
    """The transformer's share of a Plan.

    Attributes:
        description: The architecture in a line, without the number of parameters.
        downscale: Pixels per latent cell where there is no autoencoder.
        channels: Of a latent cell.
        patch: Latent cells on each side of a token.
        cells: Latent cells on each side of the default picture.
        max_cells: The most that the model can place, or None.
        multiple: Each side of a picture has a multiple of so many tokens.
        ignored: Prefixes of parameters that the engine has no use for.
        oblong: Whether the original can make pictures that are no squares; otherwise the check takes squares.
        shifts_latents: Whether the pipeline adds the autoencoder's `shift_factor` before it decodes.
        text: The shortest and the longest text, in tokens; None where the text has no axis of its own.
        examples: For the check: values of inputs that are not any numbers, from a shape and a generator.
    """

    description: str
    checkpoint: checkpoint.Checkpoint
    tensors: dict[str, Tensor]
    inputs: Mapping[str, Mapping[str, Any]]
    streams: Sequence[str]
    embed: Graph
    blocks: tuple[spec.Block, ...]
    final: Graph
    reference: Callable[[], spec.Reference]
    channels: int
    patch: int
    cells: int
    downscale: int = 8
    max_cells: int | None = None
    multiple: int = 1
    ignored: Sequence[str] = ()
    oblong: bool = True
    shifts_latents: bool = True
    text: tuple[int, int] | None = None
    examples: Mapping[str, Callable[[Sequence[int], torch.Generator], torch.Tensor]] = field(default_factory=dict)


@dataclass(frozen=True)
class Texts:
    """The text encoders' share of a Plan.

    Attributes:
        text: As in the Plan.
        encoders: Whose parameters the graphs use.
        tensors: What graphs hand to later graphs.
    """

    text: spec.Text
    encoders: Sequence[Encoder]
    tensors: Mapping[str, Tensor] = field(default_factory=dict)


def whole(folder: Path, names: Sequence[str]) -> list[Path] | None:
    """The folders of a pipeline's text parts; None where it has none of them.

    Raises:
        ExportError: Some are missing.
    """
    parts = [folder / name for name in names]
    missing = [part.name for part in parts if not part.is_dir()]
    if len(missing) == len(parts):
        return None
    if missing:
        raise ExportError(
            f"{folder} lacks {', '.join(missing)}", "complete the pipeline, or give its transformer folder"
        )
    return parts


def templates(tensors: Mapping[str, Tensor]) -> Callable[[str, nn.Module, Sequence[str], Sequence[str]], Template]:
    """Makes templates over some of `tensors`: (name, module, inputs, outputs)."""

    def template(name: str, module: nn.Module, taken: Sequence[str], given: Sequence[str]) -> Template:
        return Template(name, module, {k: tensors[k] for k in taken}, {k: tensors[k] for k in given})

    return template


def padded(shape: Sequence[int], random: torch.Generator) -> torch.Tensor:
    """Masks of texts of different lengths, each of at least one token; the first fills its row."""
    lengths = torch.randint(1, shape[1] + 1, (shape[0], 1), generator=random)
    lengths[0] = shape[1]
    return (torch.arange(shape[1])[None] < lengths).float()


def under(prefix: str) -> Callable[[str], str]:
    """From a parameter of a module that holds one `block` to that of the checkpoint's block `prefix`."""
    return lambda name: prefix + name.removeprefix("block.")


def dimensions(
    size: Mapping[str, Any],
    downscale: int,
    patch: int,
    max_batch: int,
    text: tuple[int, int] | None,
    *,
    decodes: bool,
) -> dict[str, Any]:
    """The dynamic axes of a model that makes pictures of `size` and reads texts of so many tokens."""

    def square(cell: int) -> dict[str, int]:
        return {"min": (size["min"] // cell) ** 2, "max": (size["max"] // cell) ** 2}

    def side(cell: int) -> dict[str, int]:
        return {"min": size["min"] // cell, "max": size["max"] // cell}

    axes: dict[str, Any] = {"batch": {"min": 1, "max": max_batch}, "image": square(downscale * patch)}
    if text:
        axes |= {"text": {"min": text[0], "max": text[1]}, "total": {"sum": ["text", "image"]}}
    if decodes:
        axes |= {"latent_height": side(downscale), "latent_width": side(downscale)}
        axes |= {"height": side(1), "width": side(1)}
    return axes


def refuse_frames(options: Options) -> None:
    """For models of pictures.

    Raises:
        ExportError: A length of videos was asked for.
    """
    if options.frames is not None:
        raise ExportError(f"--frames {options.frames}, but the model makes pictures", "leave it out")


def size(
    options: Options, downscale: int, patch: int, cells: int, max_cells: int | None = None, multiple: int = 1
) -> dict[str, Any]:
    """Pictures from a quarter to twice the default's shorter and longer side.

    Raises:
        ExportError: The wanted default does not consist of whole tokens, is larger than the model can place,
            or has frames.
    """
    refuse_frames(options)
    cell = downscale * patch * multiple
    width, height = options.size or (cells * downscale,) * 2
    if width % cell or height % cell or min(width, height) <= 0:
        raise ExportError(f"a picture of {width}x{height} pixels", f"give --size in multiples of {cell}")
    smallest = max(cell, min(width, height) // 4 // cell * cell)
    largest = 2 * max(width, height)
    if max_cells is not None:
        largest = min(largest, max_cells * downscale // cell * cell)
    if max(width, height) > largest:
        raise ExportError(f"a picture of {width}x{height} pixels", f"this model makes at most {largest} on a side")
    return {"default": [width, height], "min": smallest, "max": largest, "multiple_of": cell}


def picture_plan(
    folder: Path,
    options: Options,
    fake: FakeTensorMode,
    parts: Transformer,
    *,
    scheduler: Mapping[str, Any],
    guidance: Mapping[str, Any],
    steps: int,
    prediction: Mapping[str, Any],
    texts: Texts | None = None,
) -> Plan:
    """The plan of a pipeline in `folder`, or of its transformer alone.

    Raises:
        ExportError: The autoencoder does not fit the transformer, or an option has no effect.
    """
    has_decoder = (folder / "vae").is_dir()
    decoder = vae.decoder(folder / "vae", options, fake, shifts=parts.shifts_latents) if has_decoder else None
    if decoder and decoder.channels != parts.channels:
        raise ExportError(
            f"{folder}: the VAE has {decoder.channels} latent channels, the transformer expects {parts.channels}",
            "give a plain text-to-image pipeline",
        )
    if decoder and options.downscale not in (None, decoder.downscale):
        raise ExportError(f"--downscale {options.downscale}, but the VAE's is {decoder.downscale}", "leave it out")
    downscale = decoder.downscale if decoder else options.downscale or parts.downscale
    sizes = size(options, downscale, parts.patch, parts.cells, parts.max_cells, parts.multiple)
    encoders = texts.encoders if texts else ()
    return Plan(
        name=options.name or model_name(folder),
        description=f"{parts.description}, {parts.checkpoint.values() / 1e6:.3g} M parameters",
        dimensions=dimensions(sizes, downscale, parts.patch, _MAX_BATCH, parts.text, decodes=decoder is not None),
        tensors=parts.tensors | (decoder.tensors if decoder else {}) | dict(texts.tensors if texts else {}),
        inputs=parts.inputs,
        streams=parts.streams,
        embed=parts.embed,
        blocks=parts.blocks,
        final=parts.final,
        prediction=prediction,
        latents={"layout": "tokens", "channels": parts.channels, "downscale": downscale, "patch": parts.patch},
        size=sizes,
        scheduler=scheduler,
        guidance=guidance,
        steps=steps,
        checkpoints={"transformer": parts.checkpoint}
        | {encoder.graph.component or "": encoder.checkpoint for encoder in encoders}
        | ({"vae": decoder.checkpoint} if decoder else {}),
        ignored={"transformer": parts.ignored}
        | {encoder.graph.component or "": encoder.ignored for encoder in encoders}
        | ({"vae": decoder.ignored} if decoder else {}),
        text=texts.text if texts else None,
        reference=parts.reference,
        decode=decoder.graph if decoder else None,
        documents=documents(folder),
        examples=parts.examples,
        oblong=parts.oblong,
    )
