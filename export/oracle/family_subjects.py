"""The generations that `families.py` records: for each family its pipeline and what the pipeline is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
from dbcache_export.families.patches import unpack
from dbcache_export.tiny.pictures import write_pipeline

from subject import Subject

__all__ = ["SUBJECTS"]

#: Pictures are no squares, so that height and width cannot be mistaken for each other.
_SIZE = (128, 96)
_WORDS = 9


def _random(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _pipeline(name: str, scheduler: str, transformer: str, absent: tuple[str, ...]) -> Callable[[Path], Any]:
    """Builds diffusers' pipeline without its text encoders and autoencoder."""

    def build(folder: Path) -> Any:
        model = getattr(diffusers, transformer).from_pretrained(folder / "transformer", torch_dtype=torch.float32)
        steps = getattr(diffusers, scheduler).from_pretrained(folder / "scheduler")
        return getattr(diffusers, name)(transformer=model.eval(), scheduler=steps, **dict.fromkeys(absent))

    return build


def _rectangle(tokens: torch.Tensor, patch: int, cell: int) -> torch.Tensor:
    """Packed tokens of a picture of `_SIZE` to latents."""
    rows, columns = _SIZE[1] // cell, _SIZE[0] // cell
    grid = torch.cartesian_prod(torch.zeros(1), torch.arange(rows).float(), torch.arange(columns).float())
    return unpack(tokens, grid, patch)


