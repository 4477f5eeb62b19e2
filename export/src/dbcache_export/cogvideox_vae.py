"""CogVideoX's decoder over all frames of a video in one pass.

The original decodes two latent frames at a time, of an odd number first three, and hands the last inputs of each
convolution on. Its convolutions look back in time only, and see copies of the first frame before it, so one pass gives
the same, but for two things. Group norms see each of those groups by itself. And of an odd number the first latent
frame becomes one frame, not four: here it becomes four equal ones, which convolutions cannot tell from the copies
before a single one; norms do not count three of them, and the result leaves them out. The number of frames then decides
about values only and never about a shape, which is what makes the graph possible.

Of an even number the original's first latent frame becomes four frames, although a video has 1 + 4 · k of them; its
first three are left out here as well.
"""

from __future__ import annotations

__all__ = ["CogVideoX"]

from functools import partial
from typing import Any

import torch
from diffusers import AutoencoderKLCogVideoX
from diffusers.models.autoencoders.autoencoder_kl_cogvideox import CogVideoXSafeConv3d, CogVideoXSpatialNorm3D
from torch import Tensor, nn
from torch.nn import functional

#: Latents as large as the frames of some layers, [batch, channels, frames, height, width], and the share that each of
#: those frames has in the mean over the group of another, [frames, frames].
_Context = tuple[Tensor, Tensor]


class CogVideoX(nn.Module):
    """Undoes the scaling of latents, then decodes."""

    def __init__(self, model: AutoencoderKLCogVideoX, dtype: torch.dtype) -> None:
        """Takes the decoder out of `model`; it computes in `dtype`."""
        super().__init__()
        self.post_quant_conv = model.post_quant_conv
        self.decoder = model.decoder
        config: Any = model.config
        self.scale: float = config.scaling_factor
        self.group: int = model.num_latent_frames_batch_size
        self.dropped: int = config.temporal_compression_ratio - 1
        self.dtype = dtype
        for block in self.decoder.up_blocks:
            for index, upsampler in enumerate(block.upsamplers or ()):
                block.upsamplers[index] = _Upsampler(upsampler)
        for owner in list(self.decoder.modules()):
            for name, child in list(owner.named_children()):
                if isinstance(child, CogVideoXSpatialNorm3D):
                    setattr(owner, name, _SpatialNorm(child))
        for convolution in self.modules():
            if isinstance(convolution, CogVideoXSafeConv3d):  # cuts large inputs: a graph cannot ask for their size
                convolution.forward = partial(nn.Conv3d.forward, convolution)

    def forward(self, image_latents: Tensor) -> Tensor:
        """[batch, channels, latent_frames, latent_height, latent_width] to [batch, 3, frames, …], float32."""
        latents = (image_latents / self.scale).to(self.dtype)
        if self.post_quant_conv is not None:
            latents = self.post_quant_conv(latents)
        decoder: Any = self.decoder
        times, space = 1, 1
        context = self._context(latents, times, space)
        states = decoder.mid_block(decoder.conv_in(latents)[0], None, context)[0]
        for block in decoder.up_blocks:
            states = block(states, None, context)[0]
            for upsampler in block.upsamplers or ():
                times, space = times * upsampler.times, space * 2
                context = self._context(latents, times, space)
        frames = decoder.conv_out(decoder.conv_act(decoder.norm_out(states, context)[0]))[0]
        return frames[:, :, self.dropped :].float()

    def _context(self, latents: Tensor, times: int, space: int) -> _Context:
        count = latents.shape[2]
        frame = torch.arange(count * times)
        odd = torch.full((), count, dtype=torch.int64) % self.group
        group = ((frame // times - odd) // self.group).clamp(min=0)
        copies = frame < odd * (times - 1)
        counted = ((group[:, None] == group[None]) & ~copies[None]).float()
        return _enlarged(latents, times, space), counted / counted.sum(dim=1, keepdim=True)


class _SpatialNorm(nn.Module):
    """A CogVideoXSpatialNorm3D: norms groups of frames, then scales and shifts by what it makes of the latents."""

    def __init__(self, original: CogVideoXSpatialNorm3D) -> None:
        super().__init__()
        self.norm_layer = original.norm_layer
        self.conv_y, self.conv_b = original.conv_y, original.conv_b

    def forward(self, f: Tensor, zq: _Context, conv_cache: None = None) -> tuple[Tensor, None]:
        """[batch, channels, frames, height, width] to the same."""
        latents, shares = zq
        norm = self.norm_layer
        x = f.float().unflatten(1, (norm.num_groups, -1))  # [batch, group of channels, channels of it, frames, …]
        x = x - _over_groups(x, shares)
        x = x * torch.rsqrt(_over_groups(x * x, shares) + norm.eps)
        weight, bias = (each[:, None, None, None] for each in (norm.weight, norm.bias))
        normed = x.flatten(1, 2).to(f.dtype) * weight + bias
        return normed * self.conv_y(latents)[0] + self.conv_b(latents)[0], None


def _over_groups(x: Tensor, shares: Tensor) -> Tensor:
    means = x.mean(dim=(2, 4, 5))
    return (means @ shares.T)[:, :, None, :, None, None]


class _Upsampler(nn.Module):
    """A CogVideoXUpsample3D."""

    def __init__(self, original: Any) -> None:
        super().__init__()
        self.conv = original.conv
        self.times = 2 if original.compress_time else 1

    def forward(self, inputs: Tensor) -> Tensor:
        """[batch, channels, frames, height, width] to [batch, channels', frames or twice, 2 · height, 2 · width]."""
        pictures = self.conv(_enlarged(inputs, self.times, 2).transpose(1, 2).flatten(0, 1))
        return pictures.unflatten(0, (inputs.shape[0], -1)).transpose(1, 2)


def _enlarged(x: Tensor, times: int, space: int) -> Tensor:
    """Repeats each cell `space` times along both sides, and each frame `times` times."""
    if times == space == 1:
        return x
    frames, height, width = x.shape[2:]
    return functional.interpolate(x, size=(frames * times, height * space, width * space), mode="nearest")
