"""Whether the text graphs of a plan have the ports that the format demands of them (`models/README.md`, "text").

The ports of all other graphs are made from the tensors of the plan. Those of text graphs also follow from tokenizers
and from each other: a graph can be right by itself, and still be one that the engine refuses.
"""

from __future__ import annotations

__all__ = ["refuse_misfits"]

from dbcache_export.errors import ExportError
from dbcache_export.spec import Graph, Plan, Tensor, Text


def refuse_misfits(plan: Plan) -> None:
    """Checks every port of every text graph.

    Raises:
        ExportError: A port has another dtype or shape than the engine expects: a fault of the family.
    """
    for graph, inputs in plan.text.graphs if plan.text else ():
        assert plan.text is not None
        template = graph.template
        expected = {
            port: plan.tensors[taken] if isinstance(taken, str) else _tokens(plan.text, taken[0])
            for port, taken in inputs.items()
        }
        _compare(graph, dict(template.inputs), expected)
        _compare(graph, dict(template.outputs), {name: plan.tensors[name] for name in template.outputs})
        names = {taken[0] for taken in inputs.values() if not isinstance(taken, str)}
        given = _axes([plan.tensors[name] for name in template.outputs])
        unknown = given - _axes([plan.tensors[taken] for taken in inputs.values() if isinstance(taken, str)])
        if graph.length is None and len(names) != 1 and unknown:
            raise _fault(graph, f"the length of {', '.join(sorted(unknown))} follows from nothing")
        if graph.length is not None and (names or not given):
            raise _fault(graph, f"a length of {graph.length} is stated, which follows from its inputs")


def _tokens(text: Text, name: str) -> Tensor:
    """What a tokenizer gives."""
    tokenizer = text.tokenizers[name]
    return Tensor("i64", ("batch", tokenizer.length if tokenizer.padding == "length" else name))


def _axes(tensors: list[Tensor]) -> set[str]:
    """Dynamic axes but for the batch."""
    return {axis for tensor in tensors for axis in tensor.shape if isinstance(axis, str)} - {"batch"}


def _compare(graph: Graph, found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name in sorted(found.keys() | expected.keys()):
        if found.get(name) != expected.get(name):
            raise _fault(graph, f"{name} is {found.get(name)}, the format says {expected.get(name)}")


def _fault(graph: Graph, what: str) -> ExportError:
    return ExportError(f"{graph.file}: {what}", "this is a fault of the exporter: report it with the model's name")
