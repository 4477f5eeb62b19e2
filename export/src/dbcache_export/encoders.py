"""Text encoders of transformers as graphs: CLIP, T5 with masks, and the text half of Qwen2.5-VL."""

from __future__ import annotations

__all__ = ["OTHER_PARTS", "Encoder", "clip", "own_length", "qwen", "t5", "tokenizer"]

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import (
    AutoTokenizer,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Qwen2_5_VLConfig,
    Qwen2_5_VLTextModel,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)

from dbcache_export import checkpoint, spec
from dbcache_export.errors import ExportError
from dbcache_export.folder import read_json
from dbcache_export.spec import DTYPES, Case, Graph, Options, Template, Tensor
from dbcache_export.template import fake_module

#: Tables of positions that old versions saved; 0, 1, 2 …
_POSITION_IDS: Sequence[str] = ("text_model.embeddings.position_ids", "embeddings.position_ids")

#: T5's table of tokens: that of the encoder, and that which it may share with a decoder.
_OWN_TABLE, _SHARED_TABLE = "encoder.embed_tokens.weight", "shared.weight"

#: Prefixes of what a language model has beside its text half, wherever that lies; none of it is run for a prompt: the
#: half that sees pictures, and the head that names the next token.
OTHER_PARTS: Sequence[str] = tuple(
    place + part
    for place in ("", "model.", "language_model.")
    for part in ("visual.", "vision_tower.", "multi_modal_projector.", "lm_head.")
)

#: Kinds of layers and of positions in the Qwen2.5-VL that Qwen-Image reads with.
_PLAIN = ("full_attention", "default")


@dataclass(frozen=True)
class Encoder:
    """One text encoder's share of a Plan."""

    graph: Graph
    checkpoint: checkpoint.Checkpoint
    ignored: Sequence[str]


def own_length(folder: Path, most: int) -> int:
    """The length that a tokenizer gives itself, for pipelines that ask it; not more than its encoder can place.

    Raises:
        ExportError: There is no tokenizer that can be read.
    """
    return min(most, int(_loaded(folder).model_max_length))


def tokenizer(folder: Path, length: int, **template: Any) -> spec.Tokenizer:
    """The fast tokenizer of a folder; it cuts before the end token, which a cut outside would lose.

    It cuts and pads at the ends that its own settings name. Its own length counts only where a pipeline asks for it
    (`own_length`).

    Args:
        folder: As transformers writes it.
        length: The most tokens, as the pipeline says.
        template: Further fields of `spec.Tokenizer`.

    Raises:
        ExportError: There is no tokenizer that can be read.
    """
    loaded = _loaded(folder)
    try:
        fast = loaded.backend_tokenizer
        fast.no_padding()
        fast.enable_truncation(length, direction=loaded.truncation_side)
        pad_id = int(loaded.pad_token_id)
    except Exception as error:  # a tokenizer without what is asked for here
        raise _unusable(folder, error) from error
    pretty = json.dumps(json.loads(fast.to_str()), ensure_ascii=False, separators=(",", ":"))
    return spec.Tokenizer(pretty, length, pad_id, pad_side=loaded.padding_side, **template)


def _loaded(folder: Path) -> Any:
    try:
        return AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # transformers raises whatever the file made it stumble over
        raise _unusable(folder, error) from error


def _unusable(folder: Path, error: Exception) -> ExportError:
    return ExportError(f"{folder} holds no usable tokenizer ({error})", "complete the pipeline folder")


