"""Small text encoders with their tokenizers, and small autoencoders, as the folders of a pipeline."""

from __future__ import annotations

__all__ = [
    "write_clip",
    "write_flux2_vae",
    "write_kl",
    "write_llama",
    "write_mistral",
    "write_qwen",
    "write_qwen3",
    "write_qwen_vae",
    "write_t5",
    "write_texts",
    "write_umt5",
]

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderKLFlux2, AutoencoderKLQwenImage
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    LlamaConfig,
    LlamaModel,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)

from dbcache_export.tiny import save

#: Of Z-Image's and FLUX.2's pipelines, in a few words.
_QWEN_CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% if not enable_thinking %}<think>\n\n</think>\n\n"
    "{% endif %}{% endif %}"
)
_MISTRAL_CHAT = (
    "{{ bos_token }}{% for message in messages %}[{{ message.role }}]{{ message.content[0].text }}[/{{ message.role }}]"
    "{% endfor %}"
)

#: Of language models; FLUX.2 takes three layers of a model with thirty.
_LAYERS = 5
_ALPHABET = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<unk>", *"abcdefghijklmnopqrstuvwxyz"]
#: Of CLIP, which takes the token of the highest number for the end of a text.
_PAIRS = ["a b", "a b</w>", "r e", "re d</w>", "c a", "ca t</w>"]
_LETTERS = [
    *(f"{letter}{end}" for end in ("", "</w>") for letter in "abcdefghijklmnopqrstuvwxyz"),
    *(pair.replace(" ", "") for pair in _PAIRS),
    "<|startoftext|>",
    "<|endoftext|>",
]
#: Of T5: words, and letters for all others.
_PIECES = [
    ("<pad>", 0.0),
    ("</s>", 0.0),
    ("<unk>", 0.0),
    *((f"▁{word}", -1.0) for word in ("red", "apple", "cat", "a", "on", "blue", "boat")),
    *((letter, -4.0) for letter in "▁abcdefghijklmnopqrstuvwxyz"),
]


def write_texts(family: str, folder: Path) -> None:
    """The text encoders and the autoencoder of a family in `tiny.pictures`."""
    if family in ("sd3", "sd35"):
        write_clip(folder, "", 10, projection=8)
        write_clip(folder, "_2", 12, projection=12)
        if family == "sd3":
            write_t5(folder, "_3", 24)
        write_kl(folder)
    elif family == "pixart":
        write_t5(folder, "", 24)
        write_kl(folder)
    elif family == "qwen_image":
        write_qwen(folder, 24)
        write_qwen_vae(folder)
    elif family == "flux2":
        write_mistral(folder, 8)
        write_flux2_vae(folder)
    elif family == "z_image":
        write_qwen3(folder, 24)
        write_kl(folder)
    else:
        write_kl(folder)


def write_clip(folder: Path, number: str, width: int, projection: int | None = None) -> None:
    """CLIP with a byte-pair tokenizer over letters."""
    ids = {token: i for i, token in enumerate(_LETTERS)}
    # As in published models: ids of the ends in config.json that are not those of the vocabulary.
    config = CLIPTextConfig(
        vocab_size=len(ids),
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=projection or width,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=77,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=1,
    )
    save((CLIPTextModelWithProjection if projection else CLIPTextModel)(config), folder / f"text_encoder{number}")
    target = folder / f"tokenizer{number}"
    target.mkdir(parents=True)
    (target / "vocab.json").write_text(json.dumps(ids))
    (target / "merges.txt").write_text("\n".join(["#version: 0.2", *_PAIRS, ""]))
    ends = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    settings = {
        "pad_token": "<|endoftext|>",
        "model_max_length": 77,
        "tokenizer_class": "CLIPTokenizer",
        "do_lower_case": True,
    }
    (target / "tokenizer_config.json").write_text(json.dumps(ends | settings))


def write_t5(folder: Path, number: str, width: int) -> None:
    """T5 with a tokenizer of a few words, and of letters."""
    config = T5Config(
        vocab_size=len(_PIECES),
        d_model=width,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_heads=2,
        feed_forward_proj="gated-gelu",
        relative_attention_num_buckets=8,
        relative_attention_max_distance=20,
        tie_word_embeddings=False,  # of the output layer; the encoder shares its table all the same
    )
    save(T5EncoderModel(config), folder / f"text_encoder{number}")
    tokenizer = Tokenizer(models.Unigram(_PIECES, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    _save_tokenizer(tokenizer, names, folder / f"tokenizer{number}")


def write_umt5(folder: Path, width: int) -> None:
    """UMT5 with the tokenizer of the tiny T5."""
    write_t5(folder, "", width)
    config = UMT5Config(
        vocab_size=len(_PIECES),
        d_model=width,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_heads=2,
        relative_attention_num_buckets=8,
        relative_attention_max_distance=20,
    )
    shutil.rmtree(folder / "text_encoder")
    save(UMT5EncoderModel(config), folder / "text_encoder")


def write_qwen(folder: Path, width: int) -> None:
    """Qwen2.5-VL with its visual half, and a tokenizer of single letters."""
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(_ALPHABET),
            "hidden_size": width,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": 2048,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 2, 2]},
        },
        vision_config={
            "depth": 1,
            "hidden_size": 16,
            "out_hidden_size": width,
            "intermediate_size": 16,
            "num_heads": 2,
            "fullatt_block_indexes": [0],
        },
    )
    save(Qwen2_5_VLForConditionalGeneration(config), folder / "text_encoder")
    _write_letters(folder / "tokenizer")


