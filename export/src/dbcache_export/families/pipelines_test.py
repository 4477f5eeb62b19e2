"""Whole pipelines, tiny and with random weights: text encoders and decoders against transformers and diffusers."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.pipelines import flux2
from tokenizers import Tokenizer
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoTokenizer

from dbcache_export import families, spec
from dbcache_export.check import OTHER_TOLERANCE
from dbcache_export.engine import export
from dbcache_export.errors import ExportError
from dbcache_export.families import flux2_text
from dbcache_export.prompts import CAPTION, NO_PICTURES
from dbcache_export.spec import Options, Plan
from dbcache_export.tiny.pictures import write_pipeline
from dbcache_export.tiny.texts import write_qwen3, write_texts

pytestmark = pytest.mark.slow

#: Family: its graphs beside the transformer's, and what its tokenizers read.
GRAPHS = {
    "sd3": ({"clip_l", "clip_g", "t5", "text", "decode"}, {"clip_l": "tokenizer", "t5": "tokenizer_3"}),
    "sd35": ({"clip_l", "clip_g", "text", "decode"}, {"clip_g": "tokenizer_2"}),
    "pixart": ({"t5", "decode"}, {}),
    "qwen_image": ({"qwen", "decode"}, {}),
    "flux2": ({"mistral3", "decode"}, {}),
    "z_image": ({"qwen", "decode"}, {}),
}


@pytest.fixture(autouse=True)
def _fewer_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """FLUX.2's layers are those of models with thirty and more; the tiny ones have five."""
    few = {kind: ((1, 2, 4), *rest) for kind, (_, *rest) in flux2_text._ENCODERS.items()}
    monkeypatch.setattr(flux2_text, "_ENCODERS", few)


def write(family: str, folder: Path) -> Path:
    write_pipeline(family, folder)
    write_texts(family, folder)
    return folder


def plan(folder: Path) -> Plan:
    return families.plan(folder, Options(), FakeTensorMode())


@pytest.mark.parametrize("family", GRAPHS)
def test_a_pipeline_computes_what_its_parts_compute(family: str, tmp_path: Path) -> None:
    graphs, tokenizers = GRAPHS[family]
    model = write(family, tmp_path / "model")
    report = export(model, tmp_path / "engine", Options(check=True, size=(128, 128)), lambda _: None).report
    assert report is not None
    assert graphs <= set(report.errors)
    assert max(report.errors[graph] for graph in graphs) < OTHER_TOLERANCE["f32"]
    fields: dict[str, Any] = json.loads((tmp_path / "engine" / "manifest.json").read_text("utf-8"))
    for name, folder in tokenizers.items():
        entry = fields["text"]["tokenizers"][name]
        ours = Tokenizer.from_file(str(tmp_path / "engine" / entry["file"]))
        theirs = AutoTokenizer.from_pretrained(model / folder)
        for prompt in ("", "AB c", "red apple cat", "a b " * 300):
            ids = ours.encode(prompt).ids
            padded = ids + [entry["pad_id"]] * (entry["length"] - len(ids))
            assert padded == theirs(prompt, padding="max_length", max_length=entry["length"], truncation=True).input_ids


def test_pixart_cleans_prompts_and_the_length_depends_on_the_pipeline(tmp_path: Path) -> None:
    model = write("pixart", tmp_path / "model")
    found = plan(model).text
    assert found is not None
    tokenizer = found.tokenizers["t5"]
    assert tokenizer.length == 300
    assert found.clean == CAPTION
    (model / "model_index.json").write_text(json.dumps({"_class_name": "PixArtAlphaPipeline"}))
    alpha = plan(model).text
    assert alpha is not None
    assert alpha.tokenizers["t5"].length == 120


def test_qwen_image_asks_in_its_template(tmp_path: Path) -> None:
    model = write("qwen_image", tmp_path / "model")
    found = plan(model).text
    assert found is not None
    tokenizer = found.tokenizers["qwen"]
    assert (tokenizer.drop, tokenizer.padding, tokenizer.length) == (34, "longest", 546)
    assert tokenizer.prefix.endswith("<|im_start|>user\n")
    settings = json.loads((model / "tokenizer" / "tokenizer_config.json").read_text())
    (model / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(settings | {"padding_side": "left"}))
    with pytest.raises(ExportError, match="pads on the left"):
        plan(model)


def test_flux2_takes_the_word_for_a_picture_out(tmp_path: Path) -> None:
    found = plan(write("flux2", tmp_path / "model")).text
    assert found is not None
    assert found.clean == NO_PICTURES


@pytest.mark.parametrize(("family", "part"), [("sd3", "tokenizer_2"), ("sd3", "tokenizer_3"), ("pixart", "tokenizer")])
def test_half_a_text_encoder_is_refused(family: str, part: str, tmp_path: Path) -> None:
    model = write(family, tmp_path / "model")
    for file in (model / part).iterdir():
        file.unlink()
    (model / part).rmdir()
    with pytest.raises(ExportError, match=f"lacks {part}"):
        plan(model)


@pytest.mark.parametrize("family", ["pixart", "dit"])
def test_what_is_predicted_is_never_guessed(family: str, tmp_path: Path) -> None:
    write_pipeline(family, tmp_path)
    (tmp_path / "scheduler" / "scheduler_config.json").unlink()
    (tmp_path / "scheduler").rmdir()
    with pytest.raises(ExportError, match="no scheduler"):
        plan(tmp_path)


