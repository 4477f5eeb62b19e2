"""A FLUX pipeline's text encoders: CLIP's pooled output and T5's states."""

from __future__ import annotations

__all__ = ["FluxText", "flux_text"]

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoTokenizer, CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from dbcache_export import checkpoint, spec
from dbcache_export.errors import ExportError
from dbcache_export.spec import Case, Graph, Options, Template, Tensor
from dbcache_export.template import fake_module

#: Tokens of T5: what diffusers' pipeline takes, and what the model distilled to few steps was trained with.
_T5_TOKENS = {True: 512, False: 256}


@dataclass(frozen=True)
class FluxText:
    """The text encoders' share of a Plan."""

    text: spec.Text
    checkpoints: dict[str, checkpoint.Checkpoint]
    ignored: dict[str, Sequence[str]]


def flux_text(folder: Path, options: Options, fake: FakeTensorMode, *, embeds_guidance: bool) -> FluxText | None:
    """Both encoders of a pipeline; None for a folder without text encoders.

    Raises:
        ExportError: The pipeline is incomplete, or a tokenizer cannot be read.
    """
    parts = [folder / name for name in ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")]
    missing = [part.name for part in parts if not part.is_dir()]
    if len(missing) == len(parts):
        return None
    if missing:
        raise ExportError(
            f"{folder} lacks {', '.join(missing)}", "complete the pipeline, or give its transformer folder"
        )
    clip_folder, t5_folder, clip_tokenizer, t5_tokenizer = parts
    clip_tokens = CLIPTextConfig.from_pretrained(clip_folder).max_position_embeddings
    tokenizers = {
        "clip": _tokenizer(clip_tokenizer, clip_tokens),
        "t5": _tokenizer(t5_tokenizer, _T5_TOKENS[embeds_guidance]),
    }
    clip = checkpoint.read(clip_folder, "clip")
    t5 = checkpoint.read(t5_folder, "t5")
    graphs = [
        (_clip(clip_folder, clip, options, fake), {"input_ids": ("clip", "ids")}),
        (_t5(t5_folder, t5, options, fake, tokenizers["t5"].length), {"input_ids": ("t5", "ids")}),
    ]
    return FluxText(
        spec.Text(tokenizers, graphs, unconditional=""),
        {"clip": clip, "t5": t5},
        # Position ids are a table of 0, 1, 2 … that old versions saved; the other is the tied copy of `shared`.
        {"clip": ("text_model.embeddings.position_ids", "embeddings.position_ids"), "t5": _tied(t5)},
    )


class _Clip(nn.Module):
    def __init__(self, model: CLIPTextModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """[batch, tokens] to [batch, width]: the state at the end of the text, after the last norm."""
        positions = torch.arange(input_ids.shape[1])[None]  # the model's own table has no data while tracing
        pooled: torch.Tensor = self.model(input_ids=input_ids, position_ids=positions).pooler_output
        return pooled.float()


class _T5(nn.Module):
    def __init__(self, model: T5EncoderModel) -> None:
        super().__init__()
        self.encoder = model.encoder

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """[batch, text] to [batch, text, width]; padding is attended to, as FLUX was trained."""
        states: torch.Tensor = self.encoder(input_ids=input_ids).last_hidden_state
        return states.float()


def _clip(folder: Path, stored: checkpoint.Checkpoint, options: Options, fake: FakeTensorMode) -> Graph:
    config = CLIPTextConfig.from_pretrained(folder)
    module = fake_module(fake, options.compute, lambda: _Clip(CLIPTextModel(config)))
    inputs = {"input_ids": Tensor("i64", ("batch", config.max_position_embeddings))}
    outputs = {"pooled_projections": Tensor("f32", ("batch", config.hidden_size))}
    prefix = "text_model." if any(name.startswith("text_model.") for name in stored.parameters) else ""
    return Graph(
        "text_000.onnx",
        Template("clip", module, inputs, outputs),
        "clip",
        lambda name: prefix + name.removeprefix("model."),
        cases=lambda: _clip_cases(folder),
    )


def _t5(folder: Path, stored: checkpoint.Checkpoint, options: Options, fake: FakeTensorMode, tokens: int) -> Graph:
    config = T5Config.from_pretrained(folder)

    def build() -> nn.Module:
        model = T5EncoderModel(config)
        if options.compute == "f16":  # this layer overflows in float16; transformers keeps it in float32 as well
            for block in model.modules():
                if isinstance(wide := getattr(block, "wo", None), nn.Linear):
                    block.wo = nn.Linear(wide.in_features, wide.out_features, bias=False, dtype=torch.float32)
        return _T5(model)

    tied = _tied(stored)
    shared = "shared.weight" if tied or "shared.weight" in stored.parameters else "encoder.embed_tokens.weight"
    module = fake_module(fake, options.compute, build)
    inputs = {"input_ids": Tensor("i64", ("batch", "text"))}
    outputs = {"prompt_embeds": Tensor("f32", ("batch", "text", config.d_model))}
    return Graph(
        "text_001.onnx",
        Template("t5", module, inputs, outputs),
        "t5",
        lambda name: shared if name == "encoder.embed_tokens.weight" else name,
        cases=lambda: _t5_cases(folder, tokens),
    )


def _tied(stored: checkpoint.Checkpoint) -> Sequence[str]:
    """The second name of the token table, in checkpoints that have both."""
    both = {"shared.weight", "encoder.embed_tokens.weight"} <= set(stored.parameters)
    return ("encoder.embed_tokens.weight",) if both else ()


def _tokenizer(folder: Path, most: int) -> spec.Tokenizer:
    """The fast tokenizer of a folder; it cuts before the end token, which a cut outside would lose."""
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        length = min(most, tokenizer.model_max_length)
        fast = tokenizer.backend_tokenizer
        fast.no_padding()
        fast.enable_truncation(length)
        pad_id = int(tokenizer.pad_token_id)
    except Exception as error:  # transformers raises whatever the file made it stumble over
        raise ExportError(f"{folder} holds no usable tokenizer ({error})", "complete the pipeline folder") from error
    pretty = json.dumps(json.loads(fast.to_str()), ensure_ascii=False, separators=(",", ":"))
    return spec.Tokenizer(pretty, length, pad_id)


def _clip_cases(folder: Path) -> Iterator[Case]:
    """Sentences of different lengths, closed and padded with the end token."""
    model: Any = CLIPTextModel.from_pretrained(folder, torch_dtype=torch.float32).eval()
    config = model.config
    end = config.vocab_size - 1 if config.eos_token_id == 2 else config.eos_token_id
    for batch in (1, 2):
        random = torch.Generator().manual_seed(batch)
        ids = torch.randint(0, config.vocab_size, (batch, config.max_position_embeddings), generator=random)
        ids[ids == end] = (end + 1) % config.vocab_size
        for row in range(batch):
            ids[row, 5 + 9 * row :] = end
        with torch.no_grad():
            yield {"input_ids": ids}, {"pooled_projections": model(input_ids=ids).pooler_output}


def _t5_cases(folder: Path, tokens: int) -> Iterator[Case]:
    """Texts of the full and of another length; zeros are padding."""
    model: Any = T5EncoderModel.from_pretrained(folder, torch_dtype=torch.float32).eval()
    for batch, length in ((1, tokens), (2, min(tokens, 13))):
        random = torch.Generator().manual_seed(batch)
        ids = torch.randint(0, model.config.vocab_size, (batch, length), generator=random)
        ids[:, length // 2 :] = 0
        with torch.no_grad():
            yield {"input_ids": ids}, {"prompt_embeds": model(input_ids=ids).last_hidden_state}
