"""A video pipeline's autoencoder: from latents to frames, all frames of a video in one pass."""

from __future__ import annotations

__all__ = ["VideoDecoder", "decoder"]

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    AutoencoderKLHunyuanVideo,
    AutoencoderKLLTXVideo,
    AutoencoderKLMochi,
    AutoencoderKLWan,
)
from diffusers.models.autoencoders.autoencoder_kl_mochi import MochiChunkedGroupNorm3D
from diffusers.models.autoencoders.autoencoder_kl_wan import WanResample, unpatchify
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from dbcache_export import checkpoint, spec
from dbcache_export.cogvideox_vae import CogVideoX
from dbcache_export.errors import ExportError, listed
from dbcache_export.families.literal import Literal
from dbcache_export.folder import arguments, read_json
from dbcache_export.hunyuan_vae import HunyuanVideo
from dbcache_export.spec import DTYPES, Case, Graph, Options, Template
from dbcache_export.template import fake_module


@dataclass(frozen=True)
class VideoDecoder:
    """The autoencoder's share of a Plan; `runs` as in the manifest's `video`, None where videos are decoded whole."""

    graph: Graph
    tensors: dict[str, spec.Tensor]
    checkpoint: checkpoint.Checkpoint
    ignored: Sequence[str]
    channels: int
    downscale: int
    temporal_downscale: int
    runs: Mapping[str, int] | None


def decoder(folder: Path, options: Options, fake: FakeTensorMode) -> VideoDecoder:
    """The decoding half of the autoencoder in `folder`.

    Raises:
        ExportError: It is of an unknown class, or needs what an engine directory cannot say.
    """
    name = str(read_json(folder / "config.json").get("_class_name"))
    if name not in _CLASSES:
        raise ExportError(
            f"{folder}: {name} is not supported",
            f"take vae out of a copy of the folder: the engine then gives latents; supported: {listed(_CLASSES)}",
        )
    model_class, wrap, ignored = _CLASSES[name]
    config = arguments(folder, model_class)
    odd = [f"{key} = {json.dumps(config[key])}" for key, fits in _FITS.items() if key in config and not fits(config)]
    if odd:
        raise ExportError(
            f"{folder / 'config.json'}: a decoder with other inputs or settings ({', '.join(odd)}) is not supported",
            "take vae out of a copy of the folder: the engine then gives latents",
        )
    built: list[Any] = []

    def build() -> nn.Module:
        built.append(model_class(**config))
        return wrap(built[0], DTYPES[options.compute][0])

    module = fake_module(fake, options.compute, build)
    settings = built[0].config
    channels = int(settings.get("z_dim", settings.get("latent_channels")))
    tensors = {
        "image_latents": spec.Tensor("f32", ("batch", channels, "latent_frames", "latent_height", "latent_width")),
        "image": spec.Tensor("f32", ("batch", 3, "frames", "height", "width")),
    }
    inputs, outputs = ({key: tensors[key]} for key in tensors)
    template = Template("decode", module, inputs, outputs)
    graph = Graph("decode.onnx", template, "vae", cases=lambda: _cases(folder))
    return VideoDecoder(
        graph,
        tensors,
        checkpoint.read(folder, "vae"),
        ignored,
        channels,
        *_scales(built[0]),
        _runs(built[0]),
    )


def _scales(model: Any) -> tuple[int, int]:
    """Pixels per latent cell and frames per latent frame; each class has its own names for them."""
    config = model.config
    if isinstance(model, AutoencoderKLWan):
        return config.scale_factor_spatial, config.scale_factor_temporal
    if isinstance(model, AutoencoderKLCogVideoX):
        return 2 ** (len(config.block_out_channels) - 1), int(config.temporal_compression_ratio)
    return model.spatial_compression_ratio, model.temporal_compression_ratio