def clip(
    folder: Path,
    file: str,
    name: str,
    options: Options,
    fake: FakeTensorMode,
    outputs: Sequence[str] | None = None,
    *,
    tokens: int | None = None,
) -> Encoder:
    """CLIP's text half.

    Args:
        folder: Of the encoder.
        file: Of the graph.
        name: Of the graph and its component.
        options: For the type in which it computes.
        fake: Of the export.
        outputs: The names of the states that enter the last layer and of the state at the end of the text, projected
            if the model can; a single name is that of the latter. Default: `<name>_states` and `<name>_pooled`.
        tokens: The length of a text. Default: as many as the model can place.
    """
    config = CLIPTextConfig.from_pretrained(folder)
    # Else transformers builds the inner model in the dtype in which the weights were saved, and the projection in ours.
    config.dtype = DTYPES[options.compute][0]
    projects = "CLIPTextModelWithProjection" in (read_json(folder / "config.json").get("architectures") or ())
    build = CLIPTextModelWithProjection if projects else CLIPTextModel
    stored = checkpoint.read(folder, name)
    names = tuple(outputs or (f"{name}_states", f"{name}_pooled"))
    module = fake_module(fake, options.compute, lambda: _Clip(build(config), states=len(names) == 2))
    tokens = tokens or config.max_position_embeddings
    given = (
        Tensor("f32", ("batch", tokens, config.hidden_size)),
        Tensor("f32", ("batch", config.projection_dim if projects else config.hidden_size)),
    )
    prefix = "text_model." if not projects and any(p.startswith("text_model.") for p in stored.parameters) else ""
    graph = Graph(
        file,
        Template(
            name,
            module,
            {"input_ids": Tensor("i64", ("batch", tokens))},
            dict(zip(names, given[-len(names) :], strict=True)),
        ),
        name,
        lambda parameter: prefix + parameter.removeprefix("model."),
        cases=lambda: _clip_cases(build, folder, names, tokens),
    )
    return Encoder(graph, stored, _POSITION_IDS)


class _Clip(nn.Module):
    def __init__(self, model: Any, *, states: bool) -> None:
        super().__init__()
        self.model = model
        self.states = states

    def forward(self, input_ids: torch.Tensor) -> Any:
        """[batch, tokens] to [batch, tokens, width] (if wanted) and [batch, width]."""
        positions = torch.arange(input_ids.shape[1])[None]  # the model's own table has no data while tracing
        last = getattr(self.model, "text_model", self.model).encoder.layers[-1]
        entering: list[torch.Tensor] = []
        handle = last.register_forward_pre_hook(lambda _, given: entering.append(given[0]))
        result = self.model(input_ids=input_ids, position_ids=positions)
        handle.remove()
        pooled = (result.text_embeds if hasattr(result, "text_embeds") else result.pooler_output).float()
        return (entering[0].float(), pooled) if self.states else pooled


def _clip_cases(build: Any, folder: Path, names: Sequence[str], tokens: int) -> Iterator[Case]:
    """Sentences of different lengths, closed and padded with the end token."""
    model: Any = build.from_pretrained(folder, torch_dtype=torch.float32).eval()
    config = model.config
    end = config.vocab_size - 1 if config.eos_token_id == 2 else config.eos_token_id
    for batch in (1, 2):
        random = torch.Generator().manual_seed(batch)
        ids = torch.randint(0, config.vocab_size, (batch, tokens), generator=random)
        ids[ids == end] = (end + 1) % config.vocab_size
        for row in range(batch):
            ids[row, min(5 + 9 * row, tokens - 1) :] = end
        with torch.no_grad():
            result = model(input_ids=ids, output_hidden_states=True)
        pooled = result.text_embeds if hasattr(result, "text_embeds") else result.pooler_output
        values = (result.hidden_states[-2], pooled)
        yield {"input_ids": ids}, dict(zip(names, values[-len(names) :], strict=True))


