"""Small video models: by family, the arguments of its transformer's class."""

from __future__ import annotations

__all__ = [
    "AUTOENCODERS",
    "SCHEDULERS",
    "TRANSFORMERS",
    "write_parts",
    "write_pipeline",
    "write_second",
    "write_transformer",
]

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch

from dbcache_export.tiny import save
from dbcache_export.tiny.texts import write_clip, write_llama, write_t5, write_umt5

_HEADS: Mapping[str, Any] = {"num_attention_heads": 2, "attention_head_dim": 16}
_COGVIDEOX: Mapping[str, Any] = {
    **_HEADS,
    "in_channels": 4,
    "out_channels": 4,
    "time_embed_dim": 12,
    "text_embed_dim": 20,
    "num_layers": 4,
    "sample_width": 8,
    "sample_height": 6,
    "sample_frames": 9,
    "max_text_seq_length": 7,
}

#: Family: (class of diffusers, arguments).
TRANSFORMERS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "cogvideox": ("CogVideoXTransformer3DModel", _COGVIDEOX),
    "cogvideox_rotary": ("CogVideoXTransformer3DModel", {**_COGVIDEOX, "use_rotary_positional_embeddings": True}),
    "mochi": (
        "MochiTransformer3DModel",
        {
            **_HEADS,
            "num_layers": 4,
            "pooled_projection_dim": 24,
            "in_channels": 4,
            "text_embed_dim": 16,
            "time_embed_dim": 12,
            "max_sequence_length": 16,
        },
    ),
    "wan": (
        "WanTransformer3DModel",
        {
            **_HEADS,
            "in_channels": 4,
            "out_channels": 4,
            "text_dim": 20,
            "freq_dim": 16,
            "ffn_dim": 48,
            "num_layers": 4,
            "cross_attn_norm": True,
            "rope_max_seq_len": 64,
        },
    ),
    "ltx": (
        "LTXVideoTransformer3DModel",
        {
            **_HEADS,
            "in_channels": 4,
            "out_channels": 4,
            "cross_attention_dim": 32,
            "num_layers": 4,
            "caption_channels": 20,
        },
    ),
    "hunyuan_video": (
        "HunyuanVideoTransformer3DModel",
        {
            **_HEADS,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 2,
            "num_single_layers": 3,
            "num_refiner_layers": 2,
            "mlp_ratio": 2.0,
            "text_embed_dim": 20,
            "pooled_projection_dim": 12,
            "rope_axes_dim": (4, 6, 6),
        },
    ),
}

_NORMALISED: Mapping[str, Any] = {"latents_mean": [0.1, -0.2, 0.3, 0.4], "latents_std": [1.1, 0.9, 0.8, 1.2]}
_COGVIDEOX_STEPS: Mapping[str, Any] = {
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
    "clip_sample": False,
}

#: Family: (class of diffusers, arguments), as in the pipelines that people use.
SCHEDULERS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "cogvideox": ("CogVideoXDDIMScheduler", {**_COGVIDEOX_STEPS, "snr_shift_scale": 3.0}),
    "cogvideox_rotary": ("CogVideoXDDIMScheduler", {**_COGVIDEOX_STEPS, "snr_shift_scale": 1.0}),
    "mochi": ("FlowMatchEulerDiscreteScheduler", {"invert_sigmas": True}),
    "wan": (
        "UniPCMultistepScheduler",
        {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0},
    ),
    "ltx": (
        "FlowMatchEulerDiscreteScheduler",
        {
            "use_dynamic_shifting": True,
            "base_shift": 0.95,
            "max_shift": 2.05,
            "base_image_seq_len": 1024,
            "max_image_seq_len": 4096,
            "shift_terminal": 0.1,
        },
    ),
    "hunyuan_video": ("FlowMatchEulerDiscreteScheduler", {"shift": 7.0}),
}


def write_pipeline(family: str, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """Writes transformer, with random weights, and scheduler of a family."""
    name, arguments = TRANSFORMERS[family]
    save(getattr(diffusers, name)(**arguments), folder / "transformer", dtype)
    name, arguments = SCHEDULERS[family]
    getattr(diffusers, name)(**arguments).save_pretrained(folder / "scheduler")


def write_second(family: str, folder: Path, boundary_ratio: float, dtype: torch.dtype = torch.float32) -> None:
    """Adds a second transformer to a pipeline, with other weights, and what says when it takes over."""
    name, arguments = TRANSFORMERS[family]
    save(getattr(diffusers, name)(**arguments), folder / "transformer_2", dtype, "second ")
    index = {"_class_name": "WanPipeline", "boundary_ratio": boundary_ratio}
    (folder / "model_index.json").write_text(json.dumps(index))


#: Family: (class of diffusers, arguments) of its autoencoder.
AUTOENCODERS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "cogvideox": (
        "AutoencoderKLCogVideoX",
        {
            "block_out_channels": (8, 8, 8, 8),
            "latent_channels": 4,
            "layers_per_block": 1,
            "norm_num_groups": 4,
            "scaling_factor": 0.7,
        },
    ),
    "hunyuan_video": (
        "AutoencoderKLHunyuanVideo",
        {"block_out_channels": (8, 8, 8, 8), "latent_channels": 4, "layers_per_block": 1, "norm_num_groups": 4},
    ),
    "mochi": (
        "AutoencoderKLMochi",
        {
            "encoder_block_out_channels": (32, 32, 32, 32),
            "decoder_block_out_channels": (32, 32, 32, 32),
            "latent_channels": 4,
            "layers_per_block": (1, 1, 1, 1, 1),
            **_NORMALISED,
            "scaling_factor": 1.5,
        },
    ),
    "wan": (
        "AutoencoderKLWan",
        {"base_dim": 16, "z_dim": 4, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1, **_NORMALISED},
    ),
    "ltx": (
        "AutoencoderKLLTXVideo",
        {
            "latent_channels": 4,
            "block_out_channels": (8, 8, 8, 8),
            "decoder_block_out_channels": (8, 8, 8, 8),
            "layers_per_block": (1, 1, 1, 1, 1),
            "decoder_layers_per_block": (1, 1, 1, 1, 1),
        },
    ),
}


def write_parts(family: str, folder: Path) -> None:
    """Writes the text encoder of a family, and its autoencoder where there is one."""
    if family == "wan":
        write_umt5(folder, 20)
    elif family == "hunyuan_video":
        write_llama(folder, 20)
        write_clip(folder, "_2", 12)
    else:
        write_t5(folder, "", TRANSFORMERS[family][1].get("text_embed_dim", 20))
    if family in AUTOENCODERS:
        name, arguments = AUTOENCODERS[family]
        save(getattr(diffusers, name)(**arguments), folder / "vae")


def write_transformer(family: str, folder: Path, **change: Any) -> None:
    """Writes the transformer of a family with random weights, with some arguments changed."""
    name, arguments = TRANSFORMERS[family]
    save(getattr(diffusers, name)(**{**arguments, **change}), folder)
