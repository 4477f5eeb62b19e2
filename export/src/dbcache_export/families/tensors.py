"""The tensors inside a transformer that most families have, by the names that they have in every engine."""

from __future__ import annotations

__all__ = ["ROTARY", "STREAMS", "rotary", "streams", "tables"]

from collections.abc import Iterable

import torch

from dbcache_export.families.sizes import Shape
from dbcache_export.spec import Tensor

#: What flows from block to block. The picture or the video comes first.
STREAMS = ("hidden_states", "encoder_hidden_states")
ROTARY = ("rotary_cos", "rotary_sin")


def streams(width: int, text_width: int | None = None) -> dict[str, Shape]:
    """The stream of a picture or a video, and that of the text."""
    return dict(zip(STREAMS, (("batch", "image", width), ("batch", "text", text_width or width)), strict=True))


def tables(*shape: int | str) -> dict[str, Tensor]:
    """The cosines and sines of rotary positions, which stay float32."""
    return {name: Tensor("f32", shape) for name in ROTARY}


def rotary(pair: Iterable[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Cosines and sines by name."""
    return dict(zip(ROTARY, pair, strict=True))
