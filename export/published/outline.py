"""Graphs without nodes: ports and parameters of a template, known without tracing it."""

from __future__ import annotations

__all__ = ["outline"]

import onnx
from dbcache_export.spec import DTYPES, Template, Tensor
from dbcache_export.template import Traced, output_port
from onnx import helper
from torch._subclasses.fake_tensor import FakeTensorMode

#: ONNX's number of a type of PyTorch.
_ELEMENTS = dict(DTYPES.values())


def outline(template: Template, opset: int, _: FakeTensorMode) -> Traced:
    """What `template.trace` gives, without what it computes.

    A trace uses every parameter, or it fails. Of a module's buffers it uses some: here those that count (the last
    numbers of batches that a norm has seen) are left out.
    """
    inputs = [_port(name, tensor) for name, tensor in template.inputs.items()]
    outputs = [_port(output_port(template, name), tensor) for name, tensor in template.outputs.items()]
    model = helper.make_model(
        helper.make_graph([], "graph", inputs, outputs), opset_imports=[helper.make_opsetid("", opset)]
    )
    state = template.module.state_dict(keep_vars=True)
    owned = {name: state.get(name, parameter) for name, parameter in template.module.named_parameters()}
    owned |= {name: value for name, value in state.items() if value.is_floating_point()}
    return Traced(model, {name: (_ELEMENTS[value.dtype], tuple(value.shape)) for name, value in owned.items()})


def _port(name: str, tensor: Tensor) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, DTYPES[tensor.dtype][1], list(tensor.shape))
