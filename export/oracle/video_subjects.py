"""The generations of video models that `families.py` records: their pipelines, and what those are given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from dbcache_export.families.watched import original
from dbcache_export.tiny.videos import write_pipeline, write_second

from subject import Subject

__all__ = ["SUBJECTS"]

_WORDS = 7
Tensors = dict[str, torch.Tensor]


def _random(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _words(width: int) -> Tensors:
    """Texts of both branches, [1, text, width]."""
    return {"prompt_embeds": _random(1, 1, _WORDS, width), "negative_prompt_embeds": _random(2, 1, _WORDS, width)}


def _masks() -> Tensors:
    """Both texts have padding, of different lengths."""
    counts = {"prompt_attention_mask": 5, "negative_prompt_attention_mask": 3}
    return {name: (torch.arange(_WORDS)[None] < count).float() for name, count in counts.items()}


def _pipeline(name: str, transformer: str, scheduler: str, absent: tuple[str, ...]) -> Callable[[Path], Any]:
    """Builds diffusers' pipeline without its text encoders and autoencoder."""

    def build(folder: Path) -> Any:
        model = original(getattr(diffusers, transformer), folder / "transformer")
        steps = getattr(diffusers, scheduler).from_pretrained(folder / "scheduler")
        return getattr(diffusers, name)(transformer=model, scheduler=steps, **dict.fromkeys(absent))

    return build


def _subject(
    family: str,
    pipeline: Callable[[Path], Any],
    size: tuple[int, int],
    frames: int,
    noise: torch.Tensor,
    inputs: Tensors,
    arguments: Mapping[str, Any],
    **more: Any,
) -> Subject:
    """`arguments` are those beside sizes, the inputs and the scale of guidance."""
    given = {"latents": noise, "guidance_scale": more["guidance"], "num_frames": frames, "output_type": "latent"}
    given |= {"width": size[0], "height": size[1]} | inputs | arguments
    return Subject(
        write=lambda folder: write_pipeline(family, folder, torch.float16),
        pipeline=pipeline,
        arguments=lambda: given,
        size=size,
        frames=frames,
        noise=noise,
        inputs=inputs,
        **more,
    )


def _cogvideox(family: str) -> Subject:
    return _subject(
        family,
        _pipeline(
            "CogVideoXPipeline",
            "CogVideoXTransformer3DModel",
            "CogVideoXDDIMScheduler",
            ("tokenizer", "text_encoder", "vae"),
        ),
        size=(96, 64),
        frames=9,
        noise=_random(5, 1, 3, 4, 8, 12),
        inputs=_words(20),
        arguments={},
        guidance=6.0,
        separate=False,
    )


def _mochi() -> Subject:
    masks = _masks()
    return _subject(
        "mochi",
        _pipeline(
            "MochiPipeline",
            "MochiTransformer3DModel",
            "FlowMatchEulerDiscreteScheduler",
            ("tokenizer", "text_encoder", "vae"),
        ),
        size=(96, 64),
        frames=13,
        noise=_random(5, 1, 4, 3, 8, 12),
        inputs=_words(16) | masks,
        arguments={name: mask.bool() for name, mask in masks.items()},
        guidance=4.5,
        separate=False,
    )


def _wan() -> Subject:
    return _subject(
        "wan",
        _pipeline(
            "WanPipeline",
            "WanTransformer3DModel",
            "UniPCMultistepScheduler",
            ("tokenizer", "text_encoder", "vae"),
        ),
        size=(96, 64),
        frames=9,
        noise=_random(5, 1, 4, 3, 8, 12),
        inputs=_words(20),
        arguments={},
        guidance=5.0,
        separate=True,
    )


def _wan_two() -> Subject:
    """Two transformers, each with five of the ten steps and a scale of its own."""
    ratio, first = 0.8, _wan()

    def write(folder: Path) -> None:
        first.write(folder)
        write_second("wan", folder, ratio, torch.float16)

    def pipeline(folder: Path) -> Any:
        one, two = (
            original(diffusers.WanTransformer3DModel, folder / name) for name in ("transformer", "transformer_2")
        )
        return diffusers.WanPipeline(
            transformer=one,
            transformer_2=two,
            boundary_ratio=ratio,
            scheduler=diffusers.UniPCMultistepScheduler.from_pretrained(folder / "scheduler"),
            tokenizer=None,
            text_encoder=None,
            vae=None,
        )

    given = dict(first.arguments()) | {"guidance_scale": 4.0, "guidance_scale_2": 3.0}
    changed = {"write": write, "pipeline": pipeline, "arguments": lambda: given}
    return Subject(**(vars(first) | changed | {"guidance": 4.0, "guidance_2": 3.0, "first_steps": 5}))


def _ltx() -> Subject:
    frames, rows, columns = 3, 3, 4
    noise = _random(5, 1, 4, frames, rows, columns)
    return _subject(
        "ltx",
        _pipeline(
            "LTXPipeline",
            "LTXVideoTransformer3DModel",
            "FlowMatchEulerDiscreteScheduler",
            ("tokenizer", "text_encoder", "vae"),
        ),
        size=(columns * 32, rows * 32),
        frames=17,
        noise=noise,
        inputs=_words(20) | _masks(),
        arguments={"latents": noise.flatten(2).transpose(1, 2)},  # its pipeline takes tokens
        guidance=3.0,
        separate=False,
        latents=lambda result: result[0].transpose(1, 2).unflatten(2, (frames, rows, columns)),
    )


def _hunyuan_video() -> Subject:
    words = {"prompt_embeds": _random(1, 1, _WORDS, 20), "pooled_projections": _random(3, 1, 12)}
    mask = {"prompt_attention_mask": _masks()["prompt_attention_mask"]}
    subject = _subject(
        "hunyuan_video",
        _pipeline(
            "HunyuanVideoPipeline",
            "HunyuanVideoTransformer3DModel",
            "FlowMatchEulerDiscreteScheduler",
            ("tokenizer", "text_encoder", "vae", "tokenizer_2", "text_encoder_2"),
        ),
        size=(96, 64),
        frames=9,
        noise=_random(5, 1, 4, 3, 8, 12),
        inputs=words | mask,
        arguments={"pooled_prompt_embeds": words["pooled_projections"]},
        guidance=6.0,
        separate=False,
    )
    given = dict(subject.arguments())
    del given["pooled_projections"]  # the pipeline has another name for it
    return Subject(**(vars(subject) | {"arguments": lambda: given}))


SUBJECTS: Mapping[str, Callable[[], Subject]] = {
    "cogvideox": lambda: _cogvideox("cogvideox"),
    "cogvideox_rotary": lambda: _cogvideox("cogvideox_rotary"),
    "mochi": _mochi,
    "wan": _wan,
    "wan_two": _wan_two,
    "ltx": _ltx,
    "hunyuan_video": _hunyuan_video,
}
