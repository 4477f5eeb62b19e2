"""The uncut original of a family, watched at each block: what the check compares the graphs with."""

from __future__ import annotations

__all__ = ["Tensors", "Watch", "Watched", "keep", "original", "picture_first", "pretrained", "text_first"]

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from dbcache_export import checkpoint
from dbcache_export.families.tensors import STREAMS

Tensors = dict[str, Tensor]

#: Inputs of the engine to which diffusers gives other names.
_NAMES = {"latents": "hidden_states", "prompt_embeds": "encoder_hidden_states"}
#: Inputs of blocks that have these names in most originals, too.
_SAME = (*STREAMS, "temb")


def picture_first(result: Any) -> Tensors:
    """The streams that a block of the original gives: the picture or the video, and then the text if it gives any."""
    return {STREAMS[0]: result} if isinstance(result, Tensor) else dict(zip(STREAMS, result, strict=True))


def text_first(result: Any) -> Tensors:
    """The streams that a block of the original gives, the text before the picture."""
    return dict(zip(reversed(STREAMS), result, strict=True))


@dataclass(frozen=True)
class Watch:
    """How the tensors of a graph are found in the original.

    Attributes:
        others: From a block's arguments by name to those inputs of the block that are no argument as it is.
        made: From a block's result to its outputs.
        arguments: From the engine's inputs to those arguments of the model's `forward` that are no input as it is.
        packed: From the engine's inputs and the model's result to the engine's prediction, where they differ.
    """

    others: Callable[[Mapping[str, Any]], Tensors] = lambda _: {}
    made: Callable[[Any], Tensors] = picture_first
    arguments: Callable[[Mapping[str, Tensor]], dict[str, Any]] = lambda _: {}
    packed: Callable[[Mapping[str, Tensor], Any], Tensor] = lambda _, prediction: prediction


class Watched:
    """diffusers' own transformer, whole, in float32; a `spec.Reference`."""

    def __init__(self, model: nn.Module, blocks: Sequence[nn.Module], watch: Watch) -> None:
        """Watches `model`, which is in evaluation mode, at its `blocks`, given in the order in which they run."""
        self.model = model
        self.blocks = blocks
        self.watch = watch

    def run(self, inputs: Mapping[str, Tensor], on_block: Callable[[int, Tensors, Tensors], None]) -> Tensor:
        """See `spec.Reference`."""
        handles = [
            block.register_forward_hook(self._hook(index, on_block), with_kwargs=True)
            for index, block in enumerate(self.blocks)
        ]
        try:
            with torch.no_grad():
                result = self.model(**self._passed(inputs) | self.watch.arguments(inputs), return_dict=False)[0]
        finally:
            for handle in handles:
                handle.remove()
        return self.watch.packed(inputs, result)

    def _passed(self, inputs: Mapping[str, Tensor]) -> dict[str, Any]:
        """The inputs that the model takes, by its names."""
        known = inspect.signature(self.model.forward).parameters
        named = {_NAMES.get(name, name): value for name, value in inputs.items()}
        return {name: value for name, value in named.items() if name in known}

    def _hook(self, index: int, on_block: Callable[[int, Tensors, Tensors], None]) -> Callable[..., None]:
        def see(block: nn.Module, given: tuple[Any, ...], by_name: dict[str, Any], result: Any) -> None:
            taken = inspect.signature(block.forward).bind(*given, **by_name).arguments
            same = {name: taken[name] for name in _SAME if taken.get(name) is not None}
            # Of a stream that it leaves behind, a block gives nothing, or what it took.
            made = {
                name: value
                for name, value in self.watch.made(result).items()
                if value is not None and value is not taken.get(name)
            }
            on_block(index, same | self.watch.others(taken), made)

        return see


def keep(module: nn.Module, named: Callable[[Any], Tensors]) -> Tensors:
    """What `module` gave last, by tensor name, as soon as the original runs: for tensors that no block takes."""
    kept: Tensors = {}
    module.register_forward_hook(lambda _, __, result: kept.update(named(result)))
    return kept


def pretrained(model: type[Any], folder: Path) -> Any:
    """The model of diffusers in `folder`, in float32."""
    return model.from_pretrained(folder, torch_dtype=torch.float32).eval()


def original(model: type[Any], folder: Path) -> Any:
    """The same without the loader of diffusers, which needs another package for some models."""
    loaded = model.from_config(model.load_config(folder)).float().eval()
    state = {name: value for file in checkpoint.paths(folder) for name, value in load_file(file).items()}
    loaded.load_state_dict(state)
    return loaded
