"""Binds a template to the parameters of one block: the graph's initialisers become places in a checkpoint."""

from __future__ import annotations

__all__ = ["bind", "refuse_unused"]

from collections.abc import Collection, Mapping, Sequence

import onnx
from onnx import TensorProto, helper

from dbcache_export.checkpoint import Checkpoint, Parameter
from dbcache_export.errors import ExportError, listed
from dbcache_export.spec import Graph
from dbcache_export.template import Traced


def bind(graph: Graph, traced: Traced, checkpoint: Checkpoint | None) -> tuple[onnx.ModelProto, set[str]]:
    """The graph of one file, and the names of the parameters that it refers to.

    A parameter that is stored in another type than the graph computes in goes through a Cast node.

    Raises:
        ExportError: The checkpoint lacks a parameter, or has it in another shape.
    """
    found = _find(graph, traced, checkpoint)
    model = onnx.ModelProto()
    model.CopyFrom(traced.model)
    renamed: dict[str, str] = {}
    casts: list[onnx.NodeProto] = []
    for name, (dtype, _) in traced.parameters.items():
        parameter = found[name]
        model.graph.initializer.append(_reference(parameter))
        renamed[name] = parameter.name
        if parameter.onnx_dtype != dtype:
            renamed[name] = f"{parameter.name}:cast"
            casts.append(
                helper.make_node("Cast", [parameter.name], [renamed[name]], name=f"CastWeight_{len(casts)}", to=dtype)
            )
    for node in model.graph.node:
        node.input[:] = [renamed.get(value, value) for value in node.input]
    body = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*casts, *body])
    return model, {parameter.name for parameter in found.values()}


def refuse_unused(
    checkpoints: Mapping[str, Checkpoint],
    ignored: Mapping[str, Sequence[str]],
    used: Mapping[str, Collection[str]],
) -> None:
    """Refuses a checkpoint with parameters that no graph uses: the family misses a part of the model.

    Raises:
        ExportError: Names them.
    """
    for component, checkpoint in checkpoints.items():
        left = [
            name
            for name in checkpoint.parameters
            if name not in used[component] and not name.startswith(tuple(ignored.get(component, ())))
        ]
        if left:
            raise ExportError(
                f"{checkpoint.folder}: no graph uses {listed(left)}",
                "this is another model than its config.json says, or an adapter was saved with it",
            )


def _find(graph: Graph, traced: Traced, checkpoint: Checkpoint | None) -> dict[str, Parameter]:
    """The checkpoint's parameter for each of the template's."""
    stored = checkpoint.parameters if checkpoint else {}
    folder = checkpoint.folder if checkpoint else graph.file
    names = {name: graph.stored_name(name) for name in traced.parameters}
    missing = [name for name in names.values() if name not in stored]
    if missing:
        raise ExportError(
            f"{folder} lacks {listed(missing)}", "take the complete checkpoint that config.json describes"
        )
    for name, (_, shape) in traced.parameters.items():
        parameter = stored[names[name]]
        if parameter.shape != shape:
            raise ExportError(
                f"{folder}: {parameter.name} has the shape {list(parameter.shape)}, config.json says {list(shape)}",
                "take the config.json that belongs to the checkpoint",
            )
    return {name: stored[names[name]] for name in names}


def _reference(parameter: Parameter) -> TensorProto:
    """An initialiser without data: file, offset and length."""
    tensor = TensorProto(
        name=parameter.name,
        data_type=parameter.onnx_dtype,
        dims=parameter.shape,
        data_location=TensorProto.EXTERNAL,
    )
    for key, value in (
        ("location", parameter.shard),
        ("offset", parameter.offset),
        ("length", parameter.length),
    ):
        tensor.external_data.add(key=key, value=str(value))
    return tensor
