"""Small picture models: by family, the arguments of its transformer's class."""

from __future__ import annotations

__all__ = ["SCHEDULERS", "TRANSFORMERS", "write_pipeline"]

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch

from dbcache_export.tiny import save

_HEADS: Mapping[str, Any] = {"num_attention_heads": 2, "attention_head_dim": 8}

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
            "caption_projection_dim": 16,
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
            "caption_projection_dim": 16,
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
            "cross_attention_dim": 16,
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
            "num_layers": 4,
            "num_embeds_ada_norm": 1000,
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
            "axes_dims_rope": [4, 2, 2],
        },
    ),
    "flux2": (
        "Flux2Transformer2DModel",
        {
            **_HEADS,
            "in_channels": 16,
            "num_layers": 4,
            "num_single_layers": 4,
            "joint_attention_dim": 24,
            "timestep_guidance_channels": 32,
            "axes_dims_rope": [2, 2, 2, 2],
        },
    ),
    "z_image": (
        "ZImageTransformer2DModel",
        {
            "in_channels": 4,
            "dim": 12,
            "n_layers": 4,
            "n_refiner_layers": 1,
            "n_heads": 2,
            "n_kv_heads": 2,
            "cap_feat_dim": 24,
            "axes_dims": [2, 2, 2],
            "axes_lens": [96, 32, 32],
        },
    ),
}


#: Family: (class of diffusers, arguments), as in the pipelines that people use.
SCHEDULERS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "sd3": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    "sd35": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    "pixart": ("DPMSolverMultistepScheduler", {}),
    "pixart_sized": ("DPMSolverMultistepScheduler", {}),
    "dit": ("DDIMScheduler", {"clip_sample": False}),
    "qwen_image": (
        "FlowMatchEulerDiscreteScheduler",
        {"use_dynamic_shifting": True, "max_shift": 0.9, "max_image_seq_len": 8192, "shift_terminal": 0.02},
    ),
    "flux2": ("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True}),
    "z_image": ("FlowMatchEulerDiscreteScheduler", {"shift": 6.0}),
}


def write_pipeline(family: str, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """Writes transformer, with random weights, and scheduler of a family."""
    name, arguments = TRANSFORMERS[family]
    save(getattr(diffusers, name)(**arguments), folder / "transformer", dtype)
    name, arguments = SCHEDULERS[family]
    getattr(diffusers, name)(**arguments).save_pretrained(folder / "scheduler")
