"""Tokenizers that cut and pad as transformers does, and tables that are read as transformers reads them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoTokenizer, T5EncoderModel, UMT5EncoderModel

from dbcache_export import encoders, families, prompts
from dbcache_export.bind import refuse_unused
from dbcache_export.checkpoint import Checkpoint, Parameter
from dbcache_export.encoders import own_length, tokenizer
from dbcache_export.errors import ExportError
from dbcache_export.families.flux_text import flux_text
from dbcache_export.families.video_text import _Zero
from dbcache_export.spec import Options, Tensor
from dbcache_export.tiny import pictures, texts, videos

SHARED, OWN = "shared.weight", "encoder.embed_tokens.weight"


def settings(folder: Path, **change: Any) -> None:
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | change), "utf-8")


@pytest.fixture
def folder(pipeline_folder: Path, tmp_path: Path) -> Path:
    for part in ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"):
        shutil.copytree(pipeline_folder / part, tmp_path / part)
    return tmp_path


@pytest.mark.parametrize("part", ["tokenizer", "tokenizer_2"])
@pytest.mark.parametrize("cuts", ["left", "right"])
@pytest.mark.parametrize("pads", ["left", "right"])
def test_prompts_are_cut_and_padded_as_in_transformers(part: str, cuts: str, pads: str, folder: Path) -> None:
    settings(folder / part, truncation_side=cuts, padding_side=pads)
    made = tokenizer(folder / part, 9)
    theirs = AutoTokenizer.from_pretrained(folder / part)
    ours = Tokenizer.from_str(made.json)
    for prompt in ("", "a b", "red apple cat", "a b c " * 40 + "cat", "red " + "apple " * 90):
        ids = ours.encode(prompt).ids
        fill = [made.pad_id] * (made.length - len(ids))
        padded = fill + ids if made.pad_side == "left" else ids + fill
        assert padded == theirs(prompt, padding="max_length", max_length=9, truncation=True).input_ids, prompt


def test_the_pipeline_says_how_long_a_text_is_but_for_clip(folder: Path) -> None:
    for part in ("tokenizer", "tokenizer_2"):
        settings(folder / part, model_max_length=10)
    found = flux_text(folder, Options(), FakeTensorMode(), embeds_guidance=True)
    assert found is not None
    assert {name: one.length for name, one in found.text.tokenizers.items()} == {"clip": 10, "t5": 512}
    clip = found.text.graphs[0][0]
    assert clip.template.inputs["input_ids"].shape == ("batch", 10)
    assert clip.cases is not None
    assert all(given["input_ids"].shape[1] == 10 for given, _ in clip.cases())
    settings(folder / "tokenizer", model_max_length=1000)
    assert own_length(folder / "tokenizer", 77) == 77


@pytest.mark.parametrize(
    ("write", "model"),
    [(lambda to: texts.write_t5(to, "", 24), T5EncoderModel), (lambda to: texts.write_umt5(to, 24), UMT5EncoderModel)],
)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("names", [(SHARED,), (OWN,), (SHARED, OWN)])
def test_of_two_tables_that_is_read_which_transformers_reads(
    write: Callable[[Path], None], model: Any, tied: bool, names: tuple[str, ...], tmp_path: Path
) -> None:
    write(tmp_path)
    folder = tmp_path / "text_encoder"
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": tied}), "utf-8")
    weights = load_file(folder / "model.safetensors")
    table = weights.pop(SHARED)
    weights |= {name: table + place for place, name in enumerate(names)}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    states = Tensor("f32", ("batch", "text", 24))
    encoder = encoders.t5(folder, "text_000.onnx", 7, states, Options(), FakeTensorMode(), ("states",))
    read = weights[encoder.graph.stored_name(OWN)]
    assert torch.equal(read, model.from_pretrained(folder).encoder.embed_tokens.weight)
    used = {encoder.graph.stored_name(name) for name, _ in encoder.graph.template.module.named_parameters()}
    refuse_unused({"t5": encoder.checkpoint}, {"t5": encoder.ignored}, {"t5": used})


@pytest.mark.parametrize("family", ["sd3", "pixart", "qwen_image", "z_image", "wan", "hunyuan_video"])
@pytest.mark.parametrize("saved", ["float16", "bfloat16"])
def test_text_encoders_compute_in_the_dtype_that_was_asked_for(family: str, saved: str, tmp_path: Path) -> None:
    """Whichever they were saved in, as config.json says of most that are published."""
    if family in videos.TRANSFORMERS:
        videos.write_pipeline(family, tmp_path)
        videos.write_parts(family, tmp_path)
    else:
        pictures.write_pipeline(family, tmp_path)
        texts.write_texts(family, tmp_path)
    for file in tmp_path.glob("text_encoder*/config.json"):
        file.write_text(file.read_text("utf-8").replace('"float32"', f'"{saved}"'), "utf-8")
        assert saved in file.read_text("utf-8")
    text = families.plan(tmp_path, Options(), FakeTensorMode()).text
    assert text is not None
    for graph, _ in text.graphs:
        assert {parameter.dtype for parameter in graph.template.module.parameters()} <= {torch.float32}, graph.file


@pytest.mark.parametrize("prefix", ["model.language_model.", "language_model.model.", "model."])
@pytest.mark.parametrize(
    ("name", "is_left_out"),
    [
        ("lm_head.weight", True),
        ("model.visual.blocks.0.weight", True),
        ("{}layers.0.stray.weight", False),
        ("{}extra.weight", False),
    ],
)
def test_only_what_no_prompt_reaches_is_left_out(prefix: str, name: str, is_left_out: bool, tmp_path: Path) -> None:
    name = name.format(prefix)
    parameters: Mapping[str, Parameter] = {name: Parameter(name, "", "F32", (1,), 0, 4)}
    stored = {"text": Checkpoint(tmp_path, (), parameters)}
    if is_left_out:
        refuse_unused(stored, {"text": encoders.OTHER_PARTS}, {"text": ()})
    else:
        with pytest.raises(ExportError, match="no graph uses"):
            refuse_unused(stored, {"text": encoders.OTHER_PARTS}, {"text": ()})


def test_states_of_as_many_tokens_as_there_are_stay_on_whichever_side_is_padding() -> None:
    """`[u[:v] for u, v in zip(prompt_embeds, seq_lens)]` of Wan's pipeline."""
    states = torch.arange(1.0, 9).reshape(2, 4, 1)
    mask = torch.tensor([[1.0, 1, 1, 0], [0, 0, 1, 1]])
    assert _Zero()(states, mask).flatten().tolist() == [1, 2, 3, 0, 5, 6, 0, 0]


def test_the_recorded_rules_are_those_of_the_exporter() -> None:
    reference = Path(__file__).parents[3] / "tests" / "data" / "reference" / "prompts.json"
    recorded = json.loads(reference.read_text("utf-8"))["rules"]
    assert recorded["wan"] == list(prompts.WAN)
    assert recorded["caption"] == list(prompts.CAPTION)
    assert recorded["no_pictures"] == list(prompts.NO_PICTURES)
