import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch._subclasses.fake_tensor import FakeTensorMode

from dbcache_export.conftest import rewrite
from dbcache_export.errors import ExportError
from dbcache_export.families.flux_text import flux_text
from dbcache_export.spec import Options

PARTS = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")


@pytest.fixture
def folder(pipeline_folder: Path, tmp_path: Path) -> Path:
    for part in PARTS:
        shutil.copytree(pipeline_folder / part, tmp_path / part)
    return tmp_path


def new_clip_names(folder: Path) -> None:
    rewrite(folder / "text_encoder" / "model.safetensors", lambda name: name.removeprefix("text_model."))


def second_name_only(folder: Path) -> None:
    file = folder / "text_encoder_2" / "model.safetensors"
    rewrite(file, lambda name: {"shared.weight": "encoder.embed_tokens.weight"}.get(name, name))


def both_names(folder: Path) -> None:
    file = folder / "text_encoder_2" / "model.safetensors"
    tensors = load_file(file)
    tensors["encoder.embed_tokens.weight"] = tensors["shared.weight"].clone()
    save_file(tensors, file)


@pytest.mark.parametrize("change", [lambda _: None, new_clip_names, second_name_only, both_names])
def test_every_way_to_name_parameters_is_understood(folder: Path, change: Callable[[Path], None]) -> None:
    change(folder)
    found = flux_text(folder, Options(), FakeTensorMode(), embeds_guidance=True)
    assert found is not None
    assert [encoder.graph for encoder in found.encoders] == [graph for graph, _ in found.text.graphs]
    for encoder in found.encoders:
        graph, stored = encoder.graph, set(encoder.checkpoint.parameters)
        used = {graph.stored_name(name) for name, _ in graph.template.module.named_parameters()}
        assert used <= stored
        assert all(name.startswith(tuple(encoder.ignored)) for name in stored - used)


def test_float16_keeps_t5s_wide_layer_in_float32(folder: Path) -> None:
    found = flux_text(folder, Options(compute="f16"), FakeTensorMode(), embeds_guidance=False)
    assert found is not None
    module = found.text.graphs[1][0].template.module
    kinds = {name.rpartition(".wo.")[1]: parameter.dtype for name, parameter in module.named_parameters()}
    assert kinds == {"": torch.float16, ".wo.": torch.float32}
    assert found.text.tokenizers["t5"].length == 256


def test_a_pipeline_has_both_encoders_or_none(folder: Path) -> None:
    shutil.rmtree(folder / "tokenizer_2")
    with pytest.raises(ExportError, match="lacks tokenizer_2"):
        flux_text(folder, Options(), FakeTensorMode(), embeds_guidance=True)
    for part in PARTS:
        shutil.rmtree(folder / part, ignore_errors=True)
    assert flux_text(folder, Options(), FakeTensorMode(), embeds_guidance=True) is None
