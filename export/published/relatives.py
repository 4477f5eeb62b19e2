"""Relatives of the models in `models/`: what differs in their published configurations, and what becomes of them."""

from __future__ import annotations

__all__ = ["REFUSED", "REFUSED_TRANSFORMERS", "TAKEN", "UNKNOWN", "relative"]

from collections.abc import Mapping
from typing import Any

from holes import published

_MISTRAL = {
    "architectures": ["Mistral3ForConditionalGeneration"],
    "dtype": "bfloat16",
    "image_token_index": 10,
    "model_type": "mistral3",
    "multimodal_projector_bias": False,
    "projector_hidden_act": "gelu",
    "spatial_merge_size": 2,
    "text_config": {
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 5120,
        "intermediate_size": 32768,
        "max_position_embeddings": 131072,
        "model_type": "mistral",
        "num_attention_heads": 32,
        "num_hidden_layers": 40,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05,
        "rope_theta": 1000000000.0,
        "sliding_window": None,
        "vocab_size": 131072,
    },
    "vision_config": {
        "head_dim": 64,
        "hidden_size": 1024,
        "image_size": 1540,
        "intermediate_size": 4096,
        "model_type": "pixtral",
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "patch_size": 14,
    },
    "vision_feature_layer": -1,
}
_SIGMA = {"interpolation_scale": 2, "use_additional_conditions": False}
_LARGE = {"num_attention_heads": 38, "num_layers": 38, "caption_projection_dim": 2432, "pos_embed_max_size": 192}

#: Models that are taken: (like which, pipeline if another, settings by part).
TAKEN: Mapping[str, tuple[str, str | None, Mapping[str, Mapping[str, Any]]]] = {
    "CogVideoX-2b": (
        "CogVideoX-5b",
        None,
        {
            "transformer": {"num_attention_heads": 30, "num_layers": 30, "use_rotary_positional_embeddings": False},
            "scheduler": {"snr_shift_scale": 3.0},
            "vae": {"scaling_factor": 1.15258426},
        },
    ),
    "DiT-XL-2-512": ("DiT-XL-2-256", None, {"transformer": {"sample_size": 64}}),
    "FLUX.2-dev": (
        "FLUX.2-klein-4B",
        "Flux2Pipeline",
        {
            "transformer": {
                "guidance_embeds": True,
                "joint_attention_dim": 15360,
                "num_attention_heads": 48,
                "num_layers": 8,
                "num_single_layers": 48,
            },
            "text": {"text_encoder": _MISTRAL},
        },
    ),
    "PixArt-Sigma-XL-2-1024-MS": (
        "PixArt-XL-2-1024-MS",
        "PixArtSigmaPipeline",
        {"transformer": _SIGMA, "vae": {"scaling_factor": 0.13025, "force_upcast": True}},
    ),
    "PixArt-XL-2-512x512": ("PixArt-XL-2-1024-MS", None, {"transformer": {"sample_size": 64}}),
    "SD3-medium": (
        "SD3.5-medium",
        None,
        {"transformer": {"pos_embed_max_size": 192, "dual_attention_layers": [], "qk_norm": None}},
    ),
    "SD3.5-large": ("SD3.5-medium", None, {"transformer": _LARGE | {"dual_attention_layers": []}}),
    "Wan2.1-T2V-14B": (
        "Wan2.1-T2V-1.3B",
        None,
        {
            "transformer": {"num_attention_heads": 40, "num_layers": 40, "ffn_dim": 13824},
            "scheduler": {"flow_shift": 5.0},
        },
    ),
}

