"""The sizes of pictures and of videos: the default one, those that an engine takes, and the axes that follow."""

from __future__ import annotations

__all__ = ["Extent", "Picture", "Shape", "Video", "refuse_frames"]

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch._subclasses.fake_tensor import FakeTensorMode

from dbcache_export import vae, video_vae
from dbcache_export.errors import ExportError
from dbcache_export.spec import Options

#: An axis is a length or the name of a dimension.
Shape = tuple[int | str, ...]

_MAX_BATCH = 16
#: Latent cells of a video while a template is traced, and tokens of its text, as `template` has them.
_TRACED_CELLS = (4, 6, 10)
_TRACED_TEXT = 7


@dataclass(frozen=True)
class Extent:
    """What the manifest says of sizes, in the fields of the same names."""

    size: Mapping[str, Any]
    video: Mapping[str, Any] | None
    dimensions: Mapping[str, Any]


@dataclass(frozen=True)
class Picture:
    """Sizes of a model's pictures.

    Attributes:
        channels: The channels of a latent cell.
        patch: Latent cells on each side of a token.
        cells: Latent cells on each side of the default picture.
        downscale: Pixels on each side of a latent cell where there is no autoencoder.
        max_cells: The most that the model can place, or None.
        multiple: Each side of a picture has a multiple of so many tokens.
        shifts_latents: Whether the pipeline adds the autoencoder's `shift_factor` before it decodes.
    """

    channels: int
    patch: int
    cells: int
    downscale: int = 8
    max_cells: int | None = None
    multiple: int = 1
    shifts_latents: bool = True

    def latents(self) -> Shape:
        """The shape of the latents: packed tokens."""
        return ("batch", "image", self.channels * self.patch**2)

    def traced_lengths(self) -> dict[str, int]:
        """Lengths of the axes that depend on each other while a template is traced: none do."""
        return {}

    def layout(self) -> dict[str, Any]:
        """The manifest's `latents`."""
        return {"layout": "tokens", "channels": self.channels, "downscale": self.downscale, "patch": self.patch}

    def fitted(self, folder: Path, options: Options, fake: FakeTensorMode) -> tuple[Picture, vae.Decoder | None]:
        """The sizes with the pixels of the pipeline's own autoencoder, or else of `--downscale`; and its decoder.

        Raises:
            ExportError: The autoencoder does not fit the transformer, or the option has no effect.
        """
        if not (folder / "vae").is_dir():
            return replace(self, downscale=options.downscale or self.downscale), None
        decoder = vae.decoder(folder / "vae", options, fake, shifts=self.shifts_latents)
        _refuse_other_channels(folder, decoder.channels, self.channels, "give a plain text-to-image pipeline")
        if options.downscale not in (None, decoder.downscale):
            raise ExportError(f"--downscale {options.downscale}, but the VAE's is {decoder.downscale}", "leave it out")
        return replace(self, downscale=decoder.downscale), decoder

    def extent(self, options: Options, text: tuple[int, int] | None, *, decodes: bool) -> Extent:
        """Pictures from a quarter to twice the default's shorter and longer side, with texts of so many tokens.

        Raises:
            ExportError: The wanted default does not consist of whole tokens, is larger than the model can place,
                or has frames.
        """
        refuse_frames(options)
        cell = self.downscale * self.patch * self.multiple
        size = _size("picture", options.size or (self.cells * self.downscale,) * 2, cell)
        if self.max_cells is not None:
            size["max"] = min(size["max"], self.max_cells * self.downscale // cell * cell)
        (width, height), most = size["default"], size["max"]
        if max(width, height) > most:
            raise ExportError(f"a picture of {width}x{height} pixels", f"this model makes at most {most} on a side")
        return Extent(size, None, self.dimensions(size, text, decodes=decodes))

    def dimensions(
        self, size: Mapping[str, Any], text: tuple[int, int] | None, *, decodes: bool, max_batch: int = _MAX_BATCH
    ) -> dict[str, Any]:
        """The dynamic axes."""
        image = {end: length**2 for end, length in _side(size, self.downscale * self.patch).items()}
        axes: dict[str, Any] = {"batch": {"min": 1, "max": max_batch}, "image": image}
        if text:
            axes |= {"text": {"min": text[0], "max": text[1]}, "total": {"sum": ["text", "image"]}}
        if decodes:
            cells, pixels = _side(size, self.downscale), _side(size, 1)
            axes |= {"latent_height": cells, "latent_width": cells, "height": pixels, "width": pixels}
        return axes


@dataclass(frozen=True)
class Video:
    """Sizes of a model's videos.

    Attributes:
        channels: The channels of a latent cell.
        patch: Latent cells on each side of a token.
        downscale: Pixels on each side of a latent cell.
        temporal_downscale: Frames of a latent frame; the first has one.
        width, height: The sides of the default video, in pixels.
        frames: The frames of the default video.
        fps: Its frames a second.
        axes: The order of the latents' axes, `bcfhw` or `bfchw`.
        runs: How the decoder takes long videos, as in the manifest's `video`.
    """

    channels: int
    patch: int
    downscale: int
    temporal_downscale: int
    width: int
    height: int
    frames: int
    fps: float
    axes: str = "bcfhw"
    runs: Mapping[str, int] | None = None

    def latents(self) -> Shape:
        """The shape of the latents."""
        names: dict[str, int | str] = {
            "b": "batch",
            "c": self.channels,
            "f": "latent_frames",
            "h": "latent_height",
            "w": "latent_width",
        }
        return tuple(names[axis] for axis in self.axes)

    def traced_lengths(self) -> dict[str, int]:
        """Lengths of the axes that depend on each other while a template is traced."""
        frames, height, width = _TRACED_CELLS
        image = frames * (height // self.patch) * (width // self.patch)
        return {"image": image, "total": image + _TRACED_TEXT}

    def layout(self) -> dict[str, Any]:
        """The manifest's `latents`."""
        return {"layout": self.axes, "channels": self.channels, "downscale": self.downscale, "patch": self.patch}

    def fitted(
        self, folder: Path, options: Options, fake: FakeTensorMode
    ) -> tuple[Video, video_vae.VideoDecoder | None]:
        """The sizes of the pipeline's own autoencoder, with as many latent cells by default; and its decoder.

        Raises:
            ExportError: The autoencoder does not fit the transformer.
        """
        if not (folder / "vae").is_dir():
            return self, None
        decoder = video_vae.decoder(folder / "vae", options, fake)
        _refuse_other_channels(folder, decoder.channels, self.channels, "give a plain text-to-video pipeline")
        latent_frames = (self.frames - 1) // self.temporal_downscale
        video = replace(
            self,
            downscale=decoder.downscale,
            temporal_downscale=decoder.temporal_downscale,
            width=self.width // self.downscale * decoder.downscale,
            height=self.height // self.downscale * decoder.downscale,
            frames=latent_frames * decoder.temporal_downscale + 1,
            runs=decoder.runs,
        )
        return video, decoder

    def extent(self, options: Options, text: tuple[int, int] | None, *, decodes: bool) -> Extent:
        """Videos from a quarter to twice the default's sides, from one frame to twice its length.

        Raises:
            ExportError: The wanted default does not consist of whole tokens, or `--downscale` has no effect.
        """
        if options.downscale not in (None, self.downscale):
            raise ExportError(f"--downscale {options.downscale}, but the model's is {self.downscale}", "leave it out")
        size = _size("video", options.size or (self.width, self.height), self.downscale * self.patch)
        frames = self._frames(options)
        video = {"frames": frames, "temporal_downscale": self.temporal_downscale, "fps": self.fps}
        video |= {"runs": self.runs} if self.runs else {}
        return Extent(size, video, self._dimensions(size, frames, text, decodes=decodes))

    def _frames(self, options: Options) -> dict[str, int]:
        count = self.frames if options.frames is None else options.frames
        step = self.temporal_downscale
        if count < 1 or (count - 1) % step:
            raise ExportError(f"a video of {count} frames", f"give --frames as 1 + a multiple of {step}")
        return {"default": count, "min": 1, "max": 2 * (count - 1) + 1}

    def _dimensions(
        self, size: Mapping[str, Any], frames: Mapping[str, int], text: tuple[int, int] | None, *, decodes: bool
    ) -> dict[str, Any]:
        """The dynamic axes."""
        ends = ("min", "max")
        latent_frames = {end: (frames[end] - 1) // self.temporal_downscale + 1 for end in ends}
        side, pixels = _side(size, self.downscale), _side(size, 1)
        axes: dict[str, Any] = {
            "batch": {"min": 1, "max": _MAX_BATCH},
            "image": {end: latent_frames[end] * (side[end] // self.patch) ** 2 for end in ends},
        }
        if text:
            axes |= {"text": {"min": text[0], "max": text[1]}, "total": {"sum": ["image", "text"]}}
        axes |= {"latent_frames": latent_frames, "latent_height": side, "latent_width": side}
        if decodes:
            axes |= {"frames": {end: frames[end] for end in ends}, "height": pixels, "width": pixels}
        return axes


def refuse_frames(options: Options) -> None:
    """For models of pictures.

    Raises:
        ExportError: A length of videos was asked for.
    """
    if options.frames is not None:
        raise ExportError(f"--frames {options.frames}, but the model makes pictures", "leave it out")


def _refuse_other_channels(folder: Path, given: int, expected: int, remedy: str) -> None:
    if given != expected:
        raise ExportError(f"{folder}: the VAE has {given} latent channels, the transformer expects {expected}", remedy)


def _size(what: str, default: tuple[int, ...], cell: int) -> dict[str, Any]:
    """From a quarter to twice the default's shorter and longer side, in whole cells."""
    width, height = default
    if width % cell or height % cell or min(width, height) <= 0:
        raise ExportError(f"a {what} of {width}x{height} pixels", f"give --size in multiples of {cell}")
    smallest = max(cell, min(width, height) // 4 // cell * cell)
    return {"default": [width, height], "min": smallest, "max": 2 * max(width, height), "multiple_of": cell}


def _side(size: Mapping[str, Any], cell: int) -> dict[str, int]:
    """The fewest and the most cells of so many pixels on a side."""
    return {end: size[end] // cell for end in ("min", "max")}
