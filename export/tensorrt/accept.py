"""Whether NVIDIA's parser and builder take a graph: TensorRT-RTX builds engines on machines without a GPU.

What is built cannot run here, and TensorRT-RTX is not TensorRT: an accepted graph is well formed, strongly typed and
made of operators that TensorRT has, for every shape of its profile. Nothing is said about speed or results.
"""

from __future__ import annotations

__all__ = ["Accepted", "Profile", "Refused", "accept", "report"]

import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import tensorrt_rtx_bindings as trt

#: Smallest, usual and largest shape of an input.
Shapes = tuple[Sequence[int], Sequence[int], Sequence[int]]

#: By the name of the input.
Profile = Mapping[str, Shapes]


@dataclass(frozen=True)
class Accepted:
    """A graph for which an engine was built."""

    layers: int
    #: The types of what layers compute, the most frequent one first; without integers, and without stored weights.
    precision: tuple[str, ...]
    seconds: float
    engine_bytes: int
    #: What the engine asks of the device: activations and scratch memory at the largest shapes of the profile.
    activation_bytes: int
    #: The same for its weights.
    weight_bytes: int
    profile: Profile


#: What the columns of a report are called.
_HEAD = ("stage", "layers", "precision", "build, s", "engine, kB", "activations, kB", "weights, kB", "profile")


def report(stages: Mapping[str, Accepted]) -> str:
    """A Markdown table with a row for each stage."""
    rows = [_HEAD, ("---",) * len(_HEAD), *(_row(name, stage) for name, stage in stages.items())]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _row(name: str, stage: Accepted) -> tuple[str, ...]:
    numbers = (stage.engine_bytes, stage.activation_bytes, stage.weight_bytes)
    kilobytes = (f"{number / 1000:.1f}" for number in numbers)
    shapes = ", ".join(f"`{port}` {_extents(of)}" for port, of in stage.profile.items())
    return (name, str(stage.layers), ", ".join(stage.precision), f"{stage.seconds:.1f}", *kilobytes, shapes)


def _extents(shapes: Shapes) -> str:
    """Such as `1..2 x 16..64 (64) x 32`, with the usual extent in parentheses."""
    axes = zip(*shapes, strict=True)
    return " x ".join(str(least) if least == most else f"{least}..{most} ({usual})" for least, usual, most in axes)


class Refused(Exception):
    """The parser or the builder does not take a graph; the text says why."""


class _Log(trt.ILogger):
    """Keeps what the builder says of errors and of memory.

    An engine is asked for its memory after it is loaded, which needs a GPU. The builder says it while it builds.
    """

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.errors: list[str] = []
        self.memory: dict[str, int] = {}

    def log(self, severity: trt.ILogger.Severity, message: str) -> None:
        """The builder calls this."""
        if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
            self.errors.append(message)
        elif told := re.fullmatch(r"Total (Activation|Weights) Memory: (\d+) bytes", message):
            self.memory[told[1]] = int(told[2])


def _precision(network: trt.INetworkDefinition) -> tuple[str, ...]:
    layers = (network.get_layer(i) for i in range(network.num_layers))
    computing = (layer for layer in layers if layer.type != trt.LayerType.CONSTANT)
    types = Counter(layer.get_output_type(i).name for layer in computing for i in range(layer.num_outputs))
    return tuple(name.lower() for name, _ in types.most_common() if name in ("FLOAT", "HALF", "BF16"))


def accept(model: Path, profile: Profile) -> Accepted:
    """Parses a model with its external weights and builds an engine over a profile.

    Args:
        model: The graph; its weights lie in the same folder.
        profile: Shapes of every input that has a dynamic axis.

    Raises:
        Refused: With the texts of the parser or the builder.
    """
    log = _Log()
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(model)):
        raise Refused("; ".join(str(parser.get_error(i)) for i in range(parser.num_errors)))
    config = builder.create_builder_config()
    # Which GPU to build for has to be said where there is none; the answer is the same for the others.
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM89, 0)
    shapes = builder.create_optimization_profile()
    for name in (network.get_input(i).name for i in range(network.num_inputs)):
        if name in profile:
            shapes.set_shape(name, *map(tuple, profile[name]))
    config.add_optimization_profile(shapes)
    start = time.monotonic()
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise Refused("; ".join(log.errors) or "the builder gives no engine, and no reason")
    seconds = time.monotonic() - start
    memory = (log.memory["Activation"], log.memory["Weights"])
    return Accepted(network.num_layers, _precision(network), seconds, engine.nbytes, *memory, profile)
