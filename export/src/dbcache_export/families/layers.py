"""The modules into which families cut a model: layers and blocks of the original under their own names."""

from __future__ import annotations

__all__ = ["Block", "Layers", "Modulated", "PlainAttention", "Projection", "split_heads"]

from collections.abc import Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dbcache_export.families.rotary import mix, rotate


class Layers(nn.Module):
    """Some layers of a model, and what a `forward` over them needs to know."""

    #: Layers and parameters by their place in the original, and so in the checkpoint; here the last word is the name.
    layers: Sequence[str] = ()

    def __init__(self, model: Any, dtype: torch.dtype) -> None:
        """Takes the layers from `model`; `dtype` is that of the blocks."""
        super().__init__()
        for place in self.layers:
            setattr(self, place.rpartition(".")[2], attrgetter(place)(model))
        self.config = model.config
        self.dtype = dtype
        self.prepare(model)

    def prepare(self, model: Any) -> None:
        """Keeps what else `forward` needs to know of `model`."""

    def stored_name(self, name: str) -> str:
        """From a parameter's name in this module to its name in the checkpoint."""
        first, _, rest = name.partition(".")
        places = {place.rpartition(".")[2]: place for place in self.layers}
        return ".".join([places[first], *([rest] if rest else [])])

    if TYPE_CHECKING:  # the layers are diffusers', of which nothing is known

        def __getattr__(self, name: str) -> Any:
            """See `layers`."""


class Modulated(Layers):
    """The last layers of many models: a norm that `temb` modulates, and a projection."""

    layers = ("norm_out", "proj_out")

    def projected(self, hidden_states: Tensor, temb: Tensor) -> Tensor:
        """[batch, image, width] to [batch, image, patch features]."""
        result: Tensor = self.proj_out(self.norm_out(hidden_states, temb))
        return result


class Projection(Modulated):
    """The same where the engine takes the features as they are."""

    def forward(self, hidden_states: Tensor, temb: Tensor) -> Tensor:
        """[batch, image, width] to [batch, image, patch features], float32."""
        return self.projected(hidden_states, temb).float()


class Block(nn.Module):
    """One block of the original."""

    def __init__(self, block: Any) -> None:
        """Wraps it."""
        super().__init__()
        self.block = block


class PlainAttention:
    """The processor of an Attention over one list of tokens, or of one that looks at another list.

    A mask is the same for all heads, so nothing is repeated for them, and pairs of features are turned without writing
    into slices.
    """

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """The mask is added to the scores, [batch, 1, 1 or queries, keys]; norms are those over all heads."""
        seen = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query = split_heads(attn, _normed(attn.norm_q, attn.to_q(hidden_states)))
        key = split_heads(attn, _normed(attn.norm_k, attn.to_k(seen)))
        value = split_heads(attn, attn.to_v(seen))
        if rotary_emb is not None:
            query, key = rotate(query, *rotary_emb), rotate(key, *rotary_emb)
        result: Tensor = attn.to_out[0](mix(query, key, value, attention_mask))
        return result


def _normed(norm: nn.Module | None, states: Tensor) -> Tensor:
    return states if norm is None else norm(states)


def split_heads(attention: Any, states: Tensor) -> Tensor:
    """[batch, tokens, width] to [batch, tokens, heads, head width]."""
    return states.unflatten(-1, (attention.heads, -1))
