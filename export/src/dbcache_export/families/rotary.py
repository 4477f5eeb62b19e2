"""Rotary embeddings in real arithmetic, for models whose original uses complex numbers, which ONNX does not have."""

from __future__ import annotations

__all__ = ["MASKED", "angles", "attend", "mix", "rotate", "tables"]

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

#: Added to the scores of padding: its weight is exactly 0, and float16 can hold it.
MASKED = -30000.0


def angles(position: Tensor, width: int, theta: float, dtype: torch.dtype) -> Tensor:
    """Position · frequency, [..., tokens] to [..., tokens, width / 2]; the product is rounded to `dtype`."""
    steps = torch.arange(0, width, 2, dtype=dtype) / width
    return position.to(dtype)[..., None] * (1.0 / theta**steps)


def tables(angle: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines of [..., tokens, width / 2], each twice in a row: [..., tokens, width], float32."""
    twice = angle[..., None].expand(*angle.shape, 2).flatten(-2)
    return twice.cos().float(), twice.sin().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns each pair of neighbours of [batch, tokens, heads, width] by its angle; computes in float32."""
    real, imaginary = x.unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack((-imaginary, real), -1).flatten(-2)
    return (x.float() * cos + turned.float() * sin).to(x.dtype)


def attend(attention: Any, x: Tensor, cos: Tensor, sin: Tensor, bias: Tensor | None) -> Tensor:
    """Self-attention with norms of queries and keys, before the output projection.

    Args:
        attention: diffusers' Attention: `heads`, `to_q`, `to_k`, `to_v`, `norm_q`, `norm_k`.
        x: [batch, tokens, width].
        cos: [tokens, 1, head width], or with the batch before it; so is `sin`.
        sin: See `cos`.
        bias: Added to the scores, [batch, 1, 1, tokens], or None.
    """
    query, key, value = (
        layer(x).unflatten(-1, (attention.heads, -1)) for layer in (attention.to_q, attention.to_k, attention.to_v)
    )
    query, key = attention.norm_q(query), attention.norm_k(key)
    return mix(rotate(query, cos, sin), rotate(key, cos, sin), value, bias)


def mix(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    """Attention over [batch, tokens, heads, width]; gives [batch, tokens, heads · width]."""
    query, key, value = (each.transpose(1, 2) for each in (query, key, value))
    mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    return mixed.transpose(1, 2).flatten(2)
