"""When both branches run: diffusers' pipelines are run and counted, against what the exporter writes into manifests."""

import inspect
import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from dbcache_export.conftest import write_transformer
from dbcache_export.families import plan
from dbcache_export.spec import Options
from torch._subclasses.fake_tensor import FakeTensorMode

import family_subjects
import video_subjects
from reference import REFERENCE_DIR
from subject import Subject

SUBJECTS = {**family_subjects.SUBJECTS, **video_subjects.SUBJECTS}
SCALES = [-1.0, 0.0, 0.5, 1.0, 1.0001, 5.0]
STEPS = 2
#: The rule of `true_cfg_scale`, beside a scale that is an input; the engine has it for `--true-cfg`.
TRUE_CFG = {"kind": "classifier_free", "formula": "standard", "needs_negative": True}


def runs_both(guidance: dict[str, Any], scale: float, has_negative: bool) -> bool:
    """The engine's rule, as models/README.md has it."""
    above = 0 if guidance["formula"] == "difference" else 1
    return scale > above and (has_negative or not guidance.get("needs_negative", False))


def rows_of_steps(pipe: Any, arguments: dict[str, Any]) -> list[int]:
    """How many samples pass the transformers in each step; the same whether in one batch or one after the other."""
    steps: list[int] = [0]

    def count(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        steps[-1] += len(args[0] if args else kwargs["hidden_states"])

    transformers = [pipe.transformer, getattr(pipe, "transformer_2", None)]
    hooks = [one.register_forward_pre_hook(count, with_kwargs=True) for one in transformers if one is not None]
    step = pipe.scheduler.step
    pipe.scheduler.step = lambda *args, **kwargs: (steps.append(0), step(*args, **kwargs))[1]
    pipe.set_progress_bar_config(disable=True)
    with torch.no_grad():
        pipe(**arguments, num_inference_steps=STEPS, return_dict=False)
    pipe.scheduler.step = step
    for hook in hooks:
        hook.remove()
    return steps[:-1]


def empty_prompt(pipe: Any, negative: dict[str, Any]) -> None:
    """Gives `negative` for the texts of "" that the pipeline wants encoded; it has no text encoder."""
    encode = pipe.encode_prompt

    def encode_prompt(*args: Any, **kwargs: Any) -> Any:
        given = inspect.signature(encode).bind(*args, **kwargs)
        if given.arguments.get("do_classifier_free_guidance") and given.arguments["negative_prompt_embeds"] is None:
            assert not given.arguments.get("negative_prompt")
            given.arguments |= negative
        return encode(*given.args, **given.kwargs)

    pipe.encode_prompt = encode_prompt


def without_negative(pipe: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """The same generation for which no negative prompt is given."""
    negative = {name: value for name, value in arguments.items() if name.startswith("negative_") and value is not None}
    if negative:
        empty_prompt(pipe, negative)
    rest = {name: value for name, value in arguments.items() if name not in negative}
    if isinstance(pipe, diffusers.ZImagePipeline):
        rest["prompt"] = "words"  # else it wants the tensors of both texts
    if isinstance(pipe, diffusers.PixArtSigmaPipeline):
        rest["negative_prompt"] = ""  # its default, which the recorded arguments set aside
    return rest


@pytest.mark.parametrize("family", [name for name in SUBJECTS if name not in ("flux2", "hunyuan_video")])
def test_the_manifest_has_the_pipelines_rule(family: str, tmp_path: Path) -> None:
    subject: Subject = SUBJECTS[family]()
    subject.write(tmp_path)
    guidance = dict(plan(tmp_path, Options(), FakeTensorMode()).guidance)
    manifest = json.loads((REFERENCE_DIR.parent / "families" / family / "engine" / "manifest.json").read_text())
    assert guidance == manifest["guidance"]
    scale_name = "true_cfg_scale" if family == "qwen_image" else "guidance_scale"
    for has_negative in (True, False):
        pipe = subject.pipeline(tmp_path)
        arguments = dict(subject.arguments())
        if not has_negative:
            arguments = without_negative(pipe, arguments)
        arguments.pop("generator", None)
        seconds = [None, 0.5, 3.0] if family == "wan_two" else [None]
        for scale, second in ((scale, second) for scale in SCALES for second in seconds):
            more = {scale_name: scale} | ({"guidance_scale_2": second} if family == "wan_two" else {})
            rows = 2 if runs_both(guidance, scale, has_negative) else 1
            assert rows_of_steps(pipe, arguments | more) == [rows] * STEPS, (scale, second, has_negative)


@pytest.mark.parametrize("family", ["flux", "flux2", "hunyuan_video"])
def test_true_cfg_has_the_pipelines_rule(family: str, tmp_path: Path) -> None:
    pipe, arguments, negative = _flux(tmp_path) if family == "flux" else _recorded(family, tmp_path)
    assert plan(tmp_path, Options(), FakeTensorMode()).guidance["kind"] == "embedded"
    if family == "flux2":
        assert "true_cfg_scale" not in inspect.signature(type(pipe).__call__).parameters
        assert all(rows_of_steps(pipe, arguments | {"guidance_scale": scale}) == [1] * STEPS for scale in SCALES)
        return
    for has_negative in (True, False):
        given = arguments | (negative if has_negative else {})
        for scale in SCALES:
            rows = 2 if runs_both(TRUE_CFG, scale, has_negative) else 1
            assert rows_of_steps(pipe, given | {"true_cfg_scale": scale}) == [rows] * STEPS, (scale, has_negative)


def test_klein_is_guided_above_one_unless_it_is_distilled() -> None:
    parts = ("scheduler", "vae", "text_encoder", "tokenizer", "transformer")
    for asked, is_distilled in (({}, False), ({"is_distilled": False}, False), ({"is_distilled": True}, True)):
        pipe = diffusers.Flux2KleinPipeline(**dict.fromkeys(parts), **asked)
        for scale in SCALES:
            pipe._guidance_scale = scale
            assert pipe.do_classifier_free_guidance == (scale > 1 and not is_distilled), (asked, scale)


def _recorded(family: str, folder: Path) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    subject = SUBJECTS[family]()
    subject.write(folder)
    arguments = dict(subject.arguments())
    texts = ("prompt_embeds", "pooled_prompt_embeds", "prompt_attention_mask")
    negative = {f"negative_{name}": arguments[name] for name in texts if name in arguments}
    return subject.pipeline(folder), arguments, negative


def _flux(folder: Path) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    write_transformer(folder / "transformer")
    absent = ("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
    pipe = diffusers.FluxPipeline(
        transformer=diffusers.FluxTransformer2DModel.from_pretrained(folder / "transformer", torch_dtype=torch.float32),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        **dict.fromkeys(absent),
    )
    words = {"prompt_embeds": torch.ones(1, 3, 24), "pooled_prompt_embeds": torch.ones(1, 20)}
    negative = {f"negative_{name}": value / 2 for name, value in words.items()}
    return pipe, words | {"width": 32, "height": 32, "output_type": "latent"}, negative
