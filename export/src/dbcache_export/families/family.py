"""What a family of models is: the record that each file of a family fills in, and what its functions take and give."""

from __future__ import annotations

__all__ = ["GRAPHS", "Cut", "Family", "Kind", "Sampling", "Second", "Source"]

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from dbcache_export.families.inputs import Input
from dbcache_export.families.layers import Layers, Projection
from dbcache_export.families.sizes import Picture, Shape, Video
from dbcache_export.families.tensors import STREAMS
from dbcache_export.families.texts import Texts
from dbcache_export.families.watched import Watch
from dbcache_export.spec import DTYPES, Options, Tensor

#: What the tests compare of each transformer.
GRAPHS = "every graph and the chain of all blocks, two sizes, batches of 1 and 2"


@dataclass(frozen=True)
class Source:
    """What a plan is made from.

    Attributes:
        folder: The folder of the pipeline, or of the transformer alone.
        transformer: The folder of the transformer.
        config: The arguments of the transformer's class, complete.
        options: What the command line asks for.
        fake: The mode in which modules have parameters without values.
    """

    folder: Path
    transformer: Path
    config: Mapping[str, Any]
    options: Options
    fake: FakeTensorMode

    @property
    def width(self) -> int:
        """The width of the picture's or the video's stream: that of all heads together."""
        return int(self.config["num_attention_heads"] * self.config["attention_head_dim"])

    @property
    def dtype(self) -> torch.dtype:
        """The type in which the blocks compute."""
        return DTYPES[self.options.compute][0]


@dataclass(frozen=True, eq=False)
class Kind:
    """Blocks that differ only in their parameters.

    Attributes:
        name: The name of the kind in the manifest.
        module: It holds the original's block as `block`.
        gives: The names of its outputs, if they are not all streams.
        joins_streams: As in `spec.Block`.
        joined: As in `spec.Block`.
    """

    name: str
    module: nn.Module
    gives: Sequence[str] | None = None
    joins_streams: bool = False
    joined: bool = False


@dataclass(frozen=True)
class Cut:
    """What a model's configuration says of its transformer, and its blocks.

    Attributes:
        description: The architecture in a line, without the number of parameters.
        sizes: The sizes of its pictures or videos.
        inputs: What the embed graph takes, by name, without the latents.
        inside: What the embed graph makes, by name: a shape in the compute type, or a tensor of another type.
        lists: The kind of each block in the order in which they run, by the name of the list that the original has.
        streams: What each block takes and gives.
        embedded: The order in which the embed graph gives what it makes, if it is not that of `inside`.
        text: The shortest and the longest text, in tokens; None where the text has no axis of its own.
        ignored: Prefixes of parameters that the engine has no use for.
        oblong: Whether the original can make pictures that are no squares; otherwise the check takes squares.
    """

    description: str
    sizes: Picture | Video
    inputs: Mapping[str, Input]
    inside: Mapping[str, Shape | Tensor]
    lists: Mapping[str, Sequence[Kind]]
    streams: Sequence[str] = STREAMS
    text: tuple[int, int] | None = None
    embedded: Sequence[str] | None = None
    ignored: Sequence[str] = ()
    oblong: bool = True


@dataclass(frozen=True)
class Sampling:
    """The manifest's `guidance` and default number of steps."""

    guidance: Mapping[str, Any]
    steps: int


@dataclass(frozen=True)
class Second:
    """A second transformer: its folder, the timestep below which it runs the steps, and its default scale."""

    folder: Path
    below: float
    guidance: float


@dataclass(frozen=True)
class Family:
    """All that makes a family; `pipeline.plan` turns it into the plan of a model.

    The `forward` of each of its modules names the tensors that it takes.

    Attributes:
        title: The name that users know.
        model: The class of diffusers.
        pipelines: The pipelines of diffusers that make pictures or videos from words with it, as the engine does. The
            others that share a transformer's class take pictures, edit, or are steered by a second model.
        fixed: Gives, for the class's arguments, those of which the exporter understands only these values.
        embed: The layers before the blocks. They make all that the blocks and `final` take.
        cut: Takes the original, without weights and with few blocks, and says the rest of what its transformer is.
        watch: Takes the original with its weights, and says where the check finds the tensors of the graphs in it.
        calls: How the pipeline calls its scheduler: the key into `pipeline_calls.CALLS`.
        sampling: The guidance and the steps of the pipeline.
        final: The layers behind the blocks. They make the prediction.
        few: The arguments of the class that make the original short; one block of each kind is enough.
        float32: Parameters that have one of these words in their name stay float32 in models of 16 bits.
        texts: Makes the text encoders of a pipeline from the transformer's tensors; None for a folder without any.
        published: The scheduler with which the model was published. It counts for a folder without one.
        needs_scheduler: Whether only the scheduler of the pipeline says what the model predicts.
        second: Makes the second transformer of a pipeline that has one, from the scheduler's fields in the manifest.
        checked: What the tests compare with diffusers and transformers.
    """

    title: str
    model: type[Any]
    pipelines: Sequence[str]
    fixed: Callable[[Mapping[str, Any]], Mapping[str, Sequence[Any]]]
    embed: type[Layers]
    cut: Callable[[Any, Source], Cut]
    watch: Callable[[Any], Watch]
    calls: str
    sampling: Callable[[Source], Sampling]
    final: type[Layers] = Projection
    few: Mapping[str, int] = field(default_factory=lambda: {"num_layers": 1})
    float32: Sequence[str] = ()
    texts: Callable[[Source, Mapping[str, Tensor]], Texts | None] = lambda *_: None
    published: Mapping[str, Any] | None = None
    needs_scheduler: bool = False
    second: Callable[[Source, Mapping[str, Any]], Second | None] = lambda *_: None
    checked: str = GRAPHS + "; text encoders; decoder"

    @property
    def name(self) -> str:
        """The class's name, by which a model is known."""
        return self.model.__name__