def _runs(model: Any) -> dict[str, int] | None:
    """How the original cuts a long video, unless it is told to decode all frames at once."""
    if not getattr(model, "use_framewise_decoding", False) or not isinstance(model, AutoencoderKLHunyuanVideo):
        return None
    frames, stride = model.tile_sample_min_num_frames, model.tile_sample_stride_num_frames
    scale = model.temporal_compression_ratio
    return {"latent_frames": frames // scale, "stride": stride // scale}


class _Denormalised(nn.Module):
    """Undoes the normalisation of latents, then decodes; subclasses say how."""

    def __init__(self, model: Any, mean: Callable[[], Tensor], std: Callable[[], Tensor], dtype: torch.dtype) -> None:
        super().__init__()
        self.decoder = model.decoder
        self.mean, self.std = Literal(mean), Literal(std)
        self.dtype = dtype

    def forward(self, image_latents: Tensor) -> Tensor:
        """[batch, channels, latent_frames, latent_height, latent_width] to [batch, 3, frames, …], float32."""
        mean, std = (each.tensor()[:, None, None, None] for each in (self.mean, self.std))
        return self.decoded((image_latents * std + mean).to(self.dtype)).float()

    def decoded(self, latents: Tensor) -> Tensor:
        """Frames of latents as the autoencoder gave them."""
        raise NotImplementedError


class _Mochi(_Denormalised):
    def __init__(self, model: AutoencoderKLMochi, dtype: torch.dtype) -> None:
        config: Any = model.config
        mean, std = config.latents_mean, config.latents_std
        super().__init__(
            model,
            lambda: torch.tensor(mean or [0.0] * config.latent_channels),
            lambda: torch.tensor(std or [1.0] * config.latent_channels) / config.scaling_factor,
            dtype,
        )
        self.dropped = model.temporal_compression_ratio - 1
        for owner in list(self.decoder.modules()):
            for name, child in list(owner.named_children()):
                if isinstance(child, MochiChunkedGroupNorm3D):
                    setattr(owner, name, _EachFrame(child))

    def decoded(self, latents: Tensor) -> Tensor:
        """The decoder's first frames stand for what was before the video."""
        frames: Tensor = self.decoder(latents)[0]
        return frames[:, :, self.dropped :]


class _EachFrame(nn.Module):
    """A MochiChunkedGroupNorm3D, which norms each frame by itself, without its loop over groups of frames."""

    def __init__(self, original: MochiChunkedGroupNorm3D) -> None:
        super().__init__()
        self.norm_layer = original.norm_layer

    def forward(self, x: Tensor) -> Tensor:
        """[batch, channels, frames, height, width] to the same."""
        normed: Tensor = self.norm_layer(x.transpose(1, 2).flatten(0, 1))
        return normed.unflatten(0, (x.shape[0], x.shape[2])).transpose(1, 2)


class _Ltx(nn.Module):
    """Mean and deviation of the latents are part of this autoencoder's checkpoint."""

    def __init__(self, model: AutoencoderKLLTXVideo, dtype: torch.dtype) -> None:
        super().__init__()
        self.decoder = model.decoder
        self.latents_mean: Tensor
        self.latents_std: Tensor
        self.register_buffer("latents_mean", model.get_buffer("latents_mean"))
        self.register_buffer("latents_std", model.get_buffer("latents_std"))
        config: Any = model.config
        self.scale: float = config.scaling_factor
        self.dtype = dtype

    def forward(self, image_latents: Tensor) -> Tensor:
        """As `_Denormalised`."""
        mean, std = (each.float()[:, None, None, None] for each in (self.latents_mean, self.latents_std))
        latents = image_latents * std / self.scale + mean
        frames: Tensor = self.decoder(latents.to(self.dtype), None)
        return frames.float()


class _Wan(_Denormalised):
    """The original decodes latent frame by latent frame and keeps the last inputs of each convolution.

    Its convolutions only look back, with zeros before the first frame, so one pass over all frames gives the same; but
    where frames are doubled, the first stays one, and is not seen by the others.
    """

    def __init__(self, model: AutoencoderKLWan, dtype: torch.dtype) -> None:
        config: Any = model.config
        mean, std = config.latents_mean, config.latents_std
        super().__init__(model, lambda: torch.tensor(mean), lambda: torch.tensor(std), dtype)
        self.post_quant_conv = model.post_quant_conv
        self.patch: int | None = config.patch_size
        for owner in list(self.decoder.modules()):
            for name, child in list(owner.named_children()):
                if isinstance(child, WanResample) and child.mode == "upsample3d":
                    setattr(owner, name, _Doubled(child))

    def decoded(self, latents: Tensor) -> Tensor:
        """See the class."""
        frames: Tensor = self.decoder(self.post_quant_conv(latents), first_chunk=True)
        frames = frames if self.patch is None else unpatchify(frames, patch_size=self.patch)
        return frames.clamp(-1, 1)  # as the original does


class _Doubled(nn.Module):
    """A WanResample that doubles frames, over a whole video."""

    def __init__(self, original: WanResample) -> None:
        super().__init__()
        self.time_conv = original.time_conv
        self.resample = original.resample

    def forward(self, x: Tensor) -> Tensor:
        """[batch, channels, frames, height, width] to [batch, channels', 2 · frames - 1, 2 · height, 2 · width]."""
        first, rest = x[:, :, :1], x[:, :, 1:]
        pairs = self.time_conv(rest).unflatten(1, (2, x.shape[1]))  # [batch, 2, channels, frames - 1, …]
        rest = pairs.permute(0, 2, 3, 1, 4, 5).flatten(2, 3)
        frames = torch.cat([first, rest], dim=2)
        batch, count = frames.shape[0], frames.shape[2]
        pictures = self.resample(frames.transpose(1, 2).flatten(0, 1))
        return pictures.unflatten(0, (batch, count)).transpose(1, 2)


#: Settings of which only some values are understood: LTX-Video's decoders since 0.9.1 are told a timestep, and may add
#: noise of their own.
_FITS: Mapping[str, Callable[[Mapping[str, Any]], bool]] = {
    "timestep_conditioning": lambda config: not config["timestep_conditioning"],
    "decoder_inject_noise": lambda config: not any(config["decoder_inject_noise"]),
    "out_channels": lambda config: config["out_channels"] == 3 * _patch(config) ** 2,
    "scaling_factor": lambda config: bool(config["scaling_factor"]),
}


def _patch(config: Mapping[str, Any]) -> int:
    """Pixels on each side that Wan's decoder gives as channels; LTX-Video's counts them by itself."""
    return int(config["patch_size"] or 1) if "is_residual" in config else 1


#: Class of diffusers: (class, wrapper, parameters that only encode).
_CLASSES: Mapping[str, tuple[type[Any], Callable[[Any, torch.dtype], nn.Module], tuple[str, ...]]] = {
    "AutoencoderKLCogVideoX": (AutoencoderKLCogVideoX, CogVideoX, ("encoder.", "quant_conv.")),
    "AutoencoderKLHunyuanVideo": (AutoencoderKLHunyuanVideo, HunyuanVideo, ("encoder.", "quant_conv.")),
    "AutoencoderKLMochi": (AutoencoderKLMochi, _Mochi, ("encoder.",)),
    "AutoencoderKLLTXVideo": (AutoencoderKLLTXVideo, _Ltx, ("encoder.",)),
    "AutoencoderKLWan": (AutoencoderKLWan, _Wan, ("encoder.", "quant_conv.")),
}


def _cases(folder: Path) -> Iterator[Case]:
    """What diffusers' pipelines do with latents."""
    name = read_json(folder / "config.json")["_class_name"]
    model_class = _CLASSES[name][0]
    model = model_class.from_pretrained(folder, torch_dtype=torch.float32).eval()
    config = model.config
    for batch, frames, height, width in ((1, 2, 4, 4), (2, 3, 4, 6)):
        random = torch.Generator().manual_seed(batch)
        channels = config.get("z_dim", config.get("latent_channels"))
        latents = torch.randn(batch, channels, frames, height, width, generator=random)
        if name == "AutoencoderKLLTXVideo":
            mean, std, scale = model.latents_mean, model.latents_std, config.scaling_factor
        else:
            mean, std = (
                torch.tensor(config.get(key) or [value]) for key, value in (("latents_mean", 0.0), ("latents_std", 1.0))
            )
            scale = config.get("scaling_factor", 1.0)
        mean, std = (each.view(1, -1, 1, 1, 1) for each in (mean, std))
        with torch.no_grad():
            image = model.decode(latents * std / scale + mean, return_dict=False)[0]
        # CogVideoX's gives more frames than such a video has, at its start, for an even number of latent frames.
        image = image[:, :, -(1 + (frames - 1) * _scales(model)[1]) :]
        yield {"image_latents": latents}, {"image": image}
