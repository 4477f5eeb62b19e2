"""Small video models: by family, the arguments of its transformer's class."""

from __future__ import annotations

__all__ = ["TRANSFORMERS", "write_transformer"]

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers

from dbcache_export.tiny import save

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


def write_transformer(family: str, folder: Path, **change: Any) -> None:
    """Writes the transformer of a family with random weights, with some arguments changed."""
    name, arguments = TRANSFORMERS[family]
    save(getattr(diffusers, name)(**{**arguments, **change}), folder)
