"""Every stage of every exported family, in every precision, is taken by NVIDIA's parser and builder.

Run by `cargo xtask check-tensorrt`, which builds the command and names it in DBCACHE_TRT. What was built is added to
the file that DBCACHE_TENSORRT_REPORT names, as one table for each engine.
"""

import json
import os
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import onnx
import pytest
from accept import Accepted, Profile, Refused, accept, report
from onnx import TensorProto, helper

from dbcache_export.conftest import write_transformer as write_flux
from dbcache_export.engine import export
from dbcache_export.spec import DType, Options
from dbcache_export.tiny.pictures import TRANSFORMERS as PICTURES
from dbcache_export.tiny.pictures import write_pipeline as write_picture
from dbcache_export.tiny.videos import TRANSFORMERS as VIDEOS
from dbcache_export.tiny.videos import write_pipeline as write_video
from dbcache_export.tiny.videos import write_second


def write_wan_two(folder: Path) -> None:
    """Wan 2.2: two transformers that take turns."""
    write_video("wan", folder)
    write_second("wan", folder, 0.875)


#: Family: writes its model, tiny and with random weights.
FAMILIES: dict[str, Callable[[Path], None]] = {
    "flux": write_flux,
    **{name: partial(write_picture, name) for name in PICTURES},
    **{name: partial(write_video, name) for name in VIDEOS},
    "wan_two": write_wan_two,
}

#: The element types by the engine's flag.
_COMPUTE = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}

#: Where the model's own size is too much for one of its products without a fused attention, as in f32: 119 thousand
#: tokens of video are 57 GB of scores a head.
PROFILES: dict[tuple[str, DType], str] = {("hunyuan_video", "f32"): "176..320,frames=1..17"}


@pytest.mark.parametrize("compute", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_stage_is_accepted(family: str, compute: DType, tmp_path: Path) -> None:
    FAMILIES[family](tmp_path / "model")
    options = Options(compute=compute, check=False, pack=True)
    export(tmp_path / "model", tmp_path / "engine", options, lambda _: None)
    # A block alone, a long stage, and both ends joined to their neighbours.
    profile = PROFILES.get((family, compute))
    ranges = [] if profile is None else ["--profile", profile]
    division = ["--cache", "f1b1", "--stages", "fused", "--provider", "tensorrt", *ranges]
    stages = written_stages(tmp_path / "engine", tmp_path / "stages", *division)
    tell(f"{family}, exported with {compute}", {graph.name: accept(graph, shapes) for graph, shapes in stages.items()})


@pytest.mark.parametrize("compute", ["fp16", "bf16"])
@pytest.mark.parametrize(("family", "opset"), [*((family, 20) for family in FAMILIES), ("flux", 23)])
def test_stages_that_the_engine_casts_are_accepted(family: str, opset: int, compute: str, tmp_path: Path) -> None:
    """Exported in float32, cast when it is loaded; in opset 23 attention is one operator."""
    FAMILIES[family](tmp_path / "model")
    export(tmp_path / "model", tmp_path / "engine", Options(opset=opset, check=False, pack=True), lambda _: None)
    profile = PROFILES.get((family, "f32"))
    ranges = [] if profile is None else ["--profile", profile]
    division = ["--cache", "f1b1", "--stages", "fused", "--provider", "tensorrt", "--compute", compute, *ranges]
    stages = written_stages(tmp_path / "engine", tmp_path / "stages", *division)
    for graph in stages:
        nodes = onnx.load(graph, load_external_data=False).graph.node
        targets = {node.attribute[0].i for node in nodes if node.op_type == "Cast"}
        assert graph.name == "decode.onnx" or _COMPUTE[compute] in targets
    accepted = {graph.name: accept(graph, shapes) for graph, shapes in stages.items()}
    tell(f"{family} in opset {opset}, computing in {compute}", accepted)


def tell(title: str, stages: dict[str, Accepted]) -> None:
    """Prints what was built, and adds it to the report."""
    table = f"## {title}\n\n{report(stages)}\n"
    print(table)
    if path := os.environ.get("DBCACHE_TENSORRT_REPORT"):
        with Path(path).open("a") as file:
            file.write(table)


def written_stages(engine: Path, out: Path, *options: str) -> dict[Path, Profile]:
    """The graphs of a plan, with the shapes for which they are to be built."""
    command = [os.environ["DBCACHE_TRT"], "stages", "--engine", engine, "-o", out, *options]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    graphs = json.loads((out / "stages.json").read_text())["graphs"]
    return {
        out / graph["file"]: {name: (s["min"], s["opt"], s["max"]) for name, s in graph["inputs"].items()}
        for graph in graphs
    }


def model(folder: Path, nodes: list[onnx.NodeProto], dtypes: dict[str, int]) -> Path:
    """A graph of one dynamic axis over its inputs, with the output `y`."""
    value = helper.make_tensor_value_info
    inputs = [value(name, dtype, ["n", 4]) for name, dtype in dtypes.items()]
    graph = helper.make_graph(nodes, "graph", inputs, [value("y", TensorProto.FLOAT, ["n", 4])])
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("of.nobody", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), folder / "model.onnx")
    return folder / "model.onnx"


SHAPES: Profile = {"x": ([1, 4], [2, 4], [8, 4]), "z": ([1, 4], [2, 4], [8, 4])}


@pytest.mark.parametrize(
    ("nodes", "dtypes", "profile", "words"),
    [
        ([("Foo", ["x"], "of.nobody")], {"x": TensorProto.FLOAT}, SHAPES, "Plugin not found"),
        ([("Add", ["x", "z"], "")], {"x": TensorProto.FLOAT, "z": TensorProto.FLOAT16}, SHAPES, "same input types"),
        ([("Relu", ["x"], "")], {"x": TensorProto.FLOAT}, {}, "profile"),
    ],
    ids=["an unknown operator", "mixed types", "no profile"],
)
def test_the_check_refuses(
    nodes: list[tuple[str, list[str], str]], dtypes: dict[str, int], profile: Profile, words: str, tmp_path: Path
) -> None:
    made = [helper.make_node(kind, inputs, ["y"], domain=domain) for kind, inputs, domain in nodes]
    with pytest.raises(Refused, match=words):
        accept(model(tmp_path, made, dtypes), profile)


def test_the_check_accepts(tmp_path: Path) -> None:
    made = [helper.make_node("Add", ["x", "z"], ["y"])]
    dtypes = {"x": TensorProto.FLOAT, "z": TensorProto.FLOAT}
    accepted = accept(model(tmp_path, made, dtypes), SHAPES)
    assert (accepted.layers, accepted.precision, accepted.profile) == (1, ("float",), SHAPES)
    assert accepted.engine_bytes > 0
    assert accepted.weight_bytes == 0


def test_a_report_has_a_row_for_each_stage() -> None:
    stage = Accepted(7, ("half", "float"), 1.25, 12_345, 1_000, 2_000, {"x": ([1, 4], [2, 4], [8, 4])})
    head, line, row = report({"embed.onnx": stage}).splitlines()
    assert head.startswith("| stage | layers | precision | build, s |")
    assert line == "| --- | --- | --- | --- | --- | --- | --- | --- |"
    assert row == "| embed.onnx | 7 | half, float | 1.2 | 12.3 | 1.0 | 2.0 | `x` 1..8 (2) x 4 |"
