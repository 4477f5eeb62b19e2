"""Stable Diffusion 3's three text encoders: two of CLIP side by side, and T5 behind them, which may be missing."""

from __future__ import annotations

__all__ = ["sd3_text"]

from collections.abc import Iterator, Mapping

import torch
from torch import nn
from torch.nn import functional
from transformers import CLIPTextConfig

from dbcache_export import spec
from dbcache_export.encoders import clip, own_length, t5, tokenizer
from dbcache_export.errors import ExportError
from dbcache_export.families.family import Source
from dbcache_export.families.texts import Texts, whole
from dbcache_export.spec import Case, Graph, Template, Tensor

#: Tokens of T5 in diffusers' pipeline, unless told otherwise.
_T5_TOKENS = 256


def sd3_text(source: Source, tensors: Mapping[str, Tensor]) -> Texts | None:
    """All encoders of a pipeline; None for a folder without text encoders.

    Raises:
        ExportError: The pipeline is incomplete, its encoders do not fit, or a tokenizer cannot be read.
    """
    folder, options, fake = source.folder, source.options, source.fake
    parts = whole(folder, ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    if parts is None:
        return None
    # The pipeline asks the first tokenizer for the length of both.
    places = [CLIPTextConfig.from_pretrained(part).max_position_embeddings for part in parts[:2]]
    tokens = own_length(parts[2], min(places))
    encoders = [
        clip(part, f"text_{i:03}.onnx", name, options, fake, tokens=tokens)
        for i, (part, name) in enumerate(zip(parts[:2], ("clip_l", "clip_g"), strict=True))
    ]
    tokenizers = {name: tokenizer(part, tokens) for name, part in zip(("clip_l", "clip_g"), parts[2:], strict=True)}
    graphs: list[tuple[Graph, Mapping[str, spec.TextInput]]] = [
        (encoder.graph, {"input_ids": (str(encoder.graph.component), "ids")}) for encoder in encoders
    ]
    long = whole(folder, ("text_encoder_3", "tokenizer_3"))
    width = int(tensors["prompt_embeds"].shape[2])
    if long:
        tokenizers["t5"] = tokenizer(long[1], _T5_TOKENS)
        states = Tensor("f32", ("batch", _T5_TOKENS, width))
        encoders.append(t5(long[0], "text_002.onnx", _T5_TOKENS, states, options, fake, ("t5_states",)))
        graphs.append((encoders[-1].graph, {"input_ids": ("t5", "ids")}))
    handed = {name: tensor for encoder in encoders for name, tensor in encoder.graph.template.outputs.items()}
    outputs = {name: tensors[name] for name in ("prompt_embeds", "pooled_projections")}
    widths = {end: sum(int(handed[f"{name}_{end}"].shape[-1]) for name in ("clip_l", "clip_g")) for end in _ENDS}
    if widths["states"] > width or widths["pooled"] != outputs["pooled_projections"].shape[1]:
        raise ExportError(f"{folder}: text encoders of other widths than the transformer expects", "take one pipeline")
    join = Template("text", _Join(width), handed, outputs)
    graph = Graph(
        f"text_{len(graphs):03}.onnx", join, None, cases=lambda: _cases(handed, width), length=tokens + _T5_TOKENS
    )
    graphs.append((graph, {name: name for name in handed}))
    return Texts(spec.Text(tokenizers, graphs, unconditional=""), encoders, handed)


_ENDS = ("states", "pooled")


class _Join(nn.Module):
    """CLIP's states beside each other, filled up to T5's width, then T5's, or zeros for it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(
        self,
        clip_l_states: torch.Tensor,
        clip_l_pooled: torch.Tensor,
        clip_g_states: torch.Tensor,
        clip_g_pooled: torch.Tensor,
        t5_states: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """To [batch, text, width] and [batch, pooled width]."""
        states = torch.cat((clip_l_states, clip_g_states), -1)
        states = functional.pad(states, (0, self.width - states.shape[-1]))
        if t5_states is None:
            t5_states = torch.zeros_like(states[:, :1]).expand(-1, _T5_TOKENS, -1)
        return torch.cat((states, t5_states), 1), torch.cat((clip_l_pooled, clip_g_pooled), -1)


def _cases(handed: Mapping[str, Tensor], width: int) -> Iterator[Case]:
    """The layout of the pipeline's tensors, filled in by place."""
    for batch in (1, 2):
        random = torch.Generator().manual_seed(batch)
        given = {
            name: torch.randn(batch, *map(int, tensor.shape[1:]), generator=random) for name, tensor in handed.items()
        }
        left, right = given["clip_l_states"], given["clip_g_states"]
        embeds = torch.zeros(batch, left.shape[1] + _T5_TOKENS, width)
        embeds[:, : left.shape[1], : left.shape[2]] = left
        embeds[:, : left.shape[1], left.shape[2] : left.shape[2] + right.shape[2]] = right
        if "t5_states" in given:
            embeds[:, left.shape[1] :] = given["t5_states"]
        pooled = torch.cat((given["clip_l_pooled"], given["clip_g_pooled"]), 1)
        yield given, {"prompt_embeds": embeds, "pooled_projections": pooled}
