"""A FLUX pipeline's text encoders: CLIP's pooled output and T5's states."""

from __future__ import annotations

__all__ = ["flux_text"]

from pathlib import Path

from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import CLIPTextConfig, T5Config

from dbcache_export import spec
from dbcache_export.encoders import clip, own_length, t5, tokenizer
from dbcache_export.families.texts import Texts, whole
from dbcache_export.spec import Options, Tensor

#: Tokens of T5: what diffusers' pipeline takes, and what the model distilled to few steps was trained with.
_T5_TOKENS = {True: 512, False: 256}


def flux_text(folder: Path, options: Options, fake: FakeTensorMode, *, embeds_guidance: bool) -> Texts | None:
    """Both encoders of a pipeline; None for a folder without text encoders.

    Raises:
        ExportError: The pipeline is incomplete, or a tokenizer cannot be read.
    """
    parts = whole(folder, ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    if parts is None:
        return None
    clip_folder, t5_folder, clip_tokenizer, t5_tokenizer = parts
    # The pipeline asks CLIP's tokenizer for its length; T5's it tells.
    clip_tokens = own_length(clip_tokenizer, CLIPTextConfig.from_pretrained(clip_folder).max_position_embeddings)
    tokenizers = {
        "clip": tokenizer(clip_tokenizer, clip_tokens),
        "t5": tokenizer(t5_tokenizer, _T5_TOKENS[embeds_guidance]),
    }
    short = clip(clip_folder, "text_000.onnx", "clip", options, fake, ("pooled_projections",), tokens=clip_tokens)
    states = Tensor("f32", ("batch", "text", T5Config.from_pretrained(t5_folder).d_model))
    # Padding is attended to, as FLUX was trained.
    long = t5(t5_folder, "text_001.onnx", tokenizers["t5"].length, states, options, fake, ("prompt_embeds",))
    graphs = [
        (short.graph, {"input_ids": ("clip", "ids")}),
        (long.graph, {"input_ids": ("t5", "ids")}),
    ]
    return Texts(spec.Text(tokenizers, graphs, unconditional=""), [short, long])
