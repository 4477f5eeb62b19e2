"""What the families of video transformers have in common: the axes of a video, and the plan of a pipeline."""

from __future__ import annotations

__all__ = ["Transformer", "Video", "original", "prefix_mask", "templates", "traced_lengths", "video_plan"]

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from dbcache_export import checkpoint, spec, video_vae
from dbcache_export.errors import ExportError
from dbcache_export.families.parts import Texts
from dbcache_export.folder import documents, model_name
from dbcache_export.spec import Graph, Options, Plan, Template, Tensor

_MAX_BATCH = 16
#: Latent cells while a template is traced, as `template` has them.
_TRACED_CELLS = (4, 6, 10)
_TRACED_TEXT = 7


@dataclass(frozen=True)
class Video:
    """Sizes of a model's videos.

    Attributes:
        layout: Order of the axes of the latents, `bcfhw` or `bfchw`.
        channels: Of a latent cell.
        downscale: Pixels on each side of a latent cell.
        temporal_downscale: Frames of a latent frame, but for the first.
        patch: Latent cells on each side of a token.
        width, height: Of the default video, in pixels.
        frames: Of the default video.
        fps: Its frames a second.
    """

    layout: str
    channels: int
    downscale: int
    temporal_downscale: int
    patch: int
    width: int
    height: int
    frames: int
    fps: float

    def latents(self) -> tuple[int | str, ...]:
        """The shape of the latents."""
        space = ("latent_height", "latent_width")
        if self.layout == "bfchw":
            return ("batch", "latent_frames", self.channels, *space)
        return ("batch", self.channels, "latent_frames", *space)


@dataclass(frozen=True)
class Transformer:
    """The transformer's share of a Plan.

    Attributes:
        description: The architecture in a line, without the number of parameters.
        text: The shortest and the longest text, in tokens.
        examples: For the check: values of inputs that are not any numbers, from a shape and a generator.
    """

    description: str
    checkpoint: checkpoint.Checkpoint
    video: Video
    tensors: dict[str, Tensor]
    inputs: dict[str, dict[str, str]]
    streams: Sequence[str]
    embed: Graph
    blocks: tuple[spec.Block, ...]
    final: Graph
    reference: Callable[[], spec.Reference]
    text: tuple[int, int]
    examples: Mapping[str, Callable[[Sequence[int], torch.Generator], torch.Tensor]] = field(default_factory=dict)


