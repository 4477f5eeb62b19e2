"""A pipeline's autoencoder: from latents to pixels."""

from __future__ import annotations

__all__ = ["Decoder", "decoder"]

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderKLFlux2, AutoencoderKLQwenImage, Flux2Pipeline
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from dbcache_export import checkpoint
from dbcache_export.errors import ExportError, listed
from dbcache_export.folder import configuration, read_json
from dbcache_export.spec import DTYPES, Case, DType, Graph, Options, Template, Tensor
from dbcache_export.template import fake_module


@dataclass(frozen=True)
class Decoder:
    """The autoencoder's share of a Plan."""

    graph: Graph
    tensors: dict[str, Tensor]
    checkpoint: checkpoint.Checkpoint
    ignored: Sequence[str]
    channels: int
    downscale: int


def decoder(folder: Path, options: Options, fake: FakeTensorMode, *, shifts: bool = True) -> Decoder:
    """The decoding half of the autoencoder in `folder`.

    Args:
        folder: Of the autoencoder.
        options: For the type in which it computes.
        fake: Of the export.
        shifts: Whether the pipeline adds an AutoencoderKL's `shift_factor` to the latents; some pass over it.

    Raises:
        ExportError: It is of an unknown class.
    """
    name = str(read_json(folder / "config.json").get("_class_name"))
    if name not in _CLASSES:
        raise ExportError(f"{folder}: {name} is not supported", f"supported: {listed(_CLASSES)}")
    if name == AutoencoderKL.__name__:
        return _kl(folder, options, fake, shifts=shifts)
    return _CLASSES[name](folder, options, fake)


def _kl(folder: Path, options: Options, fake: FakeTensorMode, *, shifts: bool = True) -> Decoder:
    """An AutoencoderKL, of pictures."""
    config = configuration(folder, AutoencoderKL, lambda _: {"out_channels": (3,)})
    if not config["scaling_factor"]:
        raise ExportError(
            f"{folder / 'config.json'}: scaling_factor = {config['scaling_factor']}", "give the published config.json"
        )
    shift = config["shift_factor"] if shifts and config["shift_factor"] else 0.0
    # A model that asks for float32 overflows in float16 but not in bfloat16.
    dtype: DType = "f32" if options.compute == "f16" and config["force_upcast"] else options.compute
    module = fake_module(fake, dtype, lambda: _Decode(AutoencoderKL(**config), shift, DTYPES[dtype][0]))
    channels = config["latent_channels"]
    tensors = {
        "image_latents": Tensor("f32", ("batch", channels, "latent_height", "latent_width")),
        "image": Tensor("f32", ("batch", 3, "height", "width")),
    }
    inputs, outputs = ({name: tensors[name]} for name in tensors)
    template = Template("decode", module, inputs, outputs)
    stored = checkpoint.read(folder, "vae")
    graph = Graph("decode.onnx", template, "vae", _attention_names(stored), cases=lambda: _cases(folder, shift))
    downscale = 2 ** (len(config["block_out_channels"]) - 1)
    return Decoder(graph, tensors, stored, ("encoder.", "quant_conv."), channels, downscale)


def _attention_names(stored: checkpoint.Checkpoint) -> Callable[[str], str]:
    """From today's names of an attention's layers to those of 2022, which diffusers renames while it loads a file."""
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def name(parameter: str) -> str:
        for today, before in old.items():
            earlier = parameter.replace(f".attentions.0.{today}.", f".attentions.0.{before}.")
            if earlier in stored.parameters:
                return earlier
        return parameter

    return name


