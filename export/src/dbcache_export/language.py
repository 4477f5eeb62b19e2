"""Language models as text encoders: what some layers of a Qwen3, Mistral or Llama make of a prompt in its template."""

from __future__ import annotations

__all__ = ["chat", "language_model"]

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from transformers import AttentionInterface, AutoConfig, AutoTokenizer, LlamaModel, MistralModel, Qwen3Model

from dbcache_export import checkpoint, spec
from dbcache_export.encoders import OTHER_PARTS, Encoder
from dbcache_export.errors import ExportError, listed
from dbcache_export.families.literal import Literal
from dbcache_export.spec import Case, Graph, Options, Template
from dbcache_export.template import fake_module

_CLASSES: Mapping[str, Any] = {"llama": LlamaModel, "mistral": MistralModel, "qwen3": Qwen3Model}
_ATTENTION = "dbcache_export"
#: Stands for a prompt where a template is taken apart; no template says it.
_MARK = "9c1f7e"


def chat(folder: Path, messages: Any, **settings: Any) -> tuple[str, str]:
    """What a folder's chat template puts in front of a prompt and behind it.

    Args:
        folder: Of the tokenizer.
        messages: From a prompt to the conversation that the pipeline makes of it.
        settings: Of the template, such as `add_generation_prompt`.

    Raises:
        ExportError: There is no template, or it does not put the prompt into a fixed text.
    """
    try:
        loaded: Any = AutoTokenizer.from_pretrained(folder)
        prompts = (_MARK, f" {_MARK}? ")
        texts = [loaded.apply_chat_template(messages(prompt), tokenize=False, **settings) for prompt in prompts]
        prefix, suffix = texts[0].split(_MARK)
    except Exception as error:  # transformers raises whatever the file made it stumble over
        raise ExportError(
            f"{folder} holds no usable chat template ({error})", "complete the pipeline folder"
        ) from error
    if texts[1] != f"{prefix} {_MARK}? {suffix}":
        raise ExportError(f"{folder}: the chat template changes prompts", "take the one of the published pipeline")
    start = loaded.bos_token
    if start and prefix.startswith(start) and loaded("").input_ids[:1] == [loaded.bos_token_id]:
        prefix = prefix.removeprefix(start)  # the tokenizer puts it there
    return prefix, suffix


def language_model(
    folder: Path,
    name: str,
    layers: Sequence[int],
    options: Options,
    fake: FakeTensorMode,
    outputs: Sequence[str],
    *,
    file: str = "text_000.onnx",
    tokens: int | str,
    drop: int = 0,
) -> Encoder:
    """The states that enter some layers, beside each other.

    Args:
        folder: Of the model; its pictures' half is left out.
        name: Of the graph and its component.
        layers: Which states, as transformers counts `hidden_states`: 0 enters the first layer, -1 leaves the last norm.
        options: For the type in which it computes.
        fake: Of the export.
        outputs: The name of the states, [batch, text, width], and that of a mask, [batch, text] of 1 and 0, if wanted.
        file: Of the graph.
        tokens: The length of the tokens' axis, or its name.
        drop: Tokens at the start whose states are left out.

    Raises:
        ExportError: It is another model, looks at a part of the text only, or has scaled positions.
    """
    config = _config(folder)
    count = config.num_hidden_layers
    places = [place % (count + 1) for place in layers]
    stored = checkpoint.read(folder, name)
    tables = [parameter for parameter in stored.parameters if parameter.endswith("embed_tokens.weight")]
    if len(tables) != 1 or not 0 < min(places) <= max(places) < count:
        raise ExportError(
            f"{folder} has {len(tables)} tables of tokens and {count} layers", "take the encoder of the pipeline"
        )
    prefix = tables[0].removesuffix("embed_tokens.weight")
    module = fake_module(fake, options.compute, lambda: _Language(config, places, drop, masked=len(outputs) == 2))
    ids = spec.Tensor("i64", ("batch", tokens))
    given = (
        spec.Tensor("f32", ("batch", "text", len(places) * config.hidden_size)),
        spec.Tensor("f32", ("batch", "text")),
    )
    lengths = {tokens: drop + 13, "text": 13} if isinstance(tokens, str) else {}
    graph = Graph(
        file,
        Template(
            name,
            module,
            {"input_ids": ids, "attention_mask": ids},
            dict(zip(outputs, given, strict=False)),
            lengths,
        ),
        name,
        lambda parameter: prefix + parameter,
        cases=lambda: _cases(folder, prefix, places, drop, tokens, outputs),
    )
    return Encoder(graph, stored, _unused(prefix, max(places), count))


