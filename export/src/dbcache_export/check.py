"""Compares an engine directory with the original model: every graph alone, and the chain of all of them.

The graphs are loaded as the engine loads them: from memory, over the weights that the manifest names. ONNX Runtime
computes no bfloat16 on a CPU; such graphs are checked in float32, which shows wrong graphs, not bfloat16's own error.
"""

from __future__ import annotations

__all__ = ["Report", "bytes_needed", "check", "example_inputs"]

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch

from dbcache_export.errors import ExportError
from dbcache_export.spec import DType, Graph, LowNoise, Plan
from dbcache_export.template import output_port
from dbcache_export.widen import widen

Tensors = dict[str, torch.Tensor]

#: Largest error of one graph on PyTorch's own inputs, relative to the largest value of the output.
#: f32: sums in another order. f16: 11 bits per value and per product; a block was measured at 1e-3.
#: bf16: checked in float32, but constants have kept 8 bits: the root of attention's scale, the 1.702 of CLIP's GELU.
#: A wrong graph is off by about 1.
GRAPH_TOLERANCE: Mapping[DType, float] = {"f32": 1e-5, "f16": 1e-2, "bf16": 1e-2}
#: The same for embed. With PyTorch's frequencies 1e-6 was measured; Mochi's 1.4e-5 comes from angles that
#: are sums of positions times parameters, in another order.
EMBED_TOLERANCE: Mapping[DType, float] = {"f32": 5e-5, "f16": 1e-2, "bf16": 1e-2}
#: The prediction after all blocks, each on the outputs of the one before, starting with embed's error.
#: Measured over 57 blocks: f32 7e-6, f16 1.5e-2, bf16 4e-2.
CHAIN_TOLERANCE: Mapping[DType, float] = {"f32": 1e-4, "f16": 5e-2, "bf16": 1e-1}
#: Text encoders and decoder: as deep as a chain of blocks.
OTHER_TOLERANCE: Mapping[DType, float] = {"f32": 1e-4, "f16": 2e-2, "bf16": 2e-2}


@dataclass
class Report:
    """The largest error of each kind of graph, and how many comparisons there were."""

    errors: dict[str, float] = field(default_factory=dict)
    comparisons: int = 0

    def add(self, what: str, file: str, tolerance: float, got: Tensors, expected: Tensors) -> None:
        """Compares tensors by name.

        Raises:
            ExportError: One differs by more than `tolerance`.
        """
        for name, want in expected.items():
            scale = float(want.abs().max()) or 1.0
            error = float((got[name].float() - want.float()).abs().max()) / scale
            self.errors[what] = max(error, self.errors.get(what, 0.0))
            self.comparisons += 1
            if not error <= tolerance:  # also refuses NaN
                raise ExportError(
                    f"{file}: {name} differs from PyTorch by {error:.1e} of its largest value, not {tolerance:.0e}",
                    "report this with the model's name; --no-check writes the directory anyway",
                )

    def __str__(self) -> str:
        """For example `double 2.4e-07, …`."""
        return ", ".join(f"{what} {error:.1e}" for what, error in self.errors.items())


def bytes_needed(plan: Plan) -> int:
    """Memory for the check: PyTorch's float32 weights, the runtime's, and as much again while loading."""
    return 3 * 4 * sum(checkpoint.values() for checkpoint in plan.checkpoints.values())


def check(engine: Path, plan: Plan, compute: DType) -> Report:
    """Runs every graph at two sizes and two batch sizes (where the model has more than one size).

    Raises:
        ExportError: A graph does not load or differs from PyTorch by more than its tolerance.
    """
    sessions = _Sessions(engine)
    report = Report()
    for graph in plan.graphs():
        for inputs, expected in graph.cases() if graph.cases else ():
            got = sessions.run(graph, inputs)
            report.add(graph.template.name, graph.file, OTHER_TOLERANCE[compute], got, expected)
    for transformer in plan.transformers():
        _check_transformer(plan, transformer, compute, sessions, report)
    return report


def _check_transformer(plan: Plan, parts: Plan | LowNoise, compute: DType, sessions: _Sessions, report: Report) -> None:
    """Blocks and final on the tensors that PyTorch saw there; then the chain on its own."""
    reference = parts.reference()
    tolerance = GRAPH_TOLERANCE[compute]
    last = len(parts.blocks) - 1
    for case in example_inputs(plan):
        embedded = sessions.run(parts.embed, case)
        final_inputs: Tensors = {}

        def on_block(
            index: int,
            inputs: Tensors,
            expected: Tensors,
            embedded: Tensors = embedded,
            outside: Tensors = case,
            final: Tensors = final_inputs,
        ) -> None:
            block = parts.blocks[index]
            if index == 0:
                report.add("embed", parts.embed.file, EMBED_TOLERANCE[compute], embedded, inputs)
            report.add(block.kind, block.graph.file, tolerance, sessions.run(block.graph, inputs), expected)
            if index == last:
                final.update(outside | inputs | expected)

        prediction = reference.run(case, on_block)
        expected = dict.fromkeys(parts.final.template.outputs, prediction)
        report.add("final", parts.final.file, tolerance, sessions.run(parts.final, final_inputs), expected)
        flowing = case | embedded
        for block in parts.blocks:
            flowing |= sessions.run(block.graph, flowing)
        report.add("chain", parts.final.file, CHAIN_TOLERANCE[compute], sessions.run(parts.final, flowing), expected)


