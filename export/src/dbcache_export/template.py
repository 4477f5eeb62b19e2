"""Traces one module, without any weight data, into an ONNX graph whose parameters are graph inputs.

Three properties of the trace make the weights of a checkpoint usable in place, whatever their values are:

* Parameters are fake tensors: shapes without data. A module of any width costs nothing.
* Each parameter keeps its own name and layout, because the exporter's own optimisation, which folds
  transposes into weights and merges equal ones, is switched off.
* The graph is optimised while the parameters are inputs, which no pass can fold or merge.
"""

from __future__ import annotations

__all__ = ["MAX_CONSTANT", "Traced", "fake_module", "keep_float32", "output_port", "trace"]

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import onnx
import onnx_ir as ir
import torch
from onnxscript.optimizer import optimize_ir
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from dbcache_export.errors import ExportError, listed
from dbcache_export.spec import DTYPES, DType, Template, Tensor
from dbcache_export.tidy import tidy

#: Values of the largest constant that a graph may hold and that is no parameter.
MAX_CONSTANT = 4096

#: Lengths of dynamic axes while tracing: all different and none of them 1, so that none can pass for another.
_TRACED_LENGTH = {
    "batch": 2,
    "image": 24,
    "text": 7,
    "total": 31,
    "latent_frames": 4,
    "latent_height": 6,
    "latent_width": 10,
}


@dataclass(frozen=True)
class Traced:
    """A graph without weights.

    Attributes:
        model: Its nodes refer to parameters by the module's names; they are neither inputs nor initialisers.
        parameters: Name in the module: (ONNX dtype, shape), of every parameter that a node uses.
    """

    model: onnx.ModelProto
    parameters: dict[str, tuple[int, tuple[int, ...]]]


def fake_module(fake: FakeTensorMode, dtype: DType, build: Callable[[], torch.nn.Module]) -> torch.nn.Module:
    """What `build` makes, with parameters that have shapes and `dtype` but no data."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(DTYPES[dtype][0])  # `.to(dtype)` does not work on fake parameters
    try:
        with fake:
            return build().eval()
    finally:
        torch.set_default_dtype(before)


def keep_float32(fake: FakeTensorMode, module: torch.nn.Module, parts: Sequence[str]) -> None:
    """Makes parameters float32 again where a part of their name is one of `parts`, as the original keeps them."""
    for prefix, owner in module.named_modules():
        for name, parameter in list(owner.named_parameters(recurse=False)):
            if not set(parts).isdisjoint(f"{prefix}.{name}".split(".")):
                with fake:
                    wide = torch.nn.Parameter(torch.empty(parameter.shape, dtype=torch.float32))
                setattr(owner, name, wide)


def trace(template: Template, opset: int, fake: FakeTensorMode) -> Traced:
    """Traces and optimises a template.

    Raises:
        ExportError: The module has state that no checkpoint can supply, does not use a parameter, or its shapes
            are not those that the template states.
    """
    model = _export(template, opset, fake)
    names = _open_parameters(template, model)
    optimize_ir(model, num_iterations=4, input_size_limit=MAX_CONSTANT, output_size_limit=MAX_CONSTANT)
    _refuse_large_constants(template, model)
    proto = ir.to_proto(model)
    _name_axes(template, proto.graph)
    tidy(proto)
    onnx.checker.check_model(proto)
    return Traced(proto, _close_parameters(template, proto.graph, names))


def _export(template: Template, opset: int, fake: FakeTensorMode) -> ir.Model:
    """PyTorch's graph of the module, not optimised."""
    with fake, torch.no_grad():
        arguments = tuple(_example(tensor, template.lengths) for tensor in template.inputs.values())
        axes = tuple(
            {i: torch.export.Dim.DYNAMIC for i, axis in enumerate(tensor.shape) if isinstance(axis, str)}
            for tensor in template.inputs.values()
        )
        program = torch.export.export(template.module, arguments, dynamic_shapes=axes)
        exported = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=opset,
            input_names=list(template.inputs),
            output_names=[output_port(template, name) for name in template.outputs],
            optimize=False,
            verbose=False,
        )
    assert exported is not None
    return exported.model


def output_port(template: Template, name: str) -> str:
    """The name of an output's port: the tensor's, told apart from an input of the same tensor."""
    return f"{name}_out" if name in template.inputs else name