def _sd3(family: str) -> Subject:
    words = {"prompt_embeds": _random(1, 1, _WORDS, 24), "negative_prompt_embeds": _random(2, 1, _WORDS, 24)}
    pooled = {name: _random(seed, 1, 20) for seed, name in ((3, "pooled"), (4, "negative_pooled"))}
    noise = _random(5, 1, 4, _SIZE[1] // 8, _SIZE[0] // 8)
    absent = tuple(f"{part}{number}" for part in ("text_encoder", "tokenizer") for number in ("", "_2", "_3"))
    return Subject(
        write=lambda folder: write_pipeline(family, folder, torch.float16),
        pipeline=_pipeline(
            "StableDiffusion3Pipeline",
            "FlowMatchEulerDiscreteScheduler",
            "SD3Transformer2DModel",
            ("vae", *absent),
        ),
        arguments=lambda: (
            words
            | {f"{name}_prompt_embeds": value for name, value in pooled.items()}
            | {"latents": noise, "guidance_scale": 4.0, "width": _SIZE[0], "height": _SIZE[1], "output_type": "latent"}
        ),
        size=_SIZE,
        noise=noise,
        inputs=words
        | {"pooled_projections": pooled["pooled"], "negative_pooled_projections": pooled["negative_pooled"]},
        guidance=4.0,
        separate=False,
    )


def _pixart() -> Subject:
    words = {"prompt_embeds": _random(1, 1, _WORDS, 24), "negative_prompt_embeds": _random(2, 1, _WORDS, 24)}
    counts = {"prompt_attention_mask": 7, "negative_prompt_attention_mask": 4}
    masks = {name: (torch.arange(_WORDS)[None] < count).float() for name, count in counts.items()}
    noise = _random(5, 1, 4, _SIZE[1] // 8, _SIZE[0] // 8)
    return Subject(
        write=lambda folder: write_pipeline("pixart", folder, torch.float16),
        pipeline=_pipeline(
            "PixArtSigmaPipeline",
            "DPMSolverMultistepScheduler",
            "PixArtTransformer2DModel",
            ("vae", "text_encoder", "tokenizer"),
        ),
        arguments=lambda: (
            words
            | masks
            | {
                "prompt": None,
                "negative_prompt": None,
                "latents": noise,
                "guidance_scale": 4.5,
                "width": _SIZE[0],
                "height": _SIZE[1],
                "use_resolution_binning": False,
                "output_type": "latent",
            }
        ),
        size=_SIZE,
        noise=noise,
        inputs=words | masks,
        guidance=4.5,
        separate=False,
    )


def _dit() -> Subject:
    """DiT's pipeline takes no latents and always decodes: it draws the recorded noise, and its decoder hands on."""
    side, label, seed = 8, 7, 5
    decoded: list[torch.Tensor] = []

    def decode(latents: torch.Tensor) -> SimpleNamespace:
        decoded[:] = [latents]
        return SimpleNamespace(sample=latents)

    def build(folder: Path) -> Any:
        vae = diffusers.AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, scaling_factor=1.0)
        vae.decode = decode
        model = diffusers.DiTTransformer2DModel.from_pretrained(folder / "transformer", torch_dtype=torch.float32)
        steps = diffusers.DDIMScheduler.from_pretrained(folder / "scheduler")
        return diffusers.DiTPipeline(transformer=model.eval(), vae=vae, scheduler=steps)

    return Subject(
        write=lambda folder: write_pipeline("dit", folder, torch.float16),
        pipeline=build,
        arguments=lambda: {
            "class_labels": [label],
            "guidance_scale": 4.0,
            "generator": torch.Generator().manual_seed(seed),
            "output_type": "pt",
        },
        size=(8 * side, 8 * side),
        noise=_random(seed, 1, 4, side, side),
        inputs={"class_labels": torch.tensor([label])},
        guidance=4.0,
        separate=False,
        latents=lambda _: decoded[0],
    )


def _qwen_image() -> Subject:
    words = {"prompt_embeds": _random(1, 1, _WORDS, 24), "negative_prompt_embeds": _random(2, 1, _WORDS, 24)}
    counts = {"prompt_embeds_mask": 7, "negative_prompt_embeds_mask": 5}
    masks = {name: (torch.arange(_WORDS)[None] < count).float() for name, count in counts.items()}
    noise = _random(5, 1, 4, _SIZE[1] // 8, _SIZE[0] // 8)
    pack = diffusers.QwenImagePipeline._pack_latents
    return Subject(
        write=lambda folder: write_pipeline("qwen_image", folder, torch.float16),
        pipeline=_pipeline(
            "QwenImagePipeline",
            "FlowMatchEulerDiscreteScheduler",
            "QwenImageTransformer2DModel",
            ("vae", "text_encoder", "tokenizer"),
        ),
        arguments=lambda: (
            words
            | masks
            | {
                "latents": pack(noise, 1, 4, *noise.shape[2:]),
                "true_cfg_scale": 4.0,
                "width": _SIZE[0],
                "height": _SIZE[1],
                "output_type": "latent",
            }
        ),
        size=_SIZE,
        noise=noise,
        inputs=words | masks,
        guidance=4.0,
        separate=True,
        latents=lambda result: _rectangle(result[0], 2, 16),
    )


def _flux2() -> Subject:
    words = {"prompt_embeds": _random(1, 1, _WORDS, 24)}
    noise = _random(5, 1, 16, _SIZE[1] // 16, _SIZE[0] // 16)
    return Subject(
        write=lambda folder: write_pipeline("flux2", folder, torch.float16),
        pipeline=_pipeline(
            "Flux2Pipeline",
            "FlowMatchEulerDiscreteScheduler",
            "Flux2Transformer2DModel",
            ("vae", "text_encoder", "tokenizer"),
        ),
        arguments=lambda: (
            words
            | {"latents": noise, "guidance_scale": 4.0, "width": _SIZE[0], "height": _SIZE[1], "output_type": "latent"}
        ),
        size=_SIZE,
        noise=noise,
        inputs=words,
        guidance=4.0,
        separate=False,
        latents=lambda result: _rectangle(result[0], 1, 16),
    )


def _z_image() -> Subject:
    """Texts of 32 tokens, of which some are padding."""
    words = {"prompt_embeds": _random(1, 1, 32, 24), "negative_prompt_embeds": _random(2, 1, 32, 24)}
    counts = {"prompt_embeds_mask": 27, "negative_prompt_embeds_mask": 19}
    masks = {name: (torch.arange(32)[None] < count).float() for name, count in counts.items()}
    size = (256, 128)
    noise = _random(5, 1, 4, size[1] // 8, size[0] // 8)
    return Subject(
        write=lambda folder: write_pipeline("z_image", folder, torch.float16),
        pipeline=_pipeline(
            "ZImagePipeline",
            "FlowMatchEulerDiscreteScheduler",
            "ZImageTransformer2DModel",
            ("vae", "text_encoder", "tokenizer"),
        ),
        arguments=lambda: (
            {name: [value[0, : counts[f"{name}_mask"]]] for name, value in words.items()}
            | {"latents": noise, "guidance_scale": 3.0, "width": size[0], "height": size[1], "output_type": "latent"}
        ),
        size=size,
        noise=noise,
        inputs=words | masks,
        guidance=3.0,
        separate=False,
    )


SUBJECTS: Mapping[str, Callable[[], Subject]] = {
    "sd3": lambda: _sd3("sd3"),
    "sd35": lambda: _sd3("sd35"),
    "pixart": _pixart,
    "dit": _dit,
    "qwen_image": _qwen_image,
    "flux2": _flux2,
    "z_image": _z_image,
}
