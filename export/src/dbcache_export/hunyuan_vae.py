"""HunyuanVideo's decoder over the frames that it is given.

The original decodes long videos in overlapping runs of frames; so does the engine, as the manifest says.
"""

from __future__ import annotations

__all__ = ["HunyuanVideo"]

from typing import Any

import torch
from diffusers import AutoencoderKLHunyuanVideo
from diffusers.models.autoencoders.autoencoder_kl_hunyuan_video import HunyuanVideoUpsampleCausal3D
from torch import Tensor, nn
from torch.nn import functional

from dbcache_export.families.rotary import mix


class HunyuanVideo(nn.Module):
    """Undoes the scaling of latents, then decodes."""

    def __init__(self, model: AutoencoderKLHunyuanVideo, dtype: torch.dtype) -> None:
        """Takes the decoder out of `model`; it computes in `dtype`."""
        super().__init__()
        self.post_quant_conv = model.post_quant_conv
        self.decoder = model.decoder
        config: Any = model.config
        self.scale: float = config.scaling_factor
        self.dtype = dtype
        self.decoder.mid_block = _Mid(model.decoder.mid_block)
        for owner in list(self.decoder.modules()):
            for name, child in list(owner.named_children()):
                if isinstance(child, HunyuanVideoUpsampleCausal3D):
                    setattr(owner, name, _Upsampler(child))

    def forward(self, image_latents: Tensor) -> Tensor:
        """[batch, channels, latent_frames, latent_height, latent_width] to [batch, 3, frames, …], float32."""
        latents = (image_latents / self.scale).to(self.dtype)
        frames: Tensor = self.decoder(self.post_quant_conv(latents))
        return frames.float()


class _Mid(nn.Module):
    """A HunyuanVideoMidBlock3D, whose mask of what lies ahead follows from the number of frames."""

    def __init__(self, original: Any) -> None:
        super().__init__()
        self.attentions = original.attentions
        for attention in self.attentions:
            if attention is not None:
                attention.processor = _Attend()
        self.resnets = original.resnets

    def forward(self, states: Tensor) -> Tensor:
        """[batch, channels, latent_frames, latent_height, latent_width] to the same."""
        states = self.resnets[0](states)
        for attention, resnet in zip(self.attentions, list(self.resnets)[1:], strict=True):
            if attention is not None:
                batch, channels, count, height, width = states.shape
                frame = torch.arange(count)[:, None].expand(-1, height * width).flatten()
                ahead = frame[None] > frame[:, None]
                mask = torch.where(ahead, torch.finfo(states.dtype).min, 0.0).to(states.dtype)
                tokens = attention(states.flatten(2).transpose(1, 2), attention_mask=mask)
                states = tokens.transpose(1, 2).reshape(batch, channels, count, height, width)
            states = resnet(states)
        return states


class _Attend:
    """The processor of the Attention between tokens of all frames."""

    def __call__(self, attn: Any, hidden_states: Tensor, encoder_hidden_states: None, attention_mask: Tensor) -> Tensor:
        """[batch, tokens, channels] to the same; the mask, [tokens, tokens], is added to the scores."""
        normed = attn.group_norm(hidden_states.transpose(1, 2)).transpose(1, 2)
        query, key, value = (
            layer(normed).unflatten(2, (attn.heads, -1)) for layer in (attn.to_q, attn.to_k, attn.to_v)
        )
        result: Tensor = attn.to_out[0](mix(query, key, value, attention_mask)) + hidden_states
        return result


class _Upsampler(nn.Module):
    """A HunyuanVideoUpsampleCausal3D; where it doubles frames, the first stays one."""

    def __init__(self, original: HunyuanVideoUpsampleCausal3D) -> None:
        super().__init__()
        self.conv = original.conv
        self.factors = [int(factor) for factor in original.upsample_factor]

    def forward(self, states: Tensor) -> Tensor:
        """[batch, channels, frames, height, width] to as many times each of the last three, but for the first frame."""
        size = [extent * factor for extent, factor in zip(states.shape[2:], self.factors, strict=True)]
        larger = functional.interpolate(states, size=size, mode="nearest")
        result: Tensor = self.conv(larger[:, :, self.factors[0] - 1 :])
        return result