def t5(
    folder: Path, file: str, tokens: int, states: Tensor, options: Options, fake: FakeTensorMode, outputs: Sequence[str]
) -> Encoder:
    """T5's encoder, or UMT5's, whose layers have tables of distances of their own.

    Args:
        folder: Of the encoder.
        file: Of the graph.
        tokens: That it takes.
        states: What it gives, [batch, tokens, width]; the axis of tokens may have a name.
        options: For the type in which it computes.
        fake: Of the export.
        outputs: The name of the states, and that of a mask, [batch, tokens] of 1 and 0: padding is then not looked at.
    """
    per_layer = read_json(folder / "config.json").get("model_type") == "umt5"
    config = (UMT5Config if per_layer else T5Config).from_pretrained(folder)
    masked = len(outputs) == 2
    stored = checkpoint.read(folder, "t5")
    # With two tables transformers reads the encoder's own, whatever config.json says of tied ones.
    table = _OWN_TABLE if _OWN_TABLE in stored.parameters else _SHARED_TABLE
    unread = (_SHARED_TABLE,) if table == _OWN_TABLE else ()
    ids = Tensor("i64", ("batch", tokens))
    graph = Graph(
        file,
        Template(
            "t5",
            fake_module(fake, options.compute, partial(_build_t5, config, options)),
            {"input_ids": ids} | ({"attention_mask": ids} if masked else {}),
            dict(zip(outputs, (states, Tensor("f32", states.shape[:2])), strict=False)),
        ),
        "t5",
        lambda name: table if name == _OWN_TABLE else name,
        cases=lambda: _t5_cases(folder, tokens, outputs),
    )
    return Encoder(graph, stored, unread)


def _build_t5(config: T5Config | UMT5Config, options: Options) -> nn.Module:
    model = (UMT5EncoderModel if isinstance(config, UMT5Config) else T5EncoderModel)(config)
    if options.compute == "f16":  # this layer overflows in float16; transformers keeps it in float32 as well
        for block in model.modules():
            if isinstance(wide := getattr(block, "wo", None), nn.Linear):
                block.wo = nn.Linear(wide.in_features, wide.out_features, bias=False, dtype=torch.float32)
    return _T5(model)


class _T5(nn.Module):
    def __init__(self, model: T5EncoderModel) -> None:
        super().__init__()
        self.encoder = model.encoder

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> Any:
        """[batch, text] to [batch, text, width], and the mask."""
        result = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state.float()
        return result if attention_mask is None else (result, attention_mask.float())


