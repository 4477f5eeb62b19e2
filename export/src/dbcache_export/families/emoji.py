"""The small model that ships with the engine: a FLUX transformer over pixels, with a vocabulary of words as text.

Folder: transformer/, text/embedding.safetensors, text/vocab.json (word: id; 0 is padding, 1 the unconditional prompt).
"""

from __future__ import annotations

__all__ = ["plan", "recognises"]

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from dbcache_export import checkpoint, spec
from dbcache_export.errors import ExportError
from dbcache_export.families import flux
from dbcache_export.families.pipeline import transformer
from dbcache_export.families.sizes import Picture, refuse_frames
from dbcache_export.folder import documents, model_name, read_json
from dbcache_export.guidance import separate
from dbcache_export.scheduler import NO_SHIFT
from dbcache_export.spec import Case, Graph, Options, Plan, Template, Tensor
from dbcache_export.template import fake_module

_PATCH = 8
_CHANNELS = 3
_PIXELS = 64
_PAD = 0
_MAX_BATCH = 64


def recognises(folder: Path) -> bool:
    """Whether the folder has a vocabulary of words."""
    return (folder / "text" / "vocab.json").is_file()


def plan(folder: Path, options: Options, fake: FakeTensorMode) -> Plan:
    """The plan of a model in pixel space that predicts the clean picture."""
    if options.size not in (None, (_PIXELS, _PIXELS)) or options.downscale not in (None, 1):
        raise ExportError(f"this model makes {_PIXELS}x{_PIXELS} pixels only", "leave out --size and --downscale")
    refuse_frames(options)
    parts = transformer(flux.FAMILY, folder, options, fake)
    embedding = checkpoint.read(folder / "text", "text")
    vocabulary = read_json(folder / "text" / "vocab.json")
    length = _text_length(embedding, len(vocabulary), int(parts.tensors["prompt_embeds"].shape[2]))
    sizes = Picture(_CHANNELS, _PATCH, _PIXELS, downscale=1)
    size = {"default": [_PIXELS, _PIXELS], "min": _PIXELS, "max": _PIXELS, "multiple_of": _PIXELS}
    pixels = {
        "image_latents": Tensor("f32", ("batch", _CHANNELS, "latent_height", "latent_width")),
        "image": Tensor("f32", ("batch", _CHANNELS, "height", "width")),
    }
    tensors = {**parts.tensors, **pixels}
    text = Graph(
        "text_000.onnx",
        _text_template(embedding, length, tensors, fake),
        "text",
        cases=lambda: _text_cases(folder / "text", length),
    )
    decode = Template("decode", _Clip(), {"image_latents": pixels["image_latents"]}, {"image": pixels["image"]})
    return Plan(
        name=options.name or model_name(folder),
        description=parts.description() + "; pictures of 64 x 64 pixels, words as text",
        dimensions=sizes.dimensions(size, (length, length), decodes=True, max_batch=_MAX_BATCH),
        tensors=tensors,
        inputs=parts.inputs,
        streams=parts.cut.streams,
        embed=parts.embed,
        blocks=parts.blocks,
        final=parts.final,
        prediction={"kind": "sample", "min_sigma": 0.02},
        latents=sizes.layout(),
        size=size,
        scheduler=NO_SHIFT,
        guidance=separate(1.0),
        steps=28,
        checkpoints={"transformer": parts.checkpoint, "text": embedding},
        reference=parts.reference,
        text=spec.Text(
            {"words": _word_tokenizer(vocabulary, length)},
            [(text, {"input_ids": ("words", "ids")})],
            unconditional="<null>",
        ),
        decode=Graph("decode.onnx", decode, None, cases=_clip_cases),
        documents=documents(folder),
    )


class _WordText(nn.Module):
    """Conditioning from word ids, without any layer."""

    def __init__(self, words: int, length: int, width: int) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(words, width)
        self.position_embedding = nn.Parameter(torch.empty(length, width))

    def forward(self, input_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[batch, text] to prompt_embeds [batch, text, width], pooled_projections [batch, width]."""
        words = self.token_embedding(input_ids)
        weight = (input_ids != _PAD).to(words.dtype)
        pooled = (words * weight[..., None]).sum(1) / weight.sum(1, keepdim=True).clamp(min=1)
        return words + self.position_embedding, pooled


class _Clip(nn.Module):
    """Latents are pixels already."""

    def forward(self, image_latents: torch.Tensor) -> torch.Tensor:
        """[batch, 3, height, width] to the same."""
        return image_latents.clamp(-1, 1)


def _text_template(
    embedding: checkpoint.Checkpoint, length: int, tensors: dict[str, Tensor], fake: FakeTensorMode
) -> Template:
    """Float32 in every engine: it costs nothing."""
    words, width = embedding.parameters["token_embedding.weight"].shape
    module = fake_module(fake, "f32", lambda: _WordText(words, length, width))
    outputs = {name: tensors[name] for name in ("prompt_embeds", "pooled_projections")}
    return Template("text", module, {"input_ids": Tensor("i64", ("batch", length))}, outputs)


def _text_length(embedding: checkpoint.Checkpoint, words: int, width: int) -> int:
    """How many words a prompt has at most; refuses tables that do not fit the vocabulary and the transformer."""
    shapes = {name: list(parameter.shape) for name, parameter in embedding.parameters.items()}
    positions = shapes.get("position_embedding", [])
    if shapes.get("token_embedding.weight") != [words, width] or positions[1:] != [width]:
        raise ExportError(
            f"{embedding.folder}: tables of the shapes {shapes} for {words} words and a model of width {width}",
            "take the files of one model",
        )
    return positions[0]


def _word_tokenizer(words: dict[str, int], length: int) -> spec.Tokenizer:
    """Words at white space, in lower case; the unknown word has an id of its own that the engine refuses."""
    unknown = len(words)
    tokenizer = Tokenizer(models.WordLevel(words | {"<unk>": unknown}, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return spec.Tokenizer(tokenizer.to_str(pretty=True), length, _PAD, unknown)


def _text_cases(folder: Path, length: int) -> Iterator[Case]:
    """The conditioning as the model was trained with, written out once more."""
    weights = {name: value.float() for name, value in load_file(folder / "embedding.safetensors").items()}
    table, positions = weights["token_embedding.weight"], weights["position_embedding"]
    for seed, batch in ((0, 1), (1, 2)):
        ids = torch.randint(1, len(table), (batch, length), generator=torch.Generator().manual_seed(seed))
        counts = [1 + row for row in range(batch)]
        for row, count in enumerate(counts):
            ids[row, count:] = _PAD
        pooled = torch.stack([table[ids[row, :count]].mean(0) for row, count in enumerate(counts)])
        yield {"input_ids": ids}, {"prompt_embeds": table[ids] + positions, "pooled_projections": pooled}


def _clip_cases() -> Iterator[Case]:
    for batch in (1, 2):
        pixels = 2 * torch.randn(batch, _CHANNELS, _PIXELS, _PIXELS, generator=torch.Generator().manual_seed(batch))
        yield {"image_latents": pixels}, {"image": pixels.clip(-1, 1)}