class _Decode(nn.Module):
    """Undoes the scaling of latents, then decodes."""

    def __init__(self, model: AutoencoderKL, shift: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.post_quant_conv = model.post_quant_conv
        self.decoder = model.decoder
        self.scale: float = model.config.scaling_factor
        self.shift = shift
        self.dtype = dtype

    def forward(self, image_latents: torch.Tensor) -> torch.Tensor:
        """[batch, channels, latent_height, latent_width] to [batch, 3, height, width], both float32."""
        latents = (image_latents / self.scale + self.shift).to(self.dtype)
        if self.post_quant_conv is not None:
            latents = self.post_quant_conv(latents)
        image: torch.Tensor = self.decoder(latents)
        return image.float()


def _cases(folder: Path, shift: float) -> Iterator[Case]:
    """What diffusers' pipeline does with latents."""
    model: Any = AutoencoderKL.from_pretrained(folder, torch_dtype=torch.float32).eval()
    channels, scale = model.config.latent_channels, model.config.scaling_factor
    for batch, height, width in ((1, 8, 8), (2, 10, 14)):
        random = torch.Generator().manual_seed(batch)
        latents = torch.randn(batch, channels, height, width, generator=random)
        with torch.no_grad():
            image = model.decode(latents / scale + shift, return_dict=False)[0]
        yield {"image_latents": latents}, {"image": image}


def _qwen(folder: Path, options: Options, fake: FakeTensorMode) -> Decoder:
    """An AutoencoderKLQwenImage: made for videos, here for one frame, which the convolutions over time never see."""
    dtype = options.compute
    config = configuration(folder, AutoencoderKLQwenImage, lambda _: {"input_channels": (3,)})
    module = fake_module(fake, dtype, lambda: _DecodeFrame(AutoencoderKLQwenImage(**config), DTYPES[dtype][0]))
    assert isinstance(module, _DecodeFrame)
    channels = len(module.mean)
    tensors = {
        "image_latents": Tensor("f32", ("batch", channels, "latent_height", "latent_width")),
        "image": Tensor("f32", ("batch", 3, "height", "width")),
    }
    inputs, outputs = ({name: tensors[name]} for name in tensors)
    graph = Graph("decode.onnx", Template("decode", module, inputs, outputs), "vae", cases=lambda: _qwen_cases(folder))
    ignored = ("encoder.", "quant_conv.", *module.over_time)
    return Decoder(graph, tensors, checkpoint.read(folder, "vae"), ignored, channels, module.downscale)


class _DecodeFrame(nn.Module):
    """Undoes the scaling of latents, then decodes them as the first frame of a video."""

    def __init__(self, model: Any, dtype: torch.dtype) -> None:
        super().__init__()
        self.over_time = [
            f"decoder.{name}." for name, _ in model.decoder.named_modules() if name.endswith(".time_conv")
        ]
        for name in self.over_time:
            model.get_submodule(name.rpartition(".time_conv")[0]).time_conv = nn.Identity()
        self.post_quant_conv = model.post_quant_conv
        self.decoder = model.decoder
        self.mean: list[float] = model.config.latents_mean
        self.deviation: list[float] = model.config.latents_std
        self.downscale: int = model.spatial_compression_ratio
        model.clear_cache()
        self.caches: int = model._conv_num + len(self.over_time)
        self.dtype = dtype

    def forward(self, image_latents: torch.Tensor) -> torch.Tensor:
        """[batch, channels, latent_height, latent_width] to [batch, 3, height, width], both float32."""
        mean, deviation = (
            torch.tensor(values, dtype=torch.float32)[:, None, None] for values in (self.mean, self.deviation)
        )
        frame = (image_latents * deviation + mean).to(self.dtype)[:, :, None]
        image: torch.Tensor = self.decoder(self.post_quant_conv(frame), feat_cache=[None] * self.caches, feat_idx=[0])
        return image[:, :, 0].float().clamp(-1, 1)  # as the original does


def _qwen_cases(folder: Path) -> Iterator[Case]:
    """What diffusers' pipeline does with latents."""
    model: Any = AutoencoderKLQwenImage.from_pretrained(folder, torch_dtype=torch.float32).eval()
    mean, deviation = (
        torch.tensor(values)[None, :, None, None] for values in (model.config.latents_mean, model.config.latents_std)
    )
    for batch, height, width in ((1, 8, 8), (2, 10, 14)):
        random = torch.Generator().manual_seed(batch)
        latents = torch.randn(batch, mean.shape[1], height, width, generator=random)
        with torch.no_grad():
            image = model.decode((latents / (1 / deviation) + mean)[:, :, None], return_dict=False)[0][:, :, 0]
        yield {"image_latents": latents}, {"image": image}


def _flux2(folder: Path, options: Options, fake: FakeTensorMode) -> Decoder:
    """An AutoencoderKLFlux2: a latent cell has the channels of two by two cells of the autoencoder's own."""
    dtype = options.compute
    config = configuration(folder, AutoencoderKLFlux2, lambda _: {"out_channels": (3,), "patch_size": ((2, 2),)})
    module = fake_module(fake, dtype, lambda: _DecodeFlux2(AutoencoderKLFlux2(**config), DTYPES[dtype][0]))
    channels = 4 * config["latent_channels"]
    tensors = {
        "image_latents": Tensor("f32", ("batch", channels, "latent_height", "latent_width")),
        "image": Tensor("f32", ("batch", 3, "height", "width")),
    }
    inputs, outputs = ({name: tensors[name]} for name in tensors)
    graph = Graph("decode.onnx", Template("decode", module, inputs, outputs), "vae", cases=lambda: _flux2_cases(folder))
    downscale = 2 * 2 ** (len(config["block_out_channels"]) - 1)
    ignored = ("encoder.", "quant_conv.", "bn.num_batches_tracked")
    return Decoder(graph, tensors, checkpoint.read(folder, "vae"), ignored, channels, downscale)


class _DecodeFlux2(nn.Module):
    """Undoes the normalisation of latents by their measured mean and variance, then decodes."""

    def __init__(self, model: Any, dtype: torch.dtype) -> None:
        super().__init__()
        self.bn = model.bn
        self.post_quant_conv = model.post_quant_conv
        self.decoder = model.decoder
        self.epsilon: float = model.config.batch_norm_eps
        self.dtype = dtype

    def forward(self, image_latents: torch.Tensor) -> torch.Tensor:
        """[batch, channels, latent_height, latent_width] to [batch, 3, height, width], both float32."""
        mean, variance = (value.float()[:, None, None] for value in (self.bn.running_mean, self.bn.running_var))
        latents = image_latents * (variance + self.epsilon).sqrt() + mean
        cells = nn.functional.pixel_shuffle(latents, 2).to(self.dtype)
        if self.post_quant_conv is not None:
            cells = self.post_quant_conv(cells)
        image: torch.Tensor = self.decoder(cells)
        return image.float()


def _flux2_cases(folder: Path) -> Iterator[Case]:
    """What diffusers' pipeline does with latents."""
    model: Any = AutoencoderKLFlux2.from_pretrained(folder, torch_dtype=torch.float32).eval()
    mean = model.bn.running_mean.view(1, -1, 1, 1)
    deviation = torch.sqrt(model.bn.running_var.view(1, -1, 1, 1) + model.config.batch_norm_eps)
    for batch, height, width in ((1, 4, 4), (2, 5, 7)):
        random = torch.Generator().manual_seed(batch)
        latents = torch.randn(batch, mean.shape[1], height, width, generator=random)
        with torch.no_grad():
            cells = Flux2Pipeline._unpatchify_latents(latents * deviation + mean)
            image = model.decode(cells, return_dict=False)[0]
        yield {"image_latents": latents}, {"image": image}


_CLASSES: Mapping[str, Callable[[Path, Options, FakeTensorMode], Decoder]] = {
    "AutoencoderKL": _kl,
    "AutoencoderKLFlux2": _flux2,
    "AutoencoderKLQwenImage": _qwen,
}
