from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import numpy_helper
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from dbcache_export.errors import ExportError
from dbcache_export.spec import Template, Tensor
from dbcache_export.template import fake_module, trace

X = Tensor("f32", ("batch", "image", 8))


def template(build: Callable[[], nn.Module], fake: FakeTensorMode, **outputs: Tensor) -> Template:
    return Template("test", fake_module(fake, "f32", build), {"x": X}, outputs or {"y": X})


class TwoNorms(nn.Module):
    """Two parameters of equal value, one of them used transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.RMSNorm(8, eps=1e-6), nn.RMSNorm(8, eps=1e-6)
        self.linear = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        plain = torch.nn.functional.layer_norm(x, (8,))
        return self.linear(self.first(x) + self.second(x) + plain)


@pytest.mark.parametrize("opset", [20, 23])
def test_every_parameter_keeps_its_name_and_layout(opset: int) -> None:
    traced = trace(template(TwoNorms, fake := FakeTensorMode()), opset, fake)
    assert {name: shape for name, (_, shape) in traced.parameters.items()} == {
        "first.weight": (8,),
        "second.weight": (8,),
        "linear.weight": (8, 8),
        "linear.bias": (8,),
    }
    names = [node.name for node in traced.model.graph.node]
    assert len(set(names)) == len(names)
    assert [(o.domain, o.version) for o in traced.model.opset_import] == [("", opset)]
    axes = [axis.dim_param or axis.dim_value for axis in traced.model.graph.output[0].type.tensor_type.shape.dim]
    assert axes == ["batch", "image", 8]

    model, real = traced.model, TwoNorms()
    for name, value in real.state_dict().items():
        model.graph.initializer.append(numpy_helper.from_array(value.numpy(), name))
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for batch, image in ((1, 1), (3, 5)):
        x = torch.randn(batch, image, 8)
        (got,) = session.run(None, {"x": x.numpy()})
        np.testing.assert_allclose(got, real(x).detach().numpy(), rtol=0, atol=1e-5)


class Scaled(nn.Module):
    """Multiplies by something that `make` returns, made in the constructor or in the trace."""

    def __init__(self, make: Callable[[], torch.Tensor], *, register: bool | None) -> None:
        super().__init__()
        self.make, self.register = make, register
        if register:
            self.register_buffer("table", make(), persistent=False)
        elif register is None:
            self.table = make()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * (self.make() if self.register is False else self.table)


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.one(x)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (Unused, r"does not use its parameters other\.bias, other\.weight"),
        (lambda: Scaled(lambda: torch.arange(8.0), register=True), "buffers table are not part of a checkpoint"),
        (lambda: Scaled(lambda: torch.arange(8.0), register=None), "value is unknown"),
    ],
)
def test_state_outside_of_the_checkpoint_is_refused(build: Callable[[], nn.Module], message: str) -> None:
    fake = FakeTensorMode()
    with pytest.raises(ExportError, match=message):
        trace(template(build, fake), 20, fake)


def test_small_computed_constants_are_inlined_and_large_ones_computed() -> None:
    fake = FakeTensorMode()
    small = trace(template(lambda: Scaled(lambda: torch.arange(8.0), register=False), fake), 20, fake)
    assert [numpy_helper.to_array(c).tolist() for c in small.model.graph.initializer] == [list(range(8))]

    wide = Tensor("f32", ("batch", 5000))
    module = fake_module(fake, "f32", lambda: Scaled(lambda: torch.arange(5000.0), register=False))
    large = trace(Template("test", module, {"x": wide}, {"y": wide}), 20, fake)
    assert "Range" in {node.op_type for node in large.model.graph.node}
    assert max(onnx.numpy_helper.to_array(c).size for c in large.model.graph.initializer) == 1


def test_wrongly_stated_shapes_are_refused() -> None:
    fake = FakeTensorMode()
    with pytest.raises(ExportError, match="passes x on unchanged"):
        trace(template(nn.Identity, fake), 20, fake)
    with pytest.raises(ExportError, match=r"y the shape \[None, None, 8\], stated is \['batch', 8\]"):
        trace(template(nn.SiLU, fake, y=Tensor("f32", ("batch", 8))), 20, fake)
    with pytest.raises(ExportError, match="y is FLOAT, not f16"):
        trace(template(nn.SiLU, fake, y=Tensor("f16", X.shape)), 20, fake)
