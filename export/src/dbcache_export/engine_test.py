import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoTokenizer

from dbcache_export import families
from dbcache_export.check import GRAPH_TOLERANCE, OTHER_TOLERANCE, check
from dbcache_export.conftest import child_environment
from dbcache_export.engine import Summary, export
from dbcache_export.errors import ExportError
from dbcache_export.guidance import separate
from dbcache_export.spec import Options


def quiet(_: str) -> None:
    pass


def read_manifest(engine: Path) -> dict[str, Any]:
    return json.loads((engine / "manifest.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def pipeline(pipeline_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Summary]:
    """A pipeline in a Hugging Face cache, exported by reference, checked."""
    cache = tmp_path_factory.mktemp("hub") / "models--someone--FLUX.1-tiny"
    shutil.copytree(pipeline_folder, cache / "copy")
    for file in [path for path in (cache / "copy").rglob("*") if path.is_file()]:
        blob = cache / "blobs" / hashlib.sha256(str(file).encode()).hexdigest()
        link = cache / "snapshots" / "0123" / file.relative_to(cache / "copy")
        for folder in (blob.parent, link.parent):
            folder.mkdir(parents=True, exist_ok=True)
        file.rename(blob)
        link.symlink_to(os.path.relpath(blob, link.parent))
    engine = tmp_path_factory.mktemp("engines") / "pipeline"
    return engine, export(cache / "snapshots" / "0123", engine, Options(check=True), quiet)


@pytest.fixture(scope="module")
def emoji(emoji_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Summary]:
    engine = tmp_path_factory.mktemp("engines") / "emoji"
    return engine, export(emoji_folder, engine, Options(check=True, pack=True, opset=23), quiet)


def test_a_pipeline_computes_what_pytorch_computes(pipeline: tuple[Path, Summary]) -> None:
    report = pipeline[1].report
    assert report is not None
    assert set(report.errors) == {"clip", "t5", "embed", "double", "single", "final", "decode", "chain"}
    assert max(report.errors[kind] for kind in ("clip", "t5", "decode")) < OTHER_TOLERANCE["f32"]
    assert max(report.errors[kind] for kind in ("double", "single", "final")) < GRAPH_TOLERANCE["f32"]


def test_a_pipelines_settings_reach_the_manifest(pipeline: tuple[Path, Summary]) -> None:
    fields = read_manifest(pipeline[0])
    assert fields["name"] == "FLUX.1-tiny"
    assert fields["guidance"] == {"kind": "embedded", "default": 3.5}
    assert fields["latents"] == {"layout": "tokens", "channels": 4, "downscale": 2, "patch": 2}
    assert fields["video"] is None
    assert fields["size"] == {"default": [256, 256], "min": 64, "max": 512, "multiple_of": 4}
    assert fields["scheduler"]["shift"]["kind"] == "dynamic"
    assert fields["dimensions"]["total"] == {"sum": ["text", "image"]}
    assert fields["dimensions"]["latent_height"] == {"min": 32, "max": 256}
    assert [block["kind"] for block in fields["blocks"]] == ["double", "double", "single", "single"]
    lists = [{"name": "transformer_blocks", "blocks": 2}, {"name": "single_transformer_blocks", "blocks": 2}]
    assert fields["lists"] == lists
    assert [graph["outputs"] for graph in fields["text"]["graphs"]] == [["pooled_projections"], ["prompt_embeds"]]
    assert (pipeline[0] / "LICENSE.md").read_text() == "the licence"
    folders = {weight["folder"] for weight in fields["weights"]}
    assert len(folders) == 1
    assert Path(folders.pop()).name == "blobs"


def test_tokenizer_files_give_the_ids_of_the_pipeline(pipeline: tuple[Path, Summary], pipeline_folder: Path) -> None:
    from tokenizers import Tokenizer

    for name, folder in (("clip", "tokenizer"), ("t5", "tokenizer_2")):
        entry = read_manifest(pipeline[0])["text"]["tokenizers"][name]
        ours = Tokenizer.from_file(str(pipeline[0] / entry["file"]))
        theirs = AutoTokenizer.from_pretrained(pipeline_folder / folder)
        for prompt in ("", "AB c", "red apple cat", "a b " * 600):
            ids = ours.encode(prompt).ids
            padded = ids + [entry["pad_id"]] * (entry["length"] - len(ids))
            expected = theirs(prompt, padding="max_length", max_length=entry["length"], truncation=True).input_ids
            assert padded == expected, (name, prompt)


def test_emoji_is_recognised(emoji: tuple[Path, Summary]) -> None:
    fields = read_manifest(emoji[0])
    assert fields["prediction"] == {"kind": "sample", "min_sigma": 0.02}
    assert fields["guidance"] == separate(1.0)
    assert fields["text"]["unconditional"] == "<null>"
    words = fields["text"]["tokenizers"]["words"]
    assert (words["length"], words["pad_id"], words["unknown_id"]) == (8, 0, 5)

    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(emoji[0] / words["file"]))
    assert tokenizer.encode("Red  APPLE <null> dragon").ids == [2, 3, 1, 5]


@pytest.mark.parametrize("which", ["pipeline", "emoji"])
def test_the_manifest_describes_the_files(which: str, request: pytest.FixtureRequest) -> None:
    engine, summary = request.getfixturevalue(which)
    fields = read_manifest(engine)
    text = fields["text"]
    graphs = [fields["embed"], fields["final"], fields["decode"], *fields["blocks"], *text["graphs"]]
    assert len(graphs) == summary.graphs
    for entry in [*graphs, *text["tokenizers"].values()]:
        content = (engine / entry["file"]).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (entry["bytes"], entry["sha256"])
    for weight in fields["weights"]:
        content = (Path(weight["folder"] or engine) / weight["file"]).read_bytes()
        header = content[: 8 + int.from_bytes(content[:8], "little")]
        assert (len(content), hashlib.sha256(content).hexdigest()) == (weight["bytes"], weight["sha256"])
        assert hashlib.sha256(header).hexdigest() == weight["header_sha256"]
    for entry in graphs:
        ports = fields["block_kinds"][entry["kind"]] if "kind" in entry else entry
        model = onnx.load(engine / entry["file"], load_external_data=False)
        assert model.opset_import[0].version == fields["opset"]
        for port in model.graph.output:
            name = port.name.removesuffix("_out")
            assert (port.name != name) == (name in ports["inputs"])
            assert name in ports["outputs"]
            axes = [axis.dim_param or axis.dim_value for axis in port.type.tensor_type.shape.dim]
            assert axes == fields["tensors"][name]["shape"]
        locations = {e.value for t in model.graph.initializer for e in t.external_data if e.key == "location"}
        assert locations <= {weight["name"] for weight in fields["weights"]}


def test_the_same_model_gives_the_same_bytes(emoji_folder: Path, emoji: tuple[Path, Summary], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dbcache_export", emoji_folder, tmp_path / "again"]
    arguments = [*map(str, command), "--pack", "--no-check", "--opset", "23"]
    subprocess.run(arguments, check=True, env=child_environment(PYTHONHASHSEED="7"), capture_output=True)
    for file in emoji[0].iterdir():
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes(), file.name


def test_a_wrong_graph_does_not_pass_the_check(emoji_folder: Path, emoji: tuple[Path, Summary], tmp_path: Path) -> None:
    engine = tmp_path / "engine"
    shutil.copytree(emoji[0], engine)
    shutil.copyfile(engine / "block_001.onnx", engine / "block_000.onnx")
    with pytest.raises(ExportError, match=r"block_000\.onnx: .* differs from PyTorch"):
        check(engine, families.plan(emoji_folder, Options(), FakeTensorMode()), "f32")
    (engine / "block_000.onnx").write_bytes(b"nonsense")
    with pytest.raises(ExportError, match=r"block_000\.onnx: ONNX Runtime refuses it"):
        check(engine, families.plan(emoji_folder, Options(), FakeTensorMode()), "f32")


def test_only_engine_directories_are_replaced(
    emoji_folder: Path, emoji: tuple[Path, Summary], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dbcache_export import engine

    engine_folder = tmp_path / "engine"
    shutil.copytree(emoji[0], engine_folder)
    (engine_folder / "README.md").write_text("a card")
    (engine_folder / "block_999.onnx").write_text("of a deeper model")

    with pytest.raises(ExportError, match="pass --overwrite"):
        export(emoji_folder, engine_folder, Options(), quiet)
    monkeypatch.setattr(engine, "_write_graphs", lambda plan, *_: {})
    monkeypatch.setattr(engine, "manifest", lambda *_: b'{"format_version": 1}')
    export(emoji_folder, engine_folder, Options(check=False, overwrite=True), quiet)
    assert sorted(path.name for path in engine_folder.iterdir()) == ["README.md", "manifest.json", "words.json"]
    assert [path.name for path in tmp_path.iterdir()] == ["engine"]

    (tmp_path / "home").mkdir()
    with pytest.raises(ExportError, match="no engine directory"):
        export(emoji_folder, tmp_path / "home", Options(overwrite=True), quiet)
