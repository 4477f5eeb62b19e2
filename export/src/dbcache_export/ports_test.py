from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from torch._subclasses.fake_tensor import FakeTensorMode

from dbcache_export import families, spec
from dbcache_export.errors import ExportError
from dbcache_export.ports import refuse_misfits
from dbcache_export.spec import Options, Plan
from dbcache_export.tiny import pictures
from dbcache_export.tiny.texts import write_texts


def flux(pipeline: Path, _: Path) -> Path:
    return pipeline


def sd3(_: Path, folder: Path) -> Path:
    pictures.write_pipeline("sd3", folder)
    write_texts("sd3", folder)
    return folder


def text(plan: Plan) -> spec.Text:
    assert plan.text is not None
    return plan.text


def of_length(length: int | None) -> Callable[[Plan], Plan]:
    """The last text graph states another length."""

    def change(plan: Plan) -> Plan:
        *others, (graph, inputs) = text(plan).graphs
        return replace(plan, text=replace(text(plan), graphs=[*others, (replace(graph, length=length), inputs)]))

    return change


def of_tokens(name: str, **fields: object) -> Callable[[Plan], Plan]:
    def change(plan: Plan) -> Plan:
        tokenizers = dict(text(plan).tokenizers)
        tokenizers[name] = replace(tokenizers[name], **fields)  # type: ignore[arg-type]
        return replace(plan, text=replace(text(plan), tokenizers=tokenizers))

    return change


def other_axis(plan: Plan) -> Plan:
    states = spec.Tensor("f32", ("batch", "words", 24))
    return replace(plan, tensors=dict(plan.tensors) | {"prompt_embeds": states})


@pytest.mark.parametrize(
    ("write", "change", "message"),
    [
        (flux, lambda plan: plan, None),
        (sd3, lambda plan: plan, None),
        (flux, of_tokens("t5", length=100), "text_001.onnx: input_ids is .*512.* the format says .*100"),
        (flux, of_tokens("t5", padding="longest"), "input_ids is .*512.* the format says .*'t5'"),
        (flux, other_axis, "prompt_embeds is .*'text'.* the format says .*'words'"),
        (flux, of_length(512), "a length of 512 is stated"),
        (sd3, of_length(None), "text_003.onnx: the length of text follows from nothing"),
    ],
)
def test_text_graphs_have_the_ports_of_the_format(
    write: Callable[[Path, Path], Path],
    change: Callable[[Plan], Plan],
    message: str | None,
    pipeline_folder: Path,
    tmp_path: Path,
) -> None:
    plan = change(families.plan(write(pipeline_folder, tmp_path), Options(), FakeTensorMode()))
    if message is None:
        refuse_misfits(plan)
        return
    with pytest.raises(ExportError, match=message):
        refuse_misfits(plan)
