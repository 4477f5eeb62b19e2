"""Text encoders of video pipelines: T5 with their own ways with padding."""

from __future__ import annotations

__all__ = ["t5_texts"]

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from dbcache_export import spec
from dbcache_export.encoders import t5, tokenizer
from dbcache_export.families.family import Source
from dbcache_export.families.texts import Texts, whole
from dbcache_export.folder import read_json
from dbcache_export.prompts import Rule
from dbcache_export.spec import Case, Graph, Template

#: Of a pipeline: T5 looks at padding, and the transformer is not told where it is (CogVideoX: `seen`) or is (LTX-Video:
#: `told`); T5 does not look at it, and the transformer is told (Mochi: `masked`) or gets zeros (Wan: `zeroed`).
Padding = Literal["seen", "told", "masked", "zeroed"]

_STATES, _MASK = "prompt_embeds", "prompt_attention_mask"
_RAW = ("t5_states", "t5_mask")


def t5_texts(
    source: Source, tensors: Mapping[str, spec.Tensor], tokens: int, padding: Padding, clean: Sequence[Rule] = ()
) -> Texts | None:
    """The encoder and tokenizer of a pipeline, for texts of so many tokens; None for a folder without them."""
    parts = whole(source.folder, ("text_encoder", "tokenizer"))
    if parts is None:
        return None
    states, mask = tensors[_STATES], spec.Tensor("f32", tensors[_STATES].shape[:2])
    index = source.folder / "model_index.json"
    empties = index.is_file() and bool(read_json(index).get("force_zeros_for_empty_prompt"))
    outputs: dict[Padding, tuple[str, ...]] = {
        "seen": (_STATES,),
        "told": (_STATES,),
        "masked": (_STATES, _RAW[1] if empties else _MASK),
        "zeroed": _RAW,
    }
    encoder = t5(parts[0], "text_000.onnx", tokens, states, source.options, source.fake, outputs[padding])
    ids, read = ("t5", "ids"), ("t5", "mask")
    taken = {"input_ids": ids} | ({"attention_mask": read} if padding in ("masked", "zeroed") else {})
    graphs: list[tuple[Graph, Mapping[str, spec.TextInput]]] = [(encoder.graph, taken)]
    handed: dict[str, spec.Tensor] = {}
    if padding == "told":
        given = {"attention_mask": spec.Tensor("i64", ("batch", tokens))}
        graphs.append((_graph("mask", _Mask(empties=False), given, {_MASK: mask}), {"attention_mask": read}))
    elif padding == "masked" and empties:
        handed = {_RAW[1]: mask}
        graphs.append((_graph("mask", _Mask(empties=True), handed, {_MASK: mask}), {_RAW[1]: _RAW[1]}))
    elif padding == "zeroed":
        handed = dict(zip(_RAW, (states, mask), strict=True))
        graphs.append((_graph("zero", _Zero(), handed, {_STATES: states}), {name: name for name in _RAW}))
    text = spec.Text({"t5": tokenizer(parts[1], tokens)}, graphs, unconditional="", clean=clean)
    return Texts(text, [encoder], handed)


def _graph(
    name: str, module: nn.Module, inputs: Mapping[str, spec.Tensor], outputs: Mapping[str, spec.Tensor]
) -> Graph:
    """A graph without parameters."""
    return Graph(
        "text_001.onnx", Template(name, module, inputs, outputs), None, cases=lambda: _cases(module, inputs, outputs)
    )


class _Mask(nn.Module):
    """Hands a mask on. An empty prompt is its end token alone; with `empties` it becomes padding too, as in Mochi."""

    def __init__(self, *, empties: bool) -> None:
        super().__init__()
        self.empties = empties

    def forward(self, mask: Tensor) -> Tensor:
        """[batch, text] of 1 and 0 to the same, float32."""
        mask = mask.float()
        return mask * (mask.sum(dim=1, keepdim=True) > 1).float() if self.empties else mask


class _Zero(nn.Module):
    """Keeps as many states as there are tokens, from the first on, as Wan's pipeline does on whichever side it pads."""

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """[batch, text, width] and [batch, text] to the first."""
        places = torch.arange(mask.shape[1], dtype=torch.float32)
        kept = (places[None] < mask.sum(dim=1, keepdim=True)).float()
        return states * kept[:, :, None]


def _cases(module: nn.Module, inputs: Mapping[str, spec.Tensor], outputs: Mapping[str, spec.Tensor]) -> Iterator[Case]:
    """Texts of different lengths, one of them empty."""
    random = torch.Generator().manual_seed(0)
    taken: dict[str, Tensor] = {}
    for name, tensor in inputs.items():
        shape = [3 if axis == "batch" else axis if isinstance(axis, int) else 7 for axis in tensor.shape]
        prefix = (torch.arange(shape[1]) < torch.tensor([[5], [1], [7]])).long()
        taken[name] = prefix if len(shape) == 2 else torch.randn(shape, generator=random)
    yield taken, dict(zip(outputs, [module(*taken.values())], strict=True))
