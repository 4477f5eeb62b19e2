import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from dbcache_export.tidy import tidy


def model() -> onnx.ModelProto:
    """y = x / sqrt(x²) + ones + 3, with the metadata that a trace leaves."""
    wide = numpy_helper.from_array(np.ones(32, np.float32), "ones_like_7")
    small = numpy_helper.from_array(np.float32(3), "val_3")
    nodes = [
        helper.make_node("Mul", ["x", "x"], ["square"], name="same", doc_string="at /home/me/model.py"),
        helper.make_node("Sqrt", ["square"], ["root"], name="same"),
        helper.make_node("Reciprocal", ["root"], ["inverse"]),
        helper.make_node("Mul", ["x", "inverse"], ["sign"]),
        helper.make_node("Add", ["sign", "ones_like_7"], ["sum"]),
        helper.make_node("Add", ["sum", "val_3"], ["y"]),
    ]
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 32]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "main", [ports[0]], [ports[1]], [wide, small])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    made.metadata_props.add(key="k", value="v")
    return made


def test_it_computes_the_same() -> None:
    before, after = model(), model()
    tidy(after)
    x = np.random.default_rng(0).standard_normal((2, 32), dtype=np.float32)
    want, got = (ReferenceEvaluator(m).run(None, {"x": x})[0] for m in (before, after))
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_texts_and_wide_constants_are_gone() -> None:
    tidied = model()
    tidy(tidied)
    onnx.checker.check_model(tidied)
    assert [node.op_type for node in tidied.graph.node] == ["ConstantOfShape", "Mul", "Sqrt", "Div", "Add", "Add"]
    assert [constant.name for constant in tidied.graph.initializer] == ["c0", "c1"]
    assert len({node.name for node in tidied.graph.node}) == 6
    assert b"model.py" not in tidied.SerializeToString()
    assert not tidied.metadata_props


def test_a_reciprocal_of_something_else_stays() -> None:
    other = model()
    other.graph.node[1].op_type = "Exp"
    tidy(other)
    assert "Reciprocal" in {node.op_type for node in other.graph.node}
