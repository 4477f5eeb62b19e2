"""Turns a bfloat16 graph into a float32 one, so that a CPU can run it and its wiring can be checked."""

from __future__ import annotations

__all__ = ["widen"]

import onnx
from onnx import TensorProto, helper, numpy_helper

_WIDE = TensorProto.FLOAT
_NARROW = TensorProto.BFLOAT16


def widen(model: onnx.ModelProto) -> None:
    """Computes in float32 wherever the graph says bfloat16. Parameters stay as stored and are cast."""
    graph = model.graph
    for port in (*graph.input, *graph.output, *graph.value_info):
        if port.type.tensor_type.elem_type == _NARROW:
            port.type.tensor_type.elem_type = _WIDE
    renamed: dict[str, str] = {}
    for tensor in graph.initializer:
        if tensor.data_type != _NARROW:
            continue
        if tensor.external_data:
            renamed[tensor.name] = f"{tensor.name}:wide"
        else:
            tensor.CopyFrom(_widened(tensor))
    casts = [helper.make_node("Cast", [narrow], [wide], to=_WIDE) for narrow, wide in renamed.items()]
    for node in graph.node:
        node.input[:] = [renamed.get(value, value) for value in node.input]
        for attribute in node.attribute:
            if attribute.name in ("to", "dtype") and attribute.i == _NARROW:
                attribute.i = _WIDE
            elif attribute.HasField("t") and attribute.t.data_type == _NARROW:
                attribute.t.CopyFrom(_widened(attribute.t))
    body = list(graph.node)
    del graph.node[:]
    graph.node.extend([*casts, *body])


def _widened(tensor: TensorProto) -> TensorProto:
    return numpy_helper.from_array(numpy_helper.to_array(tensor).astype("float32"), tensor.name)