#: Models that are refused by the class of their pipeline: (like which, pipeline, settings of the transformer, what a
#: refusal of the transformer alone names; None where it does not differ from one that makes pictures from words).
REFUSED: Mapping[str, tuple[str, str, Mapping[str, Any], str | None]] = {
    "FLUX.1-Fill-dev": (
        "FLUX.1-dev",
        "FluxFillPipeline",
        {"in_channels": 384, "out_channels": 64},
        "out_channels = 64",
    ),
    "FLUX.1-Depth-dev": (
        "FLUX.1-dev",
        "FluxControlPipeline",
        {"in_channels": 128, "out_channels": 64},
        "out_channels = 64",
    ),
    "FLUX.1-Kontext-dev": ("FLUX.1-Kontext-dev", "FluxKontextPipeline", {}, None),
    "FLUX.2-klein-9b-kv": ("FLUX.2-klein-4B", "Flux2KleinKVPipeline", {}, None),
    "SD3.5-medium, inpainting": ("SD3.5-medium", "StableDiffusion3InpaintPipeline", {}, None),
    "Qwen-Image-Edit": ("Qwen-Image", "QwenImageEditPipeline", {}, None),
    "Qwen-Image-Edit-2511": ("Qwen-Image", "QwenImageEditPlusPipeline", {"zero_cond_t": True}, "zero_cond_t = true"),
    "Qwen-Image-Layered": (
        "Qwen-Image",
        "QwenImageLayeredPipeline",
        {"use_additional_t_cond": True, "use_layer3d_rope": True},
        "use_additional_t_cond = true, use_layer3d_rope = true",
    ),
    "Z-Image-Omni": ("Z-Image-Turbo", "ZImageOmniPipeline", {"siglip_feat_dim": 1152}, "siglip_feat_dim = 1152"),
    "CogVideoX-5b-I2V": (
        "CogVideoX-5b",
        "CogVideoXImageToVideoPipeline",
        {"in_channels": 32, "use_learned_positional_embeddings": True},
        "use_learned_positional_embeddings = true, out_channels = 16",
    ),
    "CogVideoX1.5-5B-I2V": (
        "CogVideoX-5b",
        "CogVideoXImageToVideoPipeline",
        {"in_channels": 32, "patch_size_t": 2, "ofs_embed_dim": 512},
        "patch_size_t = 2, ofs_embed_dim = 512, out_channels = 16",
    ),
    "Wan2.1-I2V-14B-480P": (
        "Wan2.1-T2V-1.3B",
        "WanImageToVideoPipeline",
        {"in_channels": 36, "image_dim": 1280, "added_kv_proj_dim": 5120},
        "image_dim = 1280, added_kv_proj_dim = 5120, out_channels = 16",
    ),
    "Wan2.1-FLF2V-14B-720P": (
        "Wan2.1-T2V-1.3B",
        "WanImageToVideoPipeline",
        {"pos_embed_seq_len": 514},
        "pos_embed_seq_len = 514",
    ),
    "Wan2.2-I2V-A14B": ("Wan2.2-T2V-A14B", "WanImageToVideoPipeline", {"in_channels": 36}, "out_channels = 16"),
    "LTX-Video-0.9.5": ("LTX-Video-0.9.1", "LTXConditionPipeline", {}, None),
    "LTX-Video-0.9.7-dev": (
        "LTX-Video-0.9.1",
        "LTXConditionPipeline",
        {"attention_head_dim": 128, "cross_attention_dim": 4096, "num_layers": 48},
        None,
    ),
    "HunyuanVideo-I2V": (
        "HunyuanVideo",
        "HunyuanVideoImageToVideoPipeline",
        {"image_condition_type": "token_replace"},
        'image_condition_type = "token_replace"',
    ),
    "SkyReels-V1-Hunyuan-I2V": (
        "HunyuanVideo",
        "HunyuanSkyreelsImageToVideoPipeline",
        {"in_channels": 32},
        "out_channels = 16",
    ),
}

#: Variants of transformers whose pipelines have the class of those that are taken.
REFUSED_TRANSFORMERS: Mapping[str, tuple[str, Mapping[str, Any], str]] = {
    "CogVideoX1.5-5B": (
        "CogVideoX-5b",
        {"patch_size_t": 2, "patch_bias": False, "sample_frames": 81},
        "patch_size_t = 2",
    ),
}

#: Classes of transformers that are no family's.
UNKNOWN = (
    "AllegroTransformer3DModel",
    "AuraFlowTransformer2DModel",
    "BriaTransformer2DModel",
    "ChromaTransformer2DModel",
    "CogView4Transformer2DModel",
    "ConsisIDTransformer3DModel",
    "CosmosTransformer3DModel",
    "EasyAnimateTransformer3DModel",
    "HiDreamImageTransformer2DModel",
    "HunyuanDiT2DModel",
    "HunyuanVideo15Transformer3DModel",
    "HunyuanVideoFramepackTransformer3DModel",
    "Kandinsky5Transformer3DModel",
    "LTX2VideoTransformer3DModel",
    "LatteTransformer3DModel",
    "Lumina2Transformer2DModel",
    "OmniGenTransformer2DModel",
    "SanaTransformer2DModel",
    "SkyReelsV2Transformer3DModel",
    "Transformer2DModel",
    "UVit2DModel",
    "WanAnimateTransformer3DModel",
    "WanVACETransformer3DModel",
)


def relative(name: str) -> dict[str, Any]:
    """The configurations of a model in `TAKEN`."""
    like, pipeline, changes = TAKEN[name]
    model = published(like)
    parts = {part: {**model[part], **settings} for part, settings in changes.items()}
    return {**model, **parts, "pipeline": pipeline or model["pipeline"]}
