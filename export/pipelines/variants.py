"""The pipelines that are checked: for each its parts, tiny and with random weights, and how it is called.

Every part that a user's folder holds is there: transformers, text encoders, tokenizers, autoencoder, scheduler.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
from dbcache_export.tiny import pictures, save, texts, videos

__all__ = ["VARIANTS", "Variant"]


@dataclass(frozen=True)
class Variant:
    """One kind of pipeline of a family.

    Attributes:
        family: Its row in the tables of families.
        pipeline: The class of diffusers.
        write: Writes the parts of the pipeline, each into a folder of its name.
        settings: What the pipeline's constructor takes beside parts.
        always: What each call is given.
        flags: What the command is given for the same.
        sizes: Two sizes in pixels; the first is no square, where the pipeline makes such.
        frames: Of a video.
        scale: The argument of the call that `--guidance` is, and another value than the default.
        negative: Whether there is a negative prompt; or what call and command need for one.
        separate: Whether the branches of guidance are two calls of the transformer, which cache-dit keeps apart.
        one_each: Whether it makes one video of a prompt whatever it is asked for, so that two need the prompt twice.
        labels: Whether it takes class labels instead of prompts.
        tolerance: Largest difference of the latents, relative to their largest value: sums in another order, and sines
            of angles up to 1000, over eight steps. Guidance by c + 5 (c - u) makes eleven of one difference, each step.
        prunes: Whether cache-dit's DBPrune runs: in blocks that give the picture's stream alone it stumbles.
        ratio: Which part of the timesteps the first of two transformers has.
    """

    family: str
    pipeline: str
    write: Callable[[Path], None]
    settings: Mapping[str, Any] = field(default_factory=dict)
    always: Mapping[str, Any] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    sizes: tuple[tuple[int, int], tuple[int, int]] = ((96, 64), (64, 64))
    frames: int | None = None
    scale: tuple[str, float] | None = ("guidance_scale", 2.5)
    negative: bool | tuple[Mapping[str, Any], tuple[str, ...]] = True
    separate: bool = False
    one_each: bool = False
    labels: bool = False
    tolerance: float = 1e-4
    prunes: bool = True
    ratio: float | None = None


def _scheduler(folder: Path, name: str, **settings: Any) -> None:
    getattr(diffusers, name)(**settings).save_pretrained(folder / "scheduler")


def _flux(folder: Path, *, dev: bool) -> None:
    """FLUX.1-dev is told the scale of guidance and shifts by the number of tokens; schnell does neither."""
    transformer = diffusers.FluxTransformer2DModel(
        in_channels=16,
        num_layers=3,
        num_single_layers=3,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        pooled_projection_dim=20,
        guidance_embeds=dev,
        axes_dims_rope=(4, 6, 6),
    )
    save(transformer, folder / "transformer")
    texts.write_clip(folder, "", 20)
    texts.write_t5(folder, "_2", 24)
    texts.write_kl(folder)
    shift = {"shift": 3.0, "use_dynamic_shifting": True} if dev else {"shift": 1.0}
    _scheduler(folder, "FlowMatchEulerDiscreteScheduler", **shift)


def _picture(family: str, folder: Path, **change: Any) -> None:
    """A family of `tiny.pictures`, with some arguments of the transformer changed."""
    pictures.write_pipeline(family, folder)
    if change:
        name, arguments = pictures.TRANSFORMERS[family]
        save(getattr(diffusers, name)(**{**arguments, **change}), folder / "transformer")
    if not family.startswith("flux2"):
        texts.write_texts("pixart" if family == "pixart_sized" else family, folder)


def _flux2(folder: Path, *, klein: bool) -> None:
    """Text encoders are as deep as the layers that diffusers takes: the 30th of Mistral, the 27th of Qwen3."""
    _picture("flux2", folder, guidance_embeds=not klein)
    if klein:
        texts.write_qwen3(folder, 8, layers=28)
    else:
        texts.write_mistral(folder, 8, layers=31)
    texts.write_flux2_vae(folder)


def _sd3_without_t5(folder: Path) -> None:
    pictures.write_pipeline("sd3", folder)
    texts.write_texts("sd35", folder)


def _video(family: str, folder: Path, scheduler: tuple[str, Mapping[str, Any]] | None = None, **change: Any) -> None:
    """A family of `tiny.videos`."""
    videos.write_pipeline(family, folder)
    if change:
        videos.write_transformer(family, folder / "transformer", **change)
    videos.write_parts("cogvideox" if family == "cogvideox_rotary" else family, folder)
    if scheduler:
        _scheduler(folder, scheduler[0], **{**videos.SCHEDULERS[family][1], **scheduler[1]})


def _mochi(folder: Path) -> None:
    """Its pipeline knows that latents have twelve channels."""
    channels = 12
    _video("mochi", folder, in_channels=channels, max_sequence_length=256)
    name, arguments = videos.AUTOENCODERS["mochi"]
    spread = {key: [value * (1 + 0.05 * k) for k in range(3) for value in arguments[key]] for key in _SPREAD}
    save(getattr(diffusers, name)(**{**arguments, **spread, "latent_channels": channels}), folder / "vae")


def _wan_two(folder: Path) -> None:
    """Wan 2.2: two transformers that take turns."""
    _video("wan", folder)
    videos.write_second("wan", folder, _RATIO)


_SPREAD = ("latents_mean", "latents_std")
#: Of Wan 2.2: the first transformer has three of eight steps.
_RATIO = 0.875
#: CogVideoX's number of text tokens, which its transformers know.
_COGVIDEOX = {"max_text_seq_length": 226}
_DPM = ("CogVideoXDPMScheduler", {})
#: Tokens with which the model was trained, and is called by its card; the pipeline's default is twice as many.
_SCHNELL: Mapping[str, Any] = {"max_sequence_length": 256}
#: The pipelines choose among the sizes of the published models otherwise, which the engine is told by --size.
_PIXART: Mapping[str, Any] = {"always": {"use_resolution_binning": False}, "prunes": False}
#: Classifier-free guidance for models that do not have it by themselves.
_TRUE = ({"true_cfg_scale": 3.0}, ("--true-cfg", "3"))

#: By name.
VARIANTS: Mapping[str, Variant] = {
    "flux-dev": Variant("FLUX.1", "FluxPipeline", partial(_flux, dev=True), negative=_TRUE),
    "flux-schnell": Variant(
        "FLUX.1", "FluxPipeline", partial(_flux, dev=False), always=_SCHNELL, scale=None, negative=_TRUE
    ),
    "flux2": Variant("FLUX.2", "Flux2Pipeline", partial(_flux2, klein=False), negative=False, prunes=False),
    "flux2-klein": Variant(
        "FLUX.2", "Flux2KleinPipeline", partial(_flux2, klein=True), negative=False, separate=True, prunes=False
    ),
    "flux2-klein-distilled": Variant(
        "FLUX.2",
        "Flux2KleinPipeline",
        partial(_flux2, klein=True),
        settings={"is_distilled": True},
        scale=None,
        negative=False,
        prunes=False,
    ),
    "sd3": Variant("Stable Diffusion 3, 3.5", "StableDiffusion3Pipeline", partial(_picture, "sd3")),
    "sd3-without-t5": Variant("Stable Diffusion 3, 3.5", "StableDiffusion3Pipeline", _sd3_without_t5),
    "sd35": Variant("Stable Diffusion 3, 3.5", "StableDiffusion3Pipeline", partial(_picture, "sd35")),
    "pixart-sigma": Variant("PixArt-α, PixArt-Σ", "PixArtSigmaPipeline", partial(_picture, "pixart"), **_PIXART),
    "pixart-alpha": Variant(
        "PixArt-α, PixArt-Σ",
        "PixArtAlphaPipeline",
        partial(_picture, "pixart_sized", num_layers=4, sample_size=128),
        **_PIXART,
    ),
    "dit": Variant(
        "DiT",
        "DiTPipeline",
        partial(_picture, "dit"),
        sizes=((64, 64),) * 2,
        negative=False,
        labels=True,
        prunes=False,
    ),
    "qwen-image": Variant(
        "Qwen-Image",
        "QwenImagePipeline",
        partial(_picture, "qwen_image"),
        scale=("true_cfg_scale", 2.5),
        negative=({}, ()),
    ),
    "z-image": Variant(
        "Z-Image",
        "ZImagePipeline",
        partial(_picture, "z_image", axes_lens=[1536, 64, 64]),
        sizes=((256, 128), (128, 128)),
        prunes=False,
        tolerance=1e-3,
    ),
    "cogvideox-2b": Variant(
        "CogVideoX 1.0", "CogVideoXPipeline", partial(_video, "cogvideox", **_COGVIDEOX), frames=9, one_each=True
    ),
    "cogvideox-5b": Variant(
        "CogVideoX 1.0",
        "CogVideoXPipeline",
        partial(_video, "cogvideox_rotary", scheduler=_DPM, **_COGVIDEOX),
        frames=9,
        one_each=True,
    ),
    "mochi": Variant("Mochi", "MochiPipeline", _mochi, frames=13),
    "wan-2.1": Variant("Wan 2.1, 2.2", "WanPipeline", partial(_video, "wan"), frames=9, separate=True),
    "wan-2.2": Variant(
        "Wan 2.1, 2.2",
        "WanPipeline",
        _wan_two,
        settings={"boundary_ratio": _RATIO},
        always={"guidance_scale": 4.0, "guidance_scale_2": 3.0},
        flags=("--guidance-2", "3"),
        frames=9,
        separate=True,
        ratio=_RATIO,
    ),
    "ltx-video": Variant("LTX-Video", "LTXPipeline", partial(_video, "ltx"), sizes=((160, 128), (128, 128)), frames=17),
    "hunyuan-video": Variant(
        "HunyuanVideo",
        "HunyuanVideoPipeline",
        partial(_video, "hunyuan_video", num_layers=3, num_single_layers=3),
        frames=9,
        negative=_TRUE,
    ),
}