@pytest.mark.parametrize(
    ("family", "setting"),
    [
        ("sd3", {"qk_norm": "layer_norm"}),
        ("pixart", {"attention_type": "gated"}),
        ("dit", {"norm_type": "ada_norm"}),
        ("qwen_image", {"zero_cond_t": True}),
        ("flux2", {"patch_size": 2}),
        ("z_image", {"siglip_feat_dim": 8}),
    ],
)
def test_variants_are_refused_by_the_setting_that_differs(
    family: str, setting: dict[str, object], tmp_path: Path
) -> None:
    write_pipeline(family, tmp_path)
    config = tmp_path / "transformer" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | setting))
    with pytest.raises(ExportError, match=next(iter(setting))):
        plan(tmp_path)


def ids(tokenizer: spec.Tokenizer, prompt: str) -> list[int]:
    """As the engine reads a prompt."""
    read = Tokenizer.from_str(tokenizer.json).encode(f"{tokenizer.prefix}{prompt}{tokenizer.suffix}").ids
    padding = [tokenizer.pad_id] * (tokenizer.length - len(read))
    return padding + read if tokenizer.pad_side == "left" else read + padding


@pytest.mark.parametrize("prompt", ["", " a cat ", "word " * 300])
@pytest.mark.parametrize("family", ["z_image", "klein", "flux2"])
def test_prompts_are_read_in_the_models_chat_template(family: str, prompt: str, tmp_path: Path) -> None:
    """Token for token as diffusers' pipelines read them."""
    model = write("flux2" if family == "klein" else family, tmp_path / "model")
    if family == "klein":
        shutil.rmtree(model / "text_encoder")
        shutil.rmtree(model / "tokenizer")
        write_qwen3(model, 8)
    made = plan(model).text
    assert made is not None
    (tokenizer,) = made.tokenizers.values()
    loaded: Any = AutoTokenizer.from_pretrained(model / "tokenizer")
    settings = {"padding": "max_length", "max_length": 512, "truncation": True}
    if family == "flux2":
        talk = flux2.pipeline_flux2.format_input([prompt])
        settings |= {"add_generation_prompt": False, "tokenize": True, "return_dict": True}
        theirs = loaded.apply_chat_template(talk, **settings).input_ids[0]
        assert (tokenizer.pad_side, theirs[-1]) == ("left", 3)
    else:
        talk = [{"role": "user", "content": prompt}]
        thinks = family == "z_image"
        text = loaded.apply_chat_template(talk, tokenize=False, add_generation_prompt=True, enable_thinking=thinks)
        theirs = loaded(text, **settings).input_ids
    assert ids(tokenizer, prompt) == theirs


@pytest.mark.parametrize(
    ("family", "template", "message"),
    [
        ("z_image", None, "holds no usable chat template"),
        ("z_image", "{{ messages[0].content | trim }}", "changes prompts"),
        ("flux2", "{{ messages | length }}", "holds no usable chat template"),
    ],
)
def test_a_chat_template_that_cannot_be_kept_is_refused(
    family: str, template: str | None, message: str, tmp_path: Path
) -> None:
    model = write(family, tmp_path)
    tokenizer: Any = AutoTokenizer.from_pretrained(model / "tokenizer")
    shutil.rmtree(model / "tokenizer")
    tokenizer.chat_template = template
    tokenizer.save_pretrained(model / "tokenizer")
    with pytest.raises(ExportError, match=message):
        plan(model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sliding_window": 64, "use_sliding_window": True}, "sliding windows are not supported"),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}, "positions of type linear"),
        ({"model_type": "gemma"}, "gemma is not supported"),
    ],
)
def test_another_language_model_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    config = write("z_image", tmp_path) / "text_encoder" / "config.json"
    settings = json.loads(config.read_text())
    config.write_text(json.dumps({name: value for name, value in settings.items() if name != "layer_types"} | change))
    with pytest.raises(ExportError, match=message):
        plan(tmp_path)


def test_a_text_encoder_of_another_width_is_refused(tmp_path: Path) -> None:
    model = write("flux2", tmp_path)
    shutil.rmtree(model / "text_encoder")
    shutil.rmtree(model / "tokenizer")
    write_qwen3(model, 16)
    with pytest.raises(ExportError, match="gives 48 values a token, the transformer expects 24"):
        plan(model)


def test_flux2_shifts_by_tokens_and_steps(tmp_path: Path) -> None:
    write_pipeline("flux2", tmp_path)
    made = plan(tmp_path)
    assert made.scheduler["shift"]["kind"] == "dynamic_steps"
    assert made.lists() == [
        {"name": "transformer_blocks", "blocks": 4},
        {"name": "single_transformer_blocks", "blocks": 4, "joined": True},
    ]


@pytest.mark.parametrize(
    ("index", "kind", "steps"),
    [
        ({"is_distilled": False}, "classifier_free", 50),
        ({"is_distilled": True}, "none", 4),
        ({"_class_name": "Flux2KleinPipeline"}, "classifier_free", 50),
        ({"_class_name": "Flux2KleinPipeline", "is_distilled": True}, "none", 4),
        ({"_class_name": "Flux2Pipeline"}, "none", 4),
    ],
)
def test_a_klein_model_is_guided_unless_it_is_distilled(
    index: dict[str, Any], kind: str, steps: int, tmp_path: Path
) -> None:
    write_pipeline("flux2", tmp_path)
    config = tmp_path / "transformer" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"guidance_embeds": False}))
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    made = plan(tmp_path)
    assert (made.guidance["kind"], made.steps) == (kind, steps)


def test_z_image_makes_pictures_of_whole_groups_of_tokens(tmp_path: Path) -> None:
    write_pipeline("z_image", tmp_path)
    assert plan(tmp_path).size["multiple_of"] == 128
    assert torch.tensor(plan(tmp_path).size["default"]).remainder(128).sum() == 0
