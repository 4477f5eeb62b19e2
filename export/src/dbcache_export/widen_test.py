import numpy as np
import onnxruntime as ort
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from dbcache_export.spec import Template, Tensor
from dbcache_export.template import fake_module, trace
from dbcache_export.widen import widen


class Half(nn.Module):
    """Casts, a norm with implied scale, and a constant."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.layer_norm(x.to(torch.bfloat16), (32,)) * 0.5


def test_a_widened_graph_runs_on_a_cpu() -> None:
    fake = FakeTensorMode()
    inputs, outputs = {"x": Tensor("f32", ("batch", 32))}, {"y": Tensor("bf16", ("batch", 32))}
    model = trace(Template("half", fake_module(fake, "bf16", Half), inputs, outputs), 20, fake).model
    widen(model)
    x = np.random.default_rng(0).standard_normal((3, 32), dtype=np.float32)
    (got,) = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": x})
    want = nn.functional.layer_norm(torch.from_numpy(x), (32,)) * 0.5
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want.numpy(), atol=1e-5)