def write_qwen3(folder: Path, width: int, layers: int = _LAYERS) -> None:
    """Qwen3 with a tokenizer of single letters and a chat template."""
    save(Qwen3ForCausalLM(Qwen3Config(**_language(width, layers))), folder / "text_encoder")
    _write_letters(folder / "tokenizer", _QWEN_CHAT)


def write_mistral(folder: Path, width: int, layers: int = _LAYERS) -> None:
    """Mistral with its visual half, and a tokenizer that pads on the left."""
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**_language(width, layers), "model_type": "mistral", "sliding_window": None}
    config = Mistral3Config(text_config=text, vision_config={**vision, "model_type": "pixtral", "head_dim": 8})
    save(Mistral3ForConditionalGeneration(config), folder / "text_encoder")
    _write_letters(folder / "tokenizer", _MISTRAL_CHAT, padding_side="left", bos_token="<|im_start|>")


def write_llama(folder: Path, width: int) -> None:
    """Llama with a tokenizer of letters and of the words that HunyuanVideo asks with, for which it counts 95 tokens."""
    asked = re.findall(r"<\|\w+\|>| ?\w+|\W", DEFAULT_PROMPT_TEMPLATE["template"].partition("{}")[0])
    pieces = dict.fromkeys(("<|endoftext|>", "<unk>", *asked, *" abcdefghijklmnopqrstuvwxyz"))
    scores = [(piece, -4.0 if len(piece) == 1 else -1.0) for piece in pieces]
    save(LlamaModel(LlamaConfig(**_language(width) | {"vocab_size": len(scores)})), folder / "text_encoder")
    names = {"pad_token": "<|endoftext|>", "unk_token": "<unk>"}
    ends = {"additional_special_tokens": [piece for piece in pieces if piece.startswith("<|")]}
    _save_tokenizer(Tokenizer(models.Unigram(scores, unk_id=1)), names | ends, folder / "tokenizer", 2048)


def _language(width: int, layers: int = _LAYERS) -> dict[str, Any]:
    """Arguments that the language models have in common."""
    return {
        "vocab_size": len(_ALPHABET),
        "hidden_size": width,
        "intermediate_size": 24,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
    }


def _write_letters(folder: Path, chat: str | None = None, **settings: Any) -> None:
    """A tokenizer of single letters, which puts the token that begins a text, if any, in front."""
    tokenizer = Tokenizer(models.WordLevel({letter: i for i, letter in enumerate(_ALPHABET)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    if start := settings.get("bos_token"):
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{start} $A", special_tokens=[(start, _ALPHABET.index(start))]
        )
    names = {"pad_token": "<|endoftext|>", "unk_token": "<unk>", "chat_template": chat, **settings}
    ends = {"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]}
    _save_tokenizer(tokenizer, names | ends, folder, 2048)


def write_kl(folder: Path) -> None:
    """An autoencoder of pictures that makes a cell of eight by eight pixels."""
    model = AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=4,
        latent_channels=4,
        scaling_factor=0.36,
        shift_factor=0.12,
    )
    save(model, folder / "vae")


def write_qwen_vae(folder: Path) -> None:
    """Qwen-Image's autoencoder, with four channels."""
    model = AutoencoderKLQwenImage(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 2, 2],
        num_res_blocks=1,
        latents_mean=[-0.7, 0.2, 0.5, -0.1],
        latents_std=[2.8, 1.4, 2.3, 0.6],
    )
    save(model, folder / "vae")


def write_flux2_vae(folder: Path) -> None:
    """FLUX.2's autoencoder, with four channels of its own."""
    model = AutoencoderKLFlux2(block_out_channels=(8, 8, 8, 8), norm_num_groups=4, latent_channels=4)
    random = torch.Generator().manual_seed(0)
    model.bn.running_mean.copy_(torch.randn(16, generator=random))
    model.bn.running_var.copy_(0.5 + torch.rand(16, generator=random))
    save(model, folder / "vae")


def _save_tokenizer(tokenizer: Tokenizer, names: Mapping[str, Any], folder: Path, length: int = 512) -> None:
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=length, **names)
    fast.save_pretrained(folder)
