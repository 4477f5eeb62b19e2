"""FLUX.2's text encoder: three layers of Mistral, or for the klein models of Qwen3, beside each other."""

from __future__ import annotations

__all__ = ["flux2_text"]

from collections.abc import Callable, Mapping
from typing import Any

from dbcache_export.encoders import tokenizer
from dbcache_export.errors import ExportError, listed
from dbcache_export.families.family import Source
from dbcache_export.families.texts import Texts, of_one_encoder, whole
from dbcache_export.folder import read_json
from dbcache_export.language import chat, language_model
from dbcache_export.prompts import NO_PICTURES
from dbcache_export.spec import Tensor

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


def flux2_text(source: Source, tensors: Mapping[str, Tensor]) -> Texts | None:
    """The encoder of a pipeline; None for a folder without one.

    Raises:
        ExportError: The pipeline is incomplete, or its encoder is none of FLUX.2's.
    """
    parts = whole(source.folder, ("text_encoder", "tokenizer"))
    if parts is None:
        return None
    kind = str(read_json(parts[0] / "config.json").get("model_type"))
    if kind not in _ENCODERS:
        raise ExportError(f"{parts[0]}: {kind} is not supported", f"supported: {listed(sorted(_ENCODERS))}")
    layers, messages, settings = _ENCODERS[kind]
    encoder = language_model(parts[0], kind, layers, source.options, source.fake, ("prompt_embeds",), tokens=_TOKENS)
    width = encoder.graph.template.outputs["prompt_embeds"].shape[2]
    expected = tensors["prompt_embeds"].shape[2]
    if width != expected:
        raise ExportError(
            f"{source.folder}: the text encoder gives {width} values a token, the transformer expects {expected}",
            "take one pipeline",
        )
    prefix, suffix = chat(parts[1], messages, **settings)
    read = tokenizer(parts[1], _TOKENS, prefix=prefix, suffix=suffix)
    return of_one_encoder(encoder, read, kind, clean=NO_PICTURES if kind == "mistral3" else ())
