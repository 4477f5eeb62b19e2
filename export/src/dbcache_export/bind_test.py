from pathlib import Path

import onnx
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from dbcache_export.bind import bind, refuse_unused
from dbcache_export.checkpoint import read
from dbcache_export.errors import ExportError
from dbcache_export.spec import Graph, Template, Tensor
from dbcache_export.template import Traced, fake_module, trace

X = Tensor("f32", ("batch", 4))


@pytest.fixture(scope="module")
def linear() -> tuple[Graph, Traced]:
    fake = FakeTensorMode()
    template = Template("linear", fake_module(fake, "f32", lambda: nn.Linear(4, 4)), {"x": X}, {"y": X})
    return Graph("one.onnx", template, "part", lambda name: f"layers.3.{name}"), trace(template, 20, fake)


def test_initialisers_are_places_in_the_file(tmp_path: Path, linear: tuple[Graph, Traced]) -> None:
    weights = {"layers.3.weight": torch.randn(4, 4).half(), "layers.3.bias": torch.randn(4), "other": torch.zeros(1)}
    save_file(weights, tmp_path / "model.safetensors")
    checkpoint = read(tmp_path, "part")
    model, used = bind(*linear, checkpoint)
    content = (tmp_path / "model.safetensors").read_bytes()
    assert used == {"layers.3.weight", "layers.3.bias"}
    for tensor in (t for t in model.graph.initializer if t.external_data):
        at = {item.key: item.value for item in tensor.external_data}
        assert at["location"] == "part.safetensors"
        begin = int(at["offset"])
        assert content[begin : begin + int(at["length"])] == weights[tensor.name].numpy().tobytes()
    casts = [node for node in model.graph.node if node.op_type == "Cast"]
    assert [(node.input[0], node.attribute[0].i) for node in casts] == [("layers.3.weight", onnx.TensorProto.FLOAT)]
    with pytest.raises(ExportError, match="no graph uses other"):
        refuse_unused({"part": checkpoint}, {}, {"part": used})
    refuse_unused({"part": checkpoint}, {"part": ["oth"]}, {"part": used})


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"layers.3.weight": torch.zeros(4, 4)}, r"lacks layers\.3\.bias"),
        ({"layers.3.weight": torch.zeros(4, 5), "layers.3.bias": torch.zeros(4)}, r"has the shape \[4, 5\]"),
        ({"layers.3.weight": torch.zeros(4, 4).double(), "layers.3.bias": torch.zeros(4)}, "stored as F64"),
    ],
)
def test_other_checkpoints_are_refused(
    tmp_path: Path, linear: tuple[Graph, Traced], weights: dict[str, torch.Tensor], message: str
) -> None:
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(ExportError, match=message):
        bind(*linear, read(tmp_path, "part"))
