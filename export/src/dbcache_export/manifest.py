"""manifest.json, as `models/README.md` describes it."""

from __future__ import annotations

__all__ = ["Written", "manifest", "write_file"]

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dbcache_export import __version__
from dbcache_export.lora import provenance
from dbcache_export.spec import Graph, Options, Plan

#: Packages whose versions decide what the graphs look like.
_TOOLS = ("torch", "diffusers", "transformers", "onnx", "onnxscript", "onnx-ir")

#: Characters of a line of the manifest.
_LINE = 160


@dataclass(frozen=True)
class Written:
    """A file in the engine directory."""

    file: str
    bytes: int
    sha256: str


def write_file(engine: Path, name: str, content: bytes) -> Written:
    """Writes a file and says what the manifest records of it."""
    (engine / name).write_bytes(content)
    return Written(name, len(content), hashlib.sha256(content).hexdigest())


def manifest(
    plan: Plan,
    options: Options,
    graphs: Mapping[Graph, Written],
    tokenizers: Mapping[str, Written],
    weights: Sequence[Mapping[str, Any]],
) -> bytes:
    """The manifest of an engine directory whose files are written."""

    def ports(graph: Graph) -> dict[str, list[str]]:
        return {"inputs": list(graph.template.inputs), "outputs": list(graph.template.outputs)}

    def described(graph: Graph) -> dict[str, Any]:
        return asdict(graphs[graph]) | ports(graph)

    fields = {
        "format_version": 2,
        "name": plan.name,
        "description": plan.description,
        "license": {"name": options.license, "attribution": options.attribution},
        "exported_with": {"dbcache-export": __version__}
        | {tool: version(tool) for tool in _TOOLS}
        | provenance(options.lora),
        "opset": options.opset,
        "compute_dtype": options.compute,
        "dimensions": plan.dimensions,
        "tensors": {name: {"dtype": t.dtype, "shape": list(t.shape)} for name, t in plan.tensors.items()},
        "inputs": plan.inputs,
        "streams": plan.streams,
        "embed": described(plan.embed),
        "block_kinds": {
            block.kind: ports(block.graph) | {"joins_streams": block.joins_streams} for block in plan.blocks
        },
        "blocks": [{"kind": block.kind} | asdict(graphs[block.graph]) for block in plan.blocks],
        "lists": plan.lists(),
        "final": described(plan.final),
        **_low_noise(plan, graphs),
        "prediction": plan.prediction,
        "latents": plan.latents,
        "video": plan.video,
        "size": plan.size,
        "scheduler": plan.scheduler,
        "guidance": plan.guidance,
        "text": _text(plan, graphs, tokenizers),
        "decode": described(plan.decode) if plan.decode else None,
        "weights": weights,
        "defaults": {"steps": plan.steps},
    }
    return (_render(fields) + "\n").encode()


def _low_noise(plan: Plan, graphs: Mapping[Graph, Written]) -> dict[str, Any]:
    """The field of a model with two transformers."""
    if plan.low_noise is None:
        return {}
    other = plan.low_noise
    files = {
        "embed": asdict(graphs[other.embed]),
        "blocks": [asdict(graphs[block.graph]) for block in other.blocks],
        "final": asdict(graphs[other.final]),
    }
    return {"low_noise": {"below": other.below, "guidance": other.guidance} | files}


def _text(plan: Plan, graphs: Mapping[Graph, Written], tokenizers: Mapping[str, Written]) -> dict[str, Any] | None:
    if plan.text is None:
        return None
    return {
        "tokenizers": {
            name: asdict(tokenizers[name]) | {key: value for key, value in asdict(tokenizer).items() if key != "json"}
            for name, tokenizer in plan.text.tokenizers.items()
        },
        "graphs": [
            asdict(graphs[graph])
            | {
                "inputs": {
                    port: {"tensor": taken} if isinstance(taken, str) else {"tokenizer": taken[0], "field": taken[1]}
                    for port, taken in inputs.items()
                },
                "outputs": list(graph.template.outputs),
            }
            | ({"length": graph.length} if graph.length else {})
            for graph, inputs in plan.text.graphs
        ],
        "unconditional": plan.text.unconditional,
    } | ({"clean": list(plan.text.clean)} if plan.text.clean else {})


def _render(value: Any, indent: str = "") -> str:
    """JSON for people: what fits into a line and is not the whole stays in one."""
    line = json.dumps(value, ensure_ascii=False)
    if not isinstance(value, (dict, list, tuple)) or not value or (indent and len(line) <= _LINE - len(indent)):
        return line
    inner = indent + " "
    if isinstance(value, dict):
        items = [f"{json.dumps(key)}: {_render(item, inner)}" for key, item in value.items()]
        return "{\n" + ",\n".join(inner + item for item in items) + f"\n{indent}}}"
    items = [_render(item, inner) for item in value]
    return "[\n" + ",\n".join(inner + item for item in items) + f"\n{indent}]"
