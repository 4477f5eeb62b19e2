"""FLUX.2's text encoder: three layers of Mistral, or for the klein models of Qwen3, beside each other."""

from __future__ import annotations

__all__ = ["flux2_text"]

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch._subclasses.fake_tensor import FakeTensorMode

from dbcache_export import spec
from dbcache_export.encoders import tokenizer
from dbcache_export.errors import ExportError, listed
from dbcache_export.families.parts import Texts, whole
from dbcache_export.folder import read_json
from dbcache_export.language import chat, language_model
from dbcache_export.prompts import NO_PICTURES
from dbcache_export.spec import Options

#: Tokens in diffusers' pipelines; those that fill up are looked at, as the models were trained.
_TOKENS = 512
#: What Mistral is told before the prompt.
_SYSTEM = (
    "You are an AI that reasons about image descriptions. You give structured responses focusing on object "
    "relationships, object\nattribution and actions without speculation."
)


def _mistral(prompt: str) -> Any:
    roles = {"system": _SYSTEM, "user": prompt}
    return [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in roles.items()]


def _qwen(prompt: str) -> Any:
    return [{"role": "user", "content": prompt}]


#: Type of the model in config.json: (layers, conversation, settings of the chat template), as in diffusers' pipelines.
_ENCODERS: Mapping[str, tuple[tuple[int, ...], Callable[[str], Any], Mapping[str, bool]]] = {
    "mistral3": ((10, 20, 30), _mistral, {"add_generation_prompt": False}),
    "qwen3": ((9, 18, 27), _qwen, {"add_generation_prompt": True, "enable_thinking": False}),
}


def flux2_text(folder: Path, embeds: spec.Tensor, options: Options, fake: FakeTensorMode) -> Texts | None:
    """The encoder of a pipeline; None for a folder without one.

    Raises:
        ExportError: The pipeline is incomplete, or its encoder is none of FLUX.2's.
    """
    parts = whole(folder, ("text_encoder", "tokenizer"))
    if parts is None:
        return None
    kind = str(read_json(parts[0] / "config.json").get("model_type"))
    if kind not in _ENCODERS:
        raise ExportError(f"{parts[0]}: {kind} is not supported", f"supported: {listed(sorted(_ENCODERS))}")
    layers, messages, settings = _ENCODERS[kind]
    encoder = language_model(parts[0], kind, layers, options, fake, ("prompt_embeds",), tokens=_TOKENS)
    width = encoder.graph.template.outputs["prompt_embeds"].shape[2]
    if width != embeds.shape[2]:
        raise ExportError(
            f"{folder}: the text encoder gives {width} values a token, the transformer expects {embeds.shape[2]}",
            "take one pipeline",
        )
    prefix, suffix = chat(parts[1], messages, **settings)
    tokenizers = {kind: tokenizer(parts[1], _TOKENS, prefix=prefix, suffix=suffix)}
    graph = (encoder.graph, {"input_ids": (kind, "ids"), "attention_mask": (kind, "mask")})
    clean = NO_PICTURES if kind == "mistral3" else ()
    return Texts(spec.Text(tokenizers, [graph], unconditional="", clean=clean), [encoder])
