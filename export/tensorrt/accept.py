"""Whether NVIDIA's parser and builder take a graph: TensorRT-RTX builds engines on machines without a GPU.

What is built cannot run here, and TensorRT-RTX is not TensorRT: an accepted graph is well formed, strongly typed and
made of operators that TensorRT has, for every shape of its profile. Nothing is said about speed or results.
"""

from __future__ import annotations

__all__ = ["Accepted", "Profile", "Refused", "accept"]

import time
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
    seconds: float
    engine_bytes: int


class Refused(Exception):
    """The parser or the builder does not take a graph; the text says why."""


class _Log(trt.ILogger):
    """Keeps what the builder says of an error."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.errors: list[str] = []

    def log(self, severity: trt.ILogger.Severity, message: str) -> None:
        if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
            self.errors.append(message)


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
    return Accepted(network.num_layers, time.monotonic() - start, engine.nbytes)
