"""The other side: diffusers' own pipelines on the same folder, on the CPU in float32, with cache-dit or without."""

from __future__ import annotations

__all__ = ["Call", "Decided", "Original", "write_folder"]

import inspect
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from dbcache_export.folder import read_json
from transformers import AutoTokenizer

from variants import Variant

sys.path.append(str(Path(__file__).resolve().parents[1] / "oracle"))
os.environ.setdefault("CACHE_DIT_LOG_LEVEL", "error")  # Read by cache-dit when it is imported.
import cache_dit  # type: ignore[import-untyped]

from decided import Decided, decided


@dataclass(frozen=True)
class Call:
    """What both sides are asked for.

    Attributes:
        prompt: What to make; of a model with class labels, they are.
        negative: What to keep away from.
        scale: Of guidance; None is the default.
        size: Width and height in pixels.
        batch: Pictures that run together, with the seeds `seed`, `seed` + 1 …
    """

    prompt: str | tuple[int, ...]
    size: tuple[int, int]
    steps: int
    negative: str | None = None
    scale: float | None = None
    batch: int = 1
    seed: int = 7


class Original:
    """A pipeline of diffusers, loaded from its folder."""

    def __init__(self, variant: Variant, folder: Path) -> None:
        """Loads it once; each generation under cache-dit loads it anew."""
        self.variant, self.folder = variant, folder
        self._pipe = self._load()

    def latents(self, call: Call) -> torch.Tensor:
        """The final latents, as the pipeline gives them."""
        return _latents(self._pipe, self._arguments(call))

    def frames(self, call: Call) -> list[Any]:
        """All pictures, or all frames of all videos, one after the other, as PIL."""
        with torch.no_grad():
            made = self._pipe(**self._arguments(call), output_type="pil", return_dict=False)[0]
        return made if self.variant.frames is None else [frame for video in made for frame in video]

    def cached(
        self, call: Call, algorithm: str, options: Mapping[str, Any], calibrator: Mapping[str, Any] | None
    ) -> tuple[torch.Tensor, list[list[Decided]]]:
        """The final latents under cache-dit, and what it decided in each transformer, in the order in which they run.

        Args:
            call: What to make.
            algorithm: `DBCache` or `DBPrune`.
            options: Of cache-dit's configuration.
            calibrator: Those of TaylorSeer, if any.
        """
        pipe = self._load()
        # cache-dit changes a pipeline's class, also for others of that class; so this one gets a class of its own.
        pipe.__class__ = type(type(pipe).__name__, (type(pipe),), {})
        separate = self.variant.separate or (call.negative is not None and isinstance(self.variant.negative, tuple))
        config = getattr(cache_dit, f"{algorithm}Config")(**options, enable_separate_cfg=separate)
        forecast = None if calibrator is None else cache_dit.TaylorSeerCalibratorConfig(**calibrator)
        cache_dit.enable_cache(pipe, cache_config=config, calibrator_config=forecast)
        latents = _latents(pipe, self._arguments(call))
        models, steps = [pipe.transformer], [call.steps]
        if self.variant.ratio:
            border = self.variant.ratio * pipe.scheduler.config.num_train_timesteps
            first = int((pipe.scheduler.timesteps >= border).sum())
            models, steps = [*models, pipe.transformer_2], [first, call.steps - first]
        of_models = zip(models, steps, strict=True)
        return latents, [list(decided(model, number, separate=separate)) for model, number in of_models]

    def _load(self) -> Any:
        # A part that is missing on purpose must be named again.
        index = read_json(self.folder / "model_index.json")
        absent = dict.fromkeys(name for name, part in index.items() if part == [None, None])
        maker = getattr(diffusers, self.variant.pipeline)
        pipe = maker.from_pretrained(self.folder, torch_dtype=torch.float32, **absent)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def _arguments(self, call: Call) -> dict[str, Any]:
        """Of the pipeline's call."""
        variant = self.variant
        generators = [torch.Generator().manual_seed(call.seed + k) for k in range(call.batch)]
        given: dict[str, Any] = {"num_inference_steps": call.steps, "generator": generators, **variant.always}
        if variant.labels:
            given["class_labels"] = list(call.prompt)
        else:
            of = "images" if variant.frames is None else "videos"
            both = {"prompt": [call.prompt] * call.batch} if variant.one_each else {f"num_{of}_per_prompt": call.batch}
            given |= {"prompt": call.prompt} | both
            given |= {"width": call.size[0], "height": call.size[1]}
        if variant.frames is not None:
            given["num_frames"] = variant.frames
        if call.negative is not None:
            given["negative_prompt"] = [call.negative] * call.batch if variant.one_each else call.negative
            given |= variant.negative[0] if isinstance(variant.negative, tuple) else {}
        if call.scale is not None and variant.scale:
            given[variant.scale[0]] = call.scale
        return given


def write_folder(variant: Variant, parts: Path, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """Builds the pipeline from its parts and has diffusers write it: what a user's folder holds, its index included."""
    variant.write(parts)
    components = {part.name: _component(part) for part in parts.iterdir() if part.is_dir()}
    maker = getattr(diffusers, variant.pipeline)
    parameters = inspect.signature(maker).parameters.values()
    absent = dict.fromkeys(parameter.name for parameter in parameters if parameter.default is parameter.empty)
    maker(**(absent | components | variant.settings)).to(dtype).save_pretrained(folder)


def _component(part: Path) -> Any:
    """A part, loaded by the class that its configuration names."""
    if part.name.startswith("tokenizer"):
        return AutoTokenizer.from_pretrained(part)
    config = read_json(part / ("scheduler_config.json" if part.name == "scheduler" else "config.json"))
    if "_class_name" in config:
        return getattr(diffusers, config["_class_name"]).from_pretrained(part)
    return getattr(transformers, config["architectures"][0]).from_pretrained(part)


def _latents(pipe: Any, arguments: Mapping[str, Any]) -> torch.Tensor:
    """Of one call. A pipeline that always decodes has them taken from its decoder."""
    taken: list[torch.Tensor] = []
    if isinstance(pipe, diffusers.Flux2KleinPipeline):  # gives them as its decoder takes them, no longer normalised

        def after_step(_: Any, step: int, timestep: Any, kept: dict[str, Any]) -> dict[str, Any]:
            taken[:] = [kept["latents"]]
            return kept

        with torch.no_grad():
            pipe(**arguments, output_type="latent", callback_on_step_end=after_step)
        return taken[0]
    if not isinstance(pipe, diffusers.DiTPipeline):
        with torch.no_grad():
            return pipe(**arguments, output_type="latent", return_dict=False)[0]
    decode = pipe.vae.decode

    def watched(latents: torch.Tensor, *rest: Any, **more: Any) -> Any:
        taken.append(latents * pipe.vae.config.scaling_factor)
        return decode(latents, *rest, **more)

    pipe.vae.decode = watched
    try:
        with torch.no_grad():
            pipe(**arguments, output_type="np", return_dict=False)
    finally:
        pipe.vae.decode = decode
    return taken[0]