def _config(folder: Path) -> Any:
    whole: Any = AutoConfig.from_pretrained(folder)
    config = getattr(whole, "text_config", whole)
    if config.model_type not in _CLASSES:
        raise ExportError(f"{folder}: {config.model_type} is not supported", f"supported: {listed(sorted(_CLASSES))}")
    kinds = getattr(config, "layer_types", None) or ()
    slides = getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True)
    if slides or any(kind != "full_attention" for kind in kinds):
        raise ExportError(f"{folder}: sliding windows are not supported", "take the encoder of the pipeline")
    scaling = config.rope_parameters["rope_type"]
    if scaling != "default":
        raise ExportError(f"{folder}: positions of type {scaling} are not supported", "take the pipeline's encoder")
    return config


def _unused(prefix: str, used: int, count: int) -> Sequence[str]:
    """Prefixes of parameters that the graph has no use for: later layers, the last norm, and what is no text model."""
    return [*(f"{prefix}layers.{index}." for index in range(used, count)), f"{prefix}norm.", *OTHER_PARTS]


class _Language(nn.Module):
    def __init__(self, config: Any, places: Sequence[int], drop: int, *, masked: bool) -> None:
        super().__init__()
        config._attn_implementation = _ATTENTION
        model = _CLASSES[config.model_type](config)
        self.embed_tokens = model.embed_tokens
        self.layers = nn.ModuleList(model.layers[: max(places)])
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        theta = config.rope_parameters["rope_theta"]
        self.frequencies = Literal(lambda: 1.0 / theta ** (torch.arange(0, width, 2, dtype=torch.float32) / width))
        self.places, self.drop, self.masked = places, drop, masked

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        """[batch, tokens] twice to [batch, tokens - drop, states · width], and the mask without the first `drop`."""
        place = torch.arange(input_ids.shape[1])
        seen = (place[:, None] >= place[None])[None, None] & (attention_mask[:, None, None] > 0)
        angles = place[:, None].float() * self.frequencies.tensor()
        angles = torch.cat((angles, angles), -1)[None]
        states = self.embed_tokens(input_ids)
        turns = angles.cos().to(states.dtype), angles.sin().to(states.dtype)
        entering = [states]
        for layer in self.layers:
            states = layer(states, attention_mask=seen, position_embeddings=turns, use_cache=False)
            entering.append(states)
        result = torch.cat([entering[place] for place in self.places], -1)[:, self.drop :].float()
        return (result, attention_mask[:, self.drop :].float()) if self.masked else result


def _attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, scaling: float, **_: Any
) -> tuple[Tensor, None]:
    """Attention as transformers calls it; a token that sees none, in padding on the left, gets zeros as there."""
    groups = module.num_key_value_groups
    key, value = (each.repeat_interleave(groups, 1) if groups > 1 else each for each in (key, value))
    bias = torch.where(attention_mask, 0.0, torch.finfo(query.dtype).min / 2).to(query.dtype)
    mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=scaling)
    some = attention_mask.to(query.dtype).amax(-1, keepdim=True)
    return (mixed * some).transpose(1, 2), None


AttentionInterface.register(_ATTENTION, _attention)


def _cases(
    folder: Path, prefix: str, places: Sequence[int], drop: int, tokens: int | str, outputs: Sequence[str]
) -> Iterator[Case]:
    """Texts of two lengths where the graph takes two; one row is padded on the right, and one on the left."""
    model = _original(folder, prefix)
    for batch, length in ((1, drop + 5), (3, drop + 9)):
        random = torch.Generator().manual_seed(batch)
        count = tokens if isinstance(tokens, int) else length
        ids = torch.randint(0, model.config.vocab_size, (batch, count), generator=random)
        mask = torch.ones_like(ids)
        mask[1:2, -3:] = 0
        mask[2:, :3] = 0
        with torch.no_grad():
            found = model(input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False).hidden_states
        values = (torch.cat([found[place] for place in places], -1)[:, drop:], mask[:, drop:].float())
        yield {"input_ids": ids, "attention_mask": mask}, dict(zip(outputs, values, strict=False))


def _original(folder: Path, prefix: str) -> Any:
    """The original text model in float32, without the rest of its checkpoint."""
    config = _config(folder)
    weights = {name: each for file in checkpoint.paths(folder) for name, each in load_file(file).items()}
    model: Any = _CLASSES[config.model_type](config).eval()
    own = {name.removeprefix(prefix): each.float() for name, each in weights.items() if name.startswith(prefix)}
    model.load_state_dict({name: each for name, each in own.items() if name in model.state_dict()}, strict=True)
    return model
