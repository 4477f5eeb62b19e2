"""Whole pipelines, tiny and with random weights: text encoders and decoders against transformers and diffusers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoTokenizer

from dbcache_export import families
from dbcache_export.check import OTHER_TOLERANCE
from dbcache_export.engine import export
from dbcache_export.errors import ExportError
from dbcache_export.spec import Options, Plan
from dbcache_export.tiny.pictures import write_pipeline
from dbcache_export.tiny.texts import write_texts

pytestmark = pytest.mark.slow

#: Family: its graphs beside the transformer's, and what its tokenizers read.
GRAPHS = {
    "sd3": ({"clip_l", "clip_g", "t5", "text", "decode"}, {"clip_l": "tokenizer", "t5": "tokenizer_3"}),
    "sd35": ({"clip_l", "clip_g", "text", "decode"}, {"clip_g": "tokenizer_2"}),
    "pixart": ({"t5", "decode"}, {}),
    "qwen_image": ({"qwen", "decode"}, {}),
    "flux2": ({"decode"}, {}),
}


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
    assert (fields["text"] is None) == (family == "flux2")
    for name, folder in tokenizers.items():
        entry = fields["text"]["tokenizers"][name]
        ours = Tokenizer.from_file(str(tmp_path / "engine" / entry["file"]))
        theirs = AutoTokenizer.from_pretrained(model / folder)
        for prompt in ("", "AB c", "red apple cat", "a b " * 300):
            ids = ours.encode(prompt).ids
            padded = ids + [entry["pad_id"]] * (entry["length"] - len(ids))
            assert padded == theirs(prompt, padding="max_length", max_length=entry["length"], truncation=True).input_ids


def test_pixart_reads_in_lower_case_and_the_length_depends_on_the_pipeline(tmp_path: Path) -> None:
    model = write("pixart", tmp_path / "model")
    found = plan(model).text
    assert found is not None
    tokenizer = found.tokenizers["t5"]
    assert tokenizer.length == 300
    assert Tokenizer.from_str(tokenizer.json).encode("  Red APPLE ").ids == [3, 4, 1]
    (model / "model_index.json").write_text(json.dumps({"_class_name": "PixArtAlphaPipeline"}))
    alpha = plan(model).text
    assert alpha is not None
    assert alpha.tokenizers["t5"].length == 120


def test_qwen_image_asks_in_its_template(tmp_path: Path) -> None:
    model = write("qwen_image", tmp_path / "model")
    found = plan(model).text
    assert found is not None
    tokenizer = found.tokenizers["qwen"]
    assert (tokenizer.drop, tokenizer.padding, tokenizer.length) == (34, "longest", 1058)
    assert tokenizer.prefix.endswith("<|im_start|>user\n")
    settings = json.loads((model / "tokenizer" / "tokenizer_config.json").read_text())
    (model / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(settings | {"padding_side": "left"}))
    with pytest.raises(ExportError, match="pads on the left"):
        plan(model)


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
        ("sd3", {"controlnet": True}),
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


def test_flux2_shifts_by_tokens_and_steps(tmp_path: Path) -> None:
    write_pipeline("flux2", tmp_path)
    made = plan(tmp_path)
    assert made.scheduler["shift"]["kind"] == "dynamic_steps"
    assert made.lists() == [
        {"name": "transformer_blocks", "blocks": 4},
        {"name": "single_transformer_blocks", "blocks": 4},
    ]


def test_z_image_makes_pictures_of_whole_groups_of_tokens(tmp_path: Path) -> None:
    write_pipeline("z_image", tmp_path)
    assert plan(tmp_path).size["multiple_of"] == 128
    assert torch.tensor(plan(tmp_path).size["default"]).remainder(128).sum() == 0
