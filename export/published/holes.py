"""Pipeline folders as they are published, with holes for weights: real configurations, names, shapes and shards.

A safetensors file is a header in front of its data; here the data is a hole of the file, which takes no space on a
disk. Names are those of the published files, where they differ from what today's classes would write. Tokenizers are
the tests' small ones.
"""

from __future__ import annotations

__all__ = ["MODELS", "published", "write_pipeline"]

import json
import shutil
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from dbcache_export.tiny import texts

MODELS = Path(__file__).with_name("models")

_SHARD_BYTES = 9_980_000_000
_STORED = {torch.bfloat16: "BF16", torch.float32: "F32", torch.int64: "I64"}

#: Architecture of a text encoder: (writes a small one with its tokenizer, from its name of a parameter to the published
#: one, None where the file leaves it out).
_TEXTS: Mapping[str, tuple[Callable[[Path, str], None], Callable[[str], str | None]]] = {
    "CLIPTextModel": (lambda folder, number: texts.write_clip(folder, number, 8), lambda name: f"text_model.{name}"),
    "T5EncoderModel": (lambda folder, number: texts.write_t5(folder, number, 8), lambda name: _without_copy(name)),
    "UMT5EncoderModel": (lambda folder, number: texts.write_t5(folder, number, 8), lambda name: _without_copy(name)),
    "Qwen3ForCausalLM": (
        lambda folder, _: texts.write_qwen3(folder, 8),
        lambda name: None if name == "lm_head.weight" else name,  # tied to the table of tokens
    ),
    "Qwen2_5_VLForConditionalGeneration": (
        lambda folder, _: texts.write_qwen(folder, 24),
        lambda name: name.replace("model.language_model.", "model.").replace("model.visual.", "visual."),
    ),
    "Mistral3ForConditionalGeneration": (
        lambda folder, _: texts.write_mistral(folder, 8),
        lambda name: name.replace("model.language_model.", "language_model.model.").replace(
            "lm_head.", "language_model.lm_head."
        ),
    ),
    "LlamaModel": (lambda folder, _: texts.write_llama(folder, 8), lambda name: name),
}

#: The autoencoder of Stable Diffusion 1 was saved before diffusers renamed the layers of its attention.
_EARLIER = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}


def published(name: str) -> dict[str, Any]:
    """The configurations of a model, by its name in `models/`."""
    configurations: dict[str, Any] = json.loads((MODELS / f"{name}.json").read_text("utf-8"))
    return configurations


def write_pipeline(model: Mapping[str, Any], folder: Path) -> None:
    """Writes the folder of a pipeline: index, configurations, and files of holes."""
    text = model.get("text", {})
    components = ("transformer", "transformer_2", "vae")
    index: dict[str, Any] = {"_class_name": model["pipeline"], "image_encoder": [None, None], **model["model_index"]}
    for part in components:
        if part in model:
            index[part] = ["diffusers", model[part]["_class_name"]]
            _write_model(model[part], folder / part)
    for part, config in text.items():
        index[part] = ["transformers", config["architectures"][0]]
        _write_text(config, folder, part.removeprefix("text_encoder"))
    index["scheduler"] = ["diffusers", model["scheduler"]["_class_name"]]
    _write_json(folder / "scheduler" / "scheduler_config.json", model["scheduler"])
    _write_json(folder / "model_index.json", index)


def _write_model(config: Mapping[str, Any], folder: Path) -> None:
    _write_json(folder / "config.json", config)
    with torch.device("meta"):
        model = getattr(diffusers, config["_class_name"]).from_config(dict(config))
    is_early = config["_class_name"] == "AutoencoderKL" and "mid_block_add_attention" not in config

    def name(parameter: str) -> str:
        for today, before in _EARLIER.items() if is_early else ():
            parameter = parameter.replace(today, before)
        return parameter

    _write_holes(model, folder, name, "diffusion_pytorch_model")


def _write_text(config: Mapping[str, Any], folder: Path, number: str) -> None:
    """A text encoder, and a small tokenizer beside it."""
    architecture = config["architectures"][0]
    write_small, name = _TEXTS[architecture]
    write_small(folder, number)
    encoder = folder / f"text_encoder{number}"
    shutil.rmtree(encoder)
    _write_json(encoder / "config.json", config)
    kind = getattr(transformers, architecture)
    with torch.device("meta"):
        model = kind(kind.config_class.from_pretrained(encoder))
    _write_holes(model, encoder, name, "model")


def _without_copy(name: str) -> str | None:
    """T5's table of tokens has two names, of which files hold the first."""
    return None if name == "encoder.embed_tokens.weight" else name


def _write_holes(model: torch.nn.Module, folder: Path, rename: Callable[[str], str | None], stem: str) -> None:
    """The files of a checkpoint, with an index where they are several."""
    shards: list[dict[str, Any]] = [{}]
    lengths = [0]
    for name, value in model.state_dict().items():
        stored = rename(name)
        if stored is None:
            continue
        dtype = torch.bfloat16 if value.is_floating_point() else value.dtype
        length = value.numel() * dtype.itemsize
        if shards[-1] and lengths[-1] + length > _SHARD_BYTES:
            shards.append({})
            lengths.append(0)
        place = [lengths[-1], lengths[-1] + length]
        shards[-1][stored] = {"dtype": _STORED[dtype], "shape": list(value.shape), "data_offsets": place}
        lengths[-1] += length
    places: dict[str, str] = {}
    for number, (header, length) in enumerate(zip(shards, lengths, strict=True), 1):
        file = f"{stem}{f'-{number:05}-of-{len(shards):05}' if len(shards) > 1 else ''}.safetensors"
        places |= dict.fromkeys(header, file)
        text = json.dumps(header).encode()
        with (folder / file).open("wb") as out:
            out.write(struct.pack("<Q", len(text)) + text)
            out.truncate(8 + len(text) + length)
    if len(shards) > 1:
        _write_json(folder / f"{stem}.safetensors.index.json", {"metadata": {}, "weight_map": places})


def _write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