def _example(tensor: Tensor, lengths: Mapping[str, int]) -> torch.Tensor:
    known = {**_TRACED_LENGTH, **lengths}
    shape = [known[axis] if isinstance(axis, str) else axis for axis in tensor.shape]
    return torch.zeros(shape, dtype=DTYPES[tensor.dtype][0])


def _open_parameters(template: Template, model: ir.Model) -> list[str]:
    """Turns every initialiser that belongs to the module into a graph input; returns their names."""
    module, graph = template.module, model.graph
    owned = {name for name, _ in module.named_parameters()} | {name for name, _ in module.named_buffers()}
    names = [name for name in graph.initializers if name in owned]
    for name in names:
        value = graph.initializers.pop(name)
        value.const_value = None
        graph.inputs.append(value)
    for name, value in graph.initializers.items():
        if isinstance(getattr(value.const_value, "raw", None), FakeTensor):
            raise ExportError(
                f"{template.name}: the constant {name} is made outside of the traced code, so its value is unknown",
                "compute it in the family's forward",
            )
    return names


def _refuse_large_constants(template: Template, model: ir.Model) -> None:
    large = [
        f"{name} {list(value.shape or ())}"
        for name, value in model.graph.initializers.items()
        if value.const_value is not None and value.const_value.size > MAX_CONSTANT and not _is_uniform(value)
    ]
    if large:
        raise ExportError(
            f"{template.name}: constants of more than {MAX_CONSTANT} values that are no parameters: {listed(large)}",
            "compute them in the family's forward",
        )


def _is_uniform(value: ir.Value) -> bool:
    """All values are equal, as in the implied scale of a LayerNorm; becomes a ConstantOfShape."""
    assert value.const_value is not None
    array = value.const_value.numpy()
    return bool((array == array.flat[0]).all())


def _name_axes(template: Template, graph: onnx.GraphProto) -> None:
    """Gives ports the template's axis names, after checking that the trace kept each axis as stated."""
    ports = {port.name: port for port in [*graph.input, *graph.output]}
    stated = dict(template.inputs) | {output_port(template, k): v for k, v in template.outputs.items()}
    for name, tensor in stated.items():
        if name not in ports:
            raise ExportError(f"{template.name}: the trace passes {name} on unchanged", "leave it out of the family")
        port = ports[name].type.tensor_type
        if port.elem_type != DTYPES[tensor.dtype][1]:
            raise ExportError(
                f"{template.name}: {name} is {onnx.TensorProto.DataType.Name(port.elem_type)}, not {tensor.dtype}",
                "correct the family",
            )
        traced = [axis.dim_value if axis.HasField("dim_value") else None for axis in port.shape.dim]
        fixed = [axis if isinstance(axis, int) else None for axis in tensor.shape]
        if (
            len(traced) != len(fixed)
            or any(b is not None and a != b for a, b in zip(traced, fixed, strict=True))
            or (name in template.inputs and traced != fixed)
        ):
            raise ExportError(
                f"{template.name}: the trace gives {name} the shape {traced}, stated is {list(tensor.shape)}",
                "correct the family",
            )
        for axis, length in zip(port.shape.dim, tensor.shape, strict=True):
            if isinstance(length, str):
                axis.dim_param = length


def _close_parameters(
    template: Template, graph: onnx.GraphProto, names: list[str]
) -> dict[str, tuple[int, tuple[int, ...]]]:
    """Takes the parameters away from the graph's inputs; refuses those that cannot come from a checkpoint."""
    ports = {port.name: port for port in graph.input if port.name in names}
    inputs = [port for port in graph.input if port.name not in ports]
    del graph.input[:]
    graph.input.extend(inputs)
    used = {name for node in graph.node for name in node.input}
    parameters = {name for name, _ in template.module.named_parameters()}
    unused = parameters - used
    if unused:
        raise ExportError(f"{template.name} does not use its parameters {listed(unused)}", "correct the family")
    lost = (used & set(ports)) - set(template.module.state_dict())
    if lost:
        raise ExportError(
            f"{template.name}: the buffers {listed(lost)} are not part of a checkpoint",
            "compute them in the family's forward",
        )
    return {
        name: (
            port.type.tensor_type.elem_type,
            tuple(axis.dim_value for axis in port.type.tensor_type.shape.dim),
        )
        for name, port in ports.items()
        if name in used
    }
