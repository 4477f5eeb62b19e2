"""The uncut original of a family, watched at each block: what the check compares the graphs with."""

from __future__ import annotations

__all__ = ["Tensors", "Watch", "Watched", "original", "pretrained"]

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from dbcache_export import checkpoint

Tensors = dict[str, Tensor]


#: Inputs of the engine to which diffusers gives other names.
_NAMES = {"latents": "hidden_states", "prompt_embeds": "encoder_hidden_states"}


@dataclass(frozen=True)
class Watch:
    """How the tensors of a graph are found in the original.

    Attributes:
        named: From a block's arguments by name, and its result, to the block's inputs and outputs by tensor name.
        arguments: From the engine's inputs to those arguments of the model's `forward` that are no input as it is.
        packed: From the engine's inputs and the model's result to the engine's prediction, where they differ.
    """

    named: Callable[[dict[str, Any], Any], tuple[Tensors, Tensors]]
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
            bound = inspect.signature(block.forward).bind(*given, **by_name)
            on_block(index, *self.watch.named(dict(bound.arguments), result))

        return see


def pretrained(model: type[Any], folder: Path) -> Any:
    """The model of diffusers in `folder`, in float32."""
    return model.from_pretrained(folder, torch_dtype=torch.float32).eval()


def original(model: type[Any], folder: Path) -> Any:
    """The same without the loader of diffusers, which needs another package for some models."""
    loaded = model.from_config(model.load_config(folder)).float().eval()
    state = {name: value for file in checkpoint.paths(folder) for name, value in load_file(file).items()}
    loaded.load_state_dict(state)
    return loaded
