"""What a model family says about a model: tensors, graphs and settings. Data only."""

from __future__ import annotations

__all__ = [
    "DTYPES",
    "Block",
    "Case",
    "DType",
    "Graph",
    "LowNoise",
    "Options",
    "Plan",
    "Reference",
    "Template",
    "Tensor",
    "Text",
    "TextInput",
    "Tokenizer",
]

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from onnx import TensorProto

from dbcache_export.checkpoint import Checkpoint
from dbcache_export.prompts import Rule

DType = Literal["f32", "f16", "bf16", "i64"]

#: Name in the manifest: (PyTorch's type, ONNX's type).
DTYPES: Mapping[DType, tuple[torch.dtype, int]] = {
    "f32": (torch.float32, TensorProto.FLOAT),
    "f16": (torch.float16, TensorProto.FLOAT16),
    "bf16": (torch.bfloat16, TensorProto.BFLOAT16),
    "i64": (torch.int64, TensorProto.INT64),
}

#: Inputs and expected outputs of one graph, by tensor name.
Case = tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]


@dataclass(frozen=True)
class Options:
    """What the command line asks for."""

    opset: int = 20
    compute: DType = "f32"
    pack: bool = False
    check: bool | None = None  # None: where the weights fit into memory
    content_hash: bool = True
    overwrite: bool = False
    name: str | None = None
    license: str = "unknown"
    attribution: str = ""
    size: tuple[int, int] | None = None  # width, height
    frames: int | None = None
    downscale: int | None = None
    lora: tuple[tuple[Path, float], ...] = ()
    variant: str | None = None


@dataclass(frozen=True)
class Tensor:
    """A tensor at a graph's boundary; an axis is a length or the name of a dimension."""

    dtype: DType
    shape: tuple[int | str, ...]


@dataclass(frozen=True, eq=False)
class Template:
    """A module to be traced once and then used by one or more graphs.

    Attributes:
        name: For messages.
        module: Takes `inputs` positionally, returns `outputs` (one tensor or a tuple of them). Its parameters are fake.
        inputs: By name, in the order of the module's arguments.
        outputs: By name, in the order of the module's results.
        lengths: Of dynamic axes while tracing, where the module relates them to each other: tokens to frames and cells.
    """

    name: str
    module: torch.nn.Module
    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]
    lengths: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Graph:
    """One ONNX file: a template over some parameters of a component.

    Attributes:
        file: Name in the engine directory.
        template: What it computes.
        component: Key into `Plan.checkpoints`; None for a graph without parameters.
        stored_name: From the name of a parameter in the template's module to its name in the checkpoint.
        cases: For the check: inputs with the outputs that the original model gives; None for parts of the transformer.
        length: Of a text graph: the tokens that it gives, where they do not follow from what it takes.
    """

    file: str
    template: Template
    component: str | None
    stored_name: Callable[[str], str] = str
    cases: Callable[[], Iterable[Case]] | None = None
    length: int | None = None


@dataclass(frozen=True)
class Block:
    """One transformer block.

    Attributes:
        kind: Blocks of one kind differ only in their parameters.
        graph: What it computes.
        joins_streams: Whether the original model joins all streams to one list of tokens before it.
        group: The model's own list of blocks that holds it, such as `transformer_blocks`; default: `kind`.
        joined: Whether the original hands all streams through that list as one tensor.
    """

    kind: str
    graph: Graph
    joins_streams: bool = False
    group: str | None = None
    joined: bool = False


@dataclass(frozen=True)
class Tokenizer:
    """A Hugging Face tokenizer file and how its ids are cut and padded.

    Attributes:
        length: The most tokens that are read, those of prefix and suffix among them.
        prefix: Text before the prompt, such as a chat template's beginning.
        suffix: Text after it.
        drop: Tokens at the start whose outputs the graphs leave out.
        padding: Up to `length`, or to the longest prompt of a request. With `longest` the graph's token axis has
            the tokenizer's name.
        multiple_of: With `longest`: the tokens that graphs give are a multiple of so many.
    """

    json: str
    length: int
    pad_id: int
    unknown_id: int | None = None
    prefix: str = ""
    suffix: str = ""
    drop: int = 0
    padding: Literal["length", "longest"] = "length"
    pad_side: Literal["left", "right"] = "right"
    multiple_of: int = 1


