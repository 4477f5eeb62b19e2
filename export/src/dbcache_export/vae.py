"""A pipeline's autoencoder: from latents to pixels."""

from __future__ import annotations

__all__ = ["Decoder", "decoder"]

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from dbcache_export import checkpoint
from dbcache_export.errors import ExportError
from dbcache_export.folder import read_json
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


def decoder(folder: Path, options: Options, fake: FakeTensorMode) -> Decoder:
    """The decoding half of the AutoencoderKL in `folder`.

    Raises:
        ExportError: It is of another class.
    """
    config = read_json(folder / "config.json")
    if config.get("_class_name") != "AutoencoderKL":
        raise ExportError(f"{folder}: {config.get('_class_name')} is not supported", "supported: AutoencoderKL")
    # A model that asks for float32 overflows in float16 but not in bfloat16.
    dtype: DType = "f32" if options.compute == "f16" and config.get("force_upcast", True) else options.compute
    arguments = {name: value for name, value in config.items() if not name.startswith("_")}
    module = fake_module(fake, dtype, lambda: _Decode(AutoencoderKL(**arguments), DTYPES[dtype][0]))
    channels = config.get("latent_channels", 4)
    tensors = {
        "image_latents": Tensor("f32", ("batch", channels, "latent_height", "latent_width")),
        "image": Tensor("f32", ("batch", 3, "height", "width")),
    }
    inputs, outputs = ({name: tensors[name]} for name in tensors)
    template = Template("decode", module, inputs, outputs)
    graph = Graph("decode.onnx", template, "vae", cases=lambda: _cases(folder))
    downscale = 2 ** (len(config.get("block_out_channels", [64])) - 1)
    return Decoder(graph, tensors, checkpoint.read(folder, "vae"), ("encoder.", "quant_conv."), channels, downscale)


class _Decode(nn.Module):
    """Undoes the scaling of latents, then decodes."""

    def __init__(self, model: AutoencoderKL, dtype: torch.dtype) -> None:
        super().__init__()
        self.post_quant_conv = model.post_quant_conv
        self.decoder = model.decoder
        self.scale: float = model.config.scaling_factor
        self.shift: float = model.config.shift_factor or 0.0
        self.dtype = dtype

    def forward(self, image_latents: torch.Tensor) -> torch.Tensor:
        """[batch, channels, latent_height, latent_width] to [batch, 3, height, width], both float32, -1 … 1."""
        latents = (image_latents / self.scale + self.shift).to(self.dtype)
        if self.post_quant_conv is not None:
            latents = self.post_quant_conv(latents)
        image: torch.Tensor = self.decoder(latents)
        return image.float().clamp(-1, 1)


def _cases(folder: Path) -> Iterator[Case]:
    """What diffusers' pipeline does with latents."""
    model: Any = AutoencoderKL.from_pretrained(folder, torch_dtype=torch.float32).eval()
    channels, scale, shift = (
        model.config.latent_channels,
        model.config.scaling_factor,
        model.config.shift_factor,
    )
    for batch, height, width in ((1, 8, 8), (2, 10, 14)):
        random = torch.Generator().manual_seed(batch)
        latents = torch.randn(batch, channels, height, width, generator=random)
        with torch.no_grad():
            image = model.decode(latents / scale + (shift or 0.0), return_dict=False)[0]
        yield {"image_latents": latents}, {"image": image.clamp(-1, 1)}