def example_inputs(plan: Plan) -> Iterator[Tensors]:
    """Random inputs of the transformer: two picture sizes (the smallest and an oblong one), batches of one and two."""
    cell = plan.latents["downscale"] * plan.latents["patch"]
    low, high, step = (plan.size[name] // cell for name in ("min", "max", "multiple_of"))
    text = plan.dimensions.get("text", {"min": 1, "max": 1})
    random = torch.Generator().manual_seed(0)
    longer = low + (3 if plan.oblong else 1) * step
    sizes = {(low, low): 7, (min(low + step, high), min(longer, high)): max(13, 2 * text["min"])}
    for (rows, columns), words in sizes.items():
        for batch in (1, 2):
            frames = 1 + batch + words % 2 if plan.video else 1
            lengths = {
                "batch": batch,
                "image": frames * rows * columns,
                "text": min(max(words, text["min"]), text["max"]),
                "latent_frames": frames,
                "latent_height": rows * plan.latents["patch"],
                "latent_width": columns * plan.latents["patch"],
            }
            yield {
                name: _input(
                    plan, name, [lengths.get(str(axis), axis) for axis in plan.tensors[name].shape], columns, random
                )
                for name in plan.inputs
            }


def _input(plan: Plan, name: str, shape: list[Any], columns: int, random: torch.Generator) -> torch.Tensor:
    """A plausible value for an input, see the format's `inputs`."""
    if name in plan.examples:
        return plan.examples[name](shape, random)
    source = plan.inputs[name]["from"]
    if source == "grid":
        token = torch.arange(shape[0])
        return torch.stack([torch.zeros_like(token), token // columns, token % columns], 1).float()
    if source == "zeros":
        return torch.zeros(shape)
    if source == "sigma":
        return torch.rand(shape, generator=random)
    if source == "timestep":
        return 1000 * torch.rand(shape, generator=random)
    if source == "fps":
        return torch.full(shape, 12.0)
    if source == "size":
        return torch.randint(1, 1 + plan.size["max"], shape, generator=random).float()
    if source == "guidance":
        return 1 + 4 * torch.rand(shape, generator=random)
    return torch.randn(shape, generator=random)


class _Sessions:
    """One session per graph, loaded when first used."""

    def __init__(self, engine: Path) -> None:
        self.engine = engine
        weights = json.loads((engine / "manifest.json").read_text("utf-8"))["weights"]
        self.weights: dict[str, dict[str, Any]] = {weight["name"]: weight for weight in weights}
        self.loaded: dict[str, ort.InferenceSession] = {}

    def run(self, graph: Graph, tensors: Mapping[str, torch.Tensor]) -> Tensors:
        """Takes a graph's inputs from `tensors`, converted to the graph's types; gives its outputs by tensor name."""
        session = self.loaded.get(graph.file) or self.load(graph.file)
        feeds = {}
        for name, tensor in graph.template.inputs.items():
            kind = {"f32": np.float32, "f16": np.float16, "bf16": np.float32, "i64": np.int64}[tensor.dtype]
            feeds[name] = tensors[name].numpy().astype(kind)
        ports = [output_port(graph.template, name) for name in graph.template.outputs]
        results = session.run(ports, feeds)
        return {name: torch.from_numpy(value) for name, value in zip(graph.template.outputs, results, strict=True)}

    def load(self, file: str) -> ort.InferenceSession:
        """Loads a graph from memory with its weights' real file names."""
        try:
            session = self._open(file)
        except Exception as error:  # the runtime has no base class for its errors
            reason = str(error).partition("\n")[0]
            raise ExportError(
                f"{file}: ONNX Runtime refuses it ({reason})", "report this with the model's name"
            ) from error
        self.loaded[file] = session
        return session

    def _open(self, file: str) -> ort.InferenceSession:
        model = onnx.load(self.engine / file, load_external_data=False)
        folder = str(self.engine)
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    weight = self.weights[entry.value]
                    folder = weight["folder"] or folder
                    entry.value = weight["file"]
        widen(model)
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = torch.get_num_threads()
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
        return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
