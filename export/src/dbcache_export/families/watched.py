"""The uncut original of a family, watched at each block: what the check compares the graphs with."""

from __future__ import annotations

__all__ = ["Watched"]

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Tensors = dict[str, Tensor]


class Watched:
    """diffusers' own transformer, whole, in float32; a `spec.Reference`."""

    def __init__(
        self,
        model: nn.Module,
        blocks: Sequence[nn.Module],
        arguments: Callable[[Mapping[str, Tensor]], dict[str, Any]],
        named: Callable[[dict[str, Any], Any], tuple[Tensors, Tensors]],
        packed: Callable[[Mapping[str, Tensor], Any], Tensor] = lambda _, prediction: prediction,
    ) -> None:
        """Watches `model`.

        Args:
            model: In evaluation mode.
            blocks: Its blocks, in the order in which they run.
            arguments: From the engine's inputs to the arguments of the model's `forward`.
            named: From a block's arguments by name, and its result, to the block's inputs and outputs by tensor name.
            packed: From the engine's inputs and the model's result to the engine's prediction, where they differ.
        """
        self.model = model
        self.blocks = blocks
        self.arguments = arguments
        self.named = named
        self.packed = packed

    def run(self, inputs: Mapping[str, Tensor], on_block: Callable[[int, Tensors, Tensors], None]) -> Tensor:
        """See `spec.Reference`."""
        handles = [
            block.register_forward_hook(self._hook(index, on_block), with_kwargs=True)
            for index, block in enumerate(self.blocks)
        ]
        try:
            with torch.no_grad():
                result = self.model(**self.arguments(inputs), return_dict=False)[0]
        finally:
            for handle in handles:
                handle.remove()
        return self.packed(inputs, result)

    def _hook(self, index: int, on_block: Callable[[int, Tensors, Tensors], None]) -> Callable[..., None]:
        def see(block: nn.Module, given: tuple[Any, ...], by_name: dict[str, Any], result: Any) -> None:
            bound = inspect.signature(block.forward).bind(*given, **by_name)
            on_block(index, *self.named(dict(bound.arguments), result))

        return see
