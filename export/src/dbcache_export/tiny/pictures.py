"""Small picture models: by family, the arguments of its transformer's class."""

from __future__ import annotations

__all__ = ["TRANSFORMERS", "write_transformer"]

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers

from dbcache_export.tiny import save

_HEADS: Mapping[str, Any] = {"num_attention_heads": 2, "attention_head_dim": 16}

#: Family: (class of diffusers, arguments).
TRANSFORMERS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "sd3": (
        "SD3Transformer2DModel",
        {
            **_HEADS,
            "sample_size": 16,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 4,
            "joint_attention_dim": 24,
            "caption_projection_dim": 32,
            "pooled_projection_dim": 20,
            "pos_embed_max_size": 24,
        },
    ),
    "sd35": (
        "SD3Transformer2DModel",
        {
            **_HEADS,
            "sample_size": 16,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 6,
            "joint_attention_dim": 24,
            "caption_projection_dim": 32,
            "pooled_projection_dim": 20,
            "pos_embed_max_size": 24,
            "dual_attention_layers": [0, 1, 2],
            "qk_norm": "rms_norm",
        },
    ),
    "pixart": (
        "PixArtTransformer2DModel",
        {
            **_HEADS,
            "sample_size": 16,
            "in_channels": 4,
            "out_channels": 8,
            "num_layers": 6,
            "cross_attention_dim": 32,
            "caption_channels": 24,
            "interpolation_scale": 2,
        },
    ),
    "pixart_sized": (
        "PixArtTransformer2DModel",
        {
            "num_attention_heads": 2,
            "attention_head_dim": 24,
            "sample_size": 16,
            "in_channels": 4,
            "out_channels": 8,
            "num_layers": 2,
            "cross_attention_dim": 48,
            "caption_channels": 24,
            "use_additional_conditions": True,
        },
    ),
    "dit": (
        "DiTTransformer2DModel",
        {
            **_HEADS,
            "sample_size": 8,
            "in_channels": 4,
            "out_channels": 8,
            "num_layers": 6,
            "num_embeds_ada_norm": 10,
        },
    ),
    "qwen_image": (
        "QwenImageTransformer2DModel",
        {
            **_HEADS,
            "in_channels": 16,
            "out_channels": 4,
            "num_layers": 6,
            "joint_attention_dim": 24,
            "axes_dims_rope": [4, 6, 6],
        },
    ),
    "flux2": (
        "Flux2Transformer2DModel",
        {
            **_HEADS,
            "in_channels": 16,
            "num_layers": 2,
            "num_single_layers": 4,
            "joint_attention_dim": 24,
            "timestep_guidance_channels": 32,
            "axes_dims_rope": [4, 4, 4, 4],
        },
    ),
    "z_image": (
        "ZImageTransformer2DModel",
        {
            "in_channels": 4,
            "dim": 48,
            "n_layers": 6,
            "n_refiner_layers": 1,
            "n_heads": 3,
            "n_kv_heads": 3,
            "cap_feat_dim": 24,
            "axes_dims": [4, 6, 6],
            "axes_lens": [96, 32, 32],
        },
    ),
}


def write_transformer(family: str, folder: Path) -> None:
    """Writes the transformer of a family with random weights."""
    name, arguments = TRANSFORMERS[family]
    save(getattr(diffusers, name)(**arguments), folder)