def _t5_cases(folder: Path, tokens: int, outputs: Sequence[str]) -> Iterator[Case]:
    """Texts whose second half is padding."""
    per_layer = read_json(folder / "config.json").get("model_type") == "umt5"
    model: Any = (
        (UMT5EncoderModel if per_layer else T5EncoderModel).from_pretrained(folder, torch_dtype=torch.float32).eval()
    )
    for batch in (1, 2):
        random = torch.Generator().manual_seed(batch)
        ids = torch.randint(1, model.config.vocab_size, (batch, tokens), generator=random)
        mask = torch.ones_like(ids)
        for row in range(batch):
            ids[row, tokens // 2 + row :] = 0
            mask[row, tokens // 2 + row :] = 0
        given = {"input_ids": ids} | ({"attention_mask": mask} if len(outputs) == 2 else {})
        with torch.no_grad():
            result = model(**given).last_hidden_state
        yield given, dict(zip(outputs, (result, mask.float()), strict=False))


def qwen(
    folder: Path, file: str, axis: str, drop: int, options: Options, fake: FakeTensorMode, outputs: Sequence[str]
) -> Encoder:
    """The text half of Qwen2.5-VL: its last states behind the first `drop` tokens, and their mask.

    Args:
        folder: Of the encoder.
        file: Of the graph.
        axis: The name of the tokens' axis.
        drop: Tokens of the chat template in front of the prompt.
        options: For the type in which it computes.
        fake: Of the export.
        outputs: Names of the states and of the mask.

    Raises:
        ExportError: It has sliding windows or scaled positions, or is another model.
    """
    config = Qwen2_5_VLConfig.from_pretrained(folder).text_config
    odd = [kind for kind in (*config.layer_types, config.rope_parameters["rope_type"]) if kind not in _PLAIN]
    if odd:
        raise ExportError(f"{folder}: {odd[0]} is not supported", "switch sliding windows and scaled positions off")
    stored = checkpoint.read(folder, "qwen")
    places = [name for name in stored.parameters if name.endswith("embed_tokens.weight")]
    if len(places) != 1:
        raise ExportError(f"{folder} has {len(places)} tables of tokens", "give the encoder of a Qwen-Image pipeline")
    prefix = places[0].removesuffix("embed_tokens.weight")
    ids = Tensor("i64", ("batch", axis))
    states = Tensor("f32", ("batch", "text", config.hidden_size))
    module = fake_module(fake, options.compute, lambda: _Qwen(Qwen2_5_VLTextModel(config), drop))
    graph = Graph(
        file,
        Template(
            "qwen",
            module,
            {"input_ids": ids, "attention_mask": ids},
            dict(zip(outputs, (states, Tensor("f32", ("batch", "text"))), strict=True)),
            {axis: drop + 13, "text": 13},
        ),
        "qwen",
        lambda name: prefix + name.removeprefix("model."),
        cases=lambda: _qwen_cases(folder, prefix, drop, outputs),
    )
    return Encoder(graph, stored, OTHER_PARTS)


class _Positions(nn.Module):
    """Rotary tables, computed where they are used; text has the same position on all three axes."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.width: int = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.theta: float = config.rope_parameters["rope_theta"]

    def forward(self, states: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Two tensors [batch, tokens, head width]."""
        frequencies = 1.0 / self.theta ** (torch.arange(0, self.width, 2, dtype=torch.float32) / self.width)
        angles = position_ids[0, :, :, None].float() * frequencies
        angles = torch.cat((angles, angles), -1)
        return angles.cos().to(states.dtype), angles.sin().to(states.dtype)


class _Qwen(nn.Module):
    def __init__(self, model: Any, drop: int) -> None:
        super().__init__()
        model.rotary_emb = _Positions(model.config)
        self.model = model
        self.drop = drop

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[batch, tokens] twice to [batch, tokens - drop, width] and [batch, tokens - drop]; padding gives zeros."""
        tokens = torch.arange(input_ids.shape[1])
        seen = (tokens[:, None] >= tokens[None])[None, None] & (attention_mask[:, None, None] > 0)
        dtype = self.model.embed_tokens.weight.dtype
        bias = torch.where(seen, 0.0, torch.finfo(dtype).min / 2).to(dtype)
        states = self.model(
            input_ids=input_ids, attention_mask={"full_attention": bias}, use_cache=False
        ).last_hidden_state
        mask = attention_mask[:, self.drop :].float()
        return states[:, self.drop :].float() * mask[..., None], mask


def _qwen_cases(folder: Path, prefix: str, drop: int, outputs: Sequence[str]) -> Iterator[Case]:
    """Texts of two lengths; the second row of a batch is shorter and padded on the right."""
    model = _qwen_model(folder, prefix)
    for batch, length in ((1, drop + 5), (2, drop + 9)):
        random = torch.Generator().manual_seed(batch)
        ids = torch.randint(0, model.config.vocab_size, (batch, length), generator=random)
        mask = torch.ones_like(ids)
        mask[1:, -3:] = 0
        with torch.no_grad():
            result = model(input_ids=ids, attention_mask=mask).last_hidden_state[:, drop:]
        kept = mask[:, drop:].float()
        values = (result * kept[..., None], kept)
        yield {"input_ids": ids, "attention_mask": mask}, dict(zip(outputs, values, strict=True))


def _qwen_model(folder: Path, prefix: str) -> Any:
    """The original text model in float32, without the rest of its checkpoint."""
    from safetensors.torch import load_file

    config = Qwen2_5_VLConfig.from_pretrained(folder).text_config
    weights: Mapping[str, torch.Tensor] = {}
    for file in checkpoint.paths(folder):
        weights = weights | load_file(file)
    model: Any = Qwen2_5_VLTextModel(config).eval()
    own = {name.removeprefix(prefix): w.float() for name, w in weights.items() if name.startswith(prefix)}
    model.load_state_dict(own, strict=True)
    return model