#: What a text graph takes: a tokenizer's name and `ids` or `mask`; or the name of an earlier text graph's output.
TextInput = tuple[str, str] | str


@dataclass(frozen=True)
class Text:
    """From a prompt to conditioning.

    Attributes:
        graphs: Pairs of a graph and what each of its inputs takes.
        clean: What the engine does with a prompt before it is tokenized, see `prompts`.
    """

    tokenizers: Mapping[str, Tokenizer]
    graphs: Sequence[tuple[Graph, Mapping[str, TextInput]]]
    unconditional: str
    clean: Sequence[Rule] = ()


class Reference(Protocol):
    """The original model in PyTorch, float32."""

    def run(
        self,
        inputs: Mapping[str, torch.Tensor],
        on_block: Callable[[int, dict[str, torch.Tensor], dict[str, torch.Tensor]], None],
    ) -> torch.Tensor:
        """The prediction; `on_block` gets each block's index, inputs and outputs by tensor name, in order."""
        ...


@dataclass(frozen=True)
class LowNoise:
    """A second transformer of the same form as the first: the same templates over parameters of its own.

    Attributes:
        below: It runs the steps whose timestep is below this.
        guidance: Its default scale; None for that of the first.
        reference: Loads the original.
    """

    below: float
    guidance: float | None
    embed: Graph
    blocks: Sequence[Block]
    final: Graph
    reference: Callable[[], Reference]


@dataclass(frozen=True)
class Plan:
    """Everything that an engine directory says about a model, before any tracing.

    The fields have the names and meanings of the manifest, except:

    Attributes:
        checkpoints: Component name: its safetensors files.
        ignored: Component name: prefixes of parameters that the engine has no use for, such as a VAE's encoder.
        reference: Loads the original transformer.
        examples: For the check: values of inputs that are not any numbers, from a shape and a generator.
        oblong: Whether the original can make pictures that are no squares; otherwise the check takes squares.
    """

    name: str
    description: str
    dimensions: Mapping[str, Mapping[str, Any]]
    tensors: Mapping[str, Tensor]
    inputs: Mapping[str, Mapping[str, Any]]
    streams: Sequence[str]
    embed: Graph
    blocks: Sequence[Block]
    final: Graph
    prediction: Mapping[str, Any]
    latents: Mapping[str, Any]
    size: Mapping[str, Any]
    scheduler: Mapping[str, Any]
    guidance: Mapping[str, Any]
    steps: int
    checkpoints: Mapping[str, Checkpoint]
    reference: Callable[[], Reference]
    ignored: Mapping[str, Sequence[str]] = field(default_factory=dict)
    text: Text | None = None
    decode: Graph | None = None
    documents: Sequence[Path] = ()
    examples: Mapping[str, Callable[[Sequence[int], torch.Generator], torch.Tensor]] = field(default_factory=dict)
    oblong: bool = True
    video: Mapping[str, Any] | None = None
    low_noise: LowNoise | None = None

    def lists(self) -> list[dict[str, Any]]:
        """The model's own lists of blocks, in the order of the blocks."""
        lists: list[dict[str, Any]] = []
        for block in self.blocks:
            name = block.group or block.kind
            if not lists or lists[-1]["name"] != name:
                lists.append({"name": name, "blocks": 0} | ({"joined": True} if block.joined else {}))
            lists[-1]["blocks"] += 1
        return lists

    def transformers(self) -> list[Plan | LowNoise]:
        """The parts of each transformer, in the order in which they run."""
        return [self, self.low_noise] if self.low_noise else [self]

    def graphs(self) -> list[Graph]:
        """All graphs, in the order in which they run."""
        text = [graph for graph, _ in self.text.graphs] if self.text else []
        decode = [self.decode] if self.decode else []
        parts = [[one.embed, *(block.graph for block in one.blocks), one.final] for one in self.transformers()]
        return [*text, *(graph for part in parts for graph in part), *decode]
