"""A FLUX pipeline's text encoders: CLIP's pooled output and T5's states."""

from __future__ import annotations

__all__ = ["FluxText", "flux_text"]

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import CLIPTextConfig, CLIPTextModel, T5Config

from dbcache_export import checkpoint, spec
from dbcache_export.encoders import t5, tokenizer
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
        "clip": tokenizer(clip_tokenizer, clip_tokens),
        "t5": tokenizer(t5_tokenizer, _T5_TOKENS[embeds_guidance]),
    }
    clip = checkpoint.read(clip_folder, "clip")
    states = Tensor("f32", ("batch", "text", T5Config.from_pretrained(t5_folder).d_model))
    # Padding is attended to, as FLUX was trained.
    long = t5(t5_folder, "text_001.onnx", states, options, fake, ("prompt_embeds",))
    graphs = [
        (_clip(clip_folder, clip, options, fake), {"input_ids": ("clip", "ids")}),
        (long.graph, {"input_ids": ("t5", "ids")}),
    ]
    return FluxText(
        spec.Text(tokenizers, graphs, unconditional=""),
        {"clip": clip, "t5": long.checkpoint},
        # Position ids are a table of 0, 1, 2 … that old versions saved; the other is the tied copy of `shared`.
        {"clip": ("text_model.embeddings.position_ids", "embeddings.position_ids"), "t5": long.ignored},
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