def traced_lengths(patch: int) -> dict[str, int]:
    """Lengths of the axes that depend on each other while a template is traced."""
    frames, height, width = _TRACED_CELLS
    image = frames * (height // patch) * (width // patch)
    return {"image": image, "total": image + _TRACED_TEXT}


def templates(
    tensors: Mapping[str, Tensor], patch: int
) -> Callable[[str, nn.Module, Sequence[str], Sequence[str]], Template]:
    """Makes templates over some of `tensors`: (name, module, inputs, outputs)."""
    lengths = traced_lengths(patch)

    def template(name: str, module: nn.Module, taken: Sequence[str], given: Sequence[str]) -> Template:
        return Template(name, module, {k: tensors[k] for k in taken}, {k: tensors[k] for k in given}, lengths)

    return template


def original(model: type[Any], folder: Path) -> Any:
    """The model of diffusers in `folder`, in float32; the loader of diffusers needs another package for some models."""
    loaded = model.from_config(model.load_config(folder)).float().eval()
    state = {name: value for file in checkpoint.paths(folder) for name, value in load_file(file).items()}
    loaded.load_state_dict(state)
    return loaded


def prefix_mask(shape: Sequence[int], random: torch.Generator) -> torch.Tensor:
    """[batch, text]: ones for the tokens of texts of different lengths, zeros for the padding behind them."""
    lengths = torch.randint(1, shape[1] + 1, (shape[0], 1), generator=random)
    return (torch.arange(shape[1]) < lengths).float()


def low_noise(
    parts: Transformer, folder: Path, below: float, guidance: float | None, reference: Callable[[], spec.Reference]
) -> tuple[spec.LowNoise, checkpoint.Checkpoint]:
    """The second transformer of a pipeline: the graphs of `parts` over the parameters in `folder`."""

    def other(graph: Graph) -> Graph:
        return replace(graph, file=f"low_noise_{graph.file}", component=folder.name)

    second = spec.LowNoise(
        below=below,
        guidance=guidance,
        embed=other(parts.embed),
        blocks=tuple(replace(block, graph=other(block.graph)) for block in parts.blocks),
        final=other(parts.final),
        reference=reference,
    )
    return second, checkpoint.read(folder, folder.name)


def video_plan(
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
    second: tuple[spec.LowNoise, checkpoint.Checkpoint] | None = None,
) -> Plan:
    """The plan of a pipeline in `folder`, or of its transformer alone.

    Raises:
        ExportError: The autoencoder does not fit the transformer, or an option has no effect.
    """
    video = parts.video
    decoder = video_vae.decoder(folder / "vae", options, fake) if (folder / "vae").is_dir() else None
    if decoder:
        video = _fitted(folder, video, decoder)
    encoders = texts.encoders if texts else ()
    size = _size(options, video)
    frames = _frames(options, video)
    return Plan(
        name=options.name or model_name(folder),
        description=f"{parts.description}, {parts.checkpoint.values() / 1e6:.3g} M parameters"
        + (", and another transformer for steps with little noise" if second else ""),
        dimensions=_dimensions(size, frames, video, parts.text, decodes=decoder is not None),
        tensors=parts.tensors | (decoder.tensors if decoder else {}) | dict(texts.tensors if texts else {}),
        inputs=parts.inputs,
        streams=parts.streams,
        embed=parts.embed,
        blocks=parts.blocks,
        final=parts.final,
        prediction=prediction,
        latents={
            "layout": video.layout,
            "channels": video.channels,
            "downscale": video.downscale,
            "patch": video.patch,
        },
        size=size,
        video={"frames": frames, "temporal_downscale": video.temporal_downscale, "fps": video.fps}
        | ({"runs": decoder.runs} if decoder and decoder.runs else {}),
        scheduler=scheduler,
        guidance=guidance,
        steps=steps,
        checkpoints={"transformer": parts.checkpoint}
        | ({"transformer_2": second[1]} if second else {})
        | {encoder.graph.component or "": encoder.checkpoint for encoder in encoders}
        | ({"vae": decoder.checkpoint} if decoder else {}),
        ignored={encoder.graph.component or "": encoder.ignored for encoder in encoders}
        | ({"vae": decoder.ignored} if decoder else {}),
        text=texts.text if texts else None,
        decode=decoder.graph if decoder else None,
        reference=parts.reference,
        low_noise=second[0] if second else None,
        documents=documents(folder),
        examples=parts.examples,
    )


def _fitted(folder: Path, video: Video, decoder: video_vae.VideoDecoder) -> Video:
    """The video with the sizes of the pipeline's own autoencoder, and as many latent cells by default."""
    if decoder.channels != video.channels:
        raise ExportError(
            f"{folder}: the VAE has {decoder.channels} latent channels, the transformer expects {video.channels}",
            "give a plain text-to-video pipeline",
        )
    latent_frames = (video.frames - 1) // video.temporal_downscale
    return replace(
        video,
        downscale=decoder.downscale,
        temporal_downscale=decoder.temporal_downscale,
        width=video.width // video.downscale * decoder.downscale,
        height=video.height // video.downscale * decoder.downscale,
        frames=latent_frames * decoder.temporal_downscale + 1,
    )


def _size(options: Options, video: Video) -> dict[str, Any]:
    """Videos from a quarter to twice the default's shorter and longer side.

    Raises:
        ExportError: The wanted default does not consist of whole tokens, or the option has no effect.
    """
    if options.downscale not in (None, video.downscale):
        raise ExportError(f"--downscale {options.downscale}, but the model's is {video.downscale}", "leave it out")
    cell = video.downscale * video.patch
    width, height = options.size or (video.width, video.height)
    if width % cell or height % cell or min(width, height) <= 0:
        raise ExportError(f"a video of {width}x{height} pixels", f"give --size in multiples of {cell}")
    smallest = max(cell, min(width, height) // 4 // cell * cell)
    return {"default": [width, height], "min": smallest, "max": 2 * max(width, height), "multiple_of": cell}


def _frames(options: Options, video: Video) -> dict[str, int]:
    """Videos from one frame to twice the default's length.

    Raises:
        ExportError: The wanted default does not consist of whole latent frames.
    """
    count = video.frames if options.frames is None else options.frames
    step = video.temporal_downscale
    if count < 1 or (count - 1) % step:
        raise ExportError(f"a video of {count} frames", f"give --frames as 1 + a multiple of {step}")
    return {"default": count, "min": 1, "max": 2 * (count - 1) + 1}


def _dimensions(
    size: Mapping[str, Any], frames: Mapping[str, int], video: Video, text: tuple[int, int], *, decodes: bool
) -> dict[str, Any]:
    """The dynamic axes."""
    latent_frames = {end: (frames[end] - 1) // video.temporal_downscale + 1 for end in ("min", "max")}
    side = {end: size[end] // video.downscale for end in ("min", "max")}
    image = {end: latent_frames[end] * (side[end] // video.patch) ** 2 for end in ("min", "max")}
    pixels = {end: size[end] for end in ("min", "max")}
    decoded = {"frames": {end: frames[end] for end in ("min", "max")}, "height": pixels, "width": pixels}
    return {
        "batch": {"min": 1, "max": _MAX_BATCH},
        "image": image,
        "text": {"min": text[0], "max": text[1]},
        "total": {"sum": ["image", "text"]},
        "latent_frames": latent_frames,
        "latent_height": side,
        "latent_width": side,
    } | (decoded if decodes else {})
