"""Model folders for the tests: real classes, tiny sizes, random weights, written once per run."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast, T5Config, T5EncoderModel

WIDTH, TEXT_WIDTH, POOLED_WIDTH = 32, 24, 20


@pytest.fixture(autouse=True, scope="session")
def _threads() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def transformer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A FLUX transformer alone, with guidance embedding."""
    folder = tmp_path_factory.mktemp("transformer")
    write_transformer(folder)
    return folder


@pytest.fixture(scope="session")
def emoji_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in the layout of the emoji model."""
    folder = tmp_path_factory.mktemp("emoji")
    write_transformer(
        folder / "transformer",
        in_channels=192,
        joint_attention_dim=24,
        pooled_projection_dim=24,
        guidance_embeds=False,
    )
    (folder / "text").mkdir()
    words = ["<pad>", "<null>", "red", "apple", "cat"]
    (folder / "text" / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    table = {"token_embedding.weight": torch.randn(len(words), 24), "position_embedding": torch.randn(8, 24)}
    save_file({name: value.half() for name, value in table.items()}, folder / "text" / "embedding.safetensors")
    return folder


@pytest.fixture(scope="session")
def pipeline_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole FLUX pipeline in diffusers' layout."""
    folder = tmp_path_factory.mktemp("pipeline")
    write_transformer(folder / "transformer")
    _write_clip(folder)
    _write_t5(folder)
    torch.manual_seed(3)
    AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        latent_channels=4,
        scaling_factor=0.36,
        shift_factor=0.12,
        use_quant_conv=False,
        use_post_quant_conv=False,
    ).save_pretrained(folder / "vae")
    FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True).save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
    (folder / "LICENSE.md").write_text("the licence")
    return folder


def child_environment(**more: str) -> dict[str, str]:
    """For processes that import this package, installed or not."""
    return os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])} | more


def rewrite(file: Path, rename: Callable[[str], str], *, position_ids: bool = False) -> None:
    """Gives the tensors of a file other names."""
    tensors = {rename(name): value for name, value in load_file(file).items()}
    if position_ids:
        tensors["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    save_file(tensors, file, metadata={"format": "pt"})


def write_transformer(folder: Path, dtype: torch.dtype = torch.float16, shard: str = "1GB", **config: object) -> None:
    """Two double and two single blocks, saved as `dtype`, in shards of at most `shard`."""
    torch.manual_seed(0)
    settings = {
        "in_channels": 16,
        "num_layers": 2,
        "num_single_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": TEXT_WIDTH,
        "pooled_projection_dim": POOLED_WIDTH,
        "guidance_embeds": True,
        "axes_dims_rope": (4, 6, 6),
    }
    model = FluxTransformer2DModel(**(settings | config))
    model.to(dtype).save_pretrained(folder, max_shard_size=shard)


def _write_clip(folder: Path) -> None:
    """CLIP with a byte-pair tokenizer over three letters."""
    torch.manual_seed(1)
    vocabulary = [
        "a",
        "b",
        "c",
        "a</w>",
        "b</w>",
        "c</w>",
        "ab",
        "ab</w>",
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    ids = {token: i for i, token in enumerate(vocabulary)}
    # As in FLUX.1: old parameter names, a saved table of positions, ids that are not those of the vocabulary.
    config = CLIPTextConfig(
        vocab_size=len(ids),
        hidden_size=POOLED_WIDTH,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=1,
    )
    CLIPTextModel(config).save_pretrained(folder / "text_encoder")
    rewrite(folder / "text_encoder" / "model.safetensors", lambda name: f"text_model.{name}", position_ids=True)
    target = folder / "tokenizer"
    target.mkdir()
    (target / "vocab.json").write_text(json.dumps(ids))
    (target / "merges.txt").write_text("#version: 0.2\na b\na b</w>\n")
    ends = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    settings = ends | {
        "pad_token": "<|endoftext|>",
        "model_max_length": 77,
        "tokenizer_class": "CLIPTokenizer",
        "do_lower_case": True,
    }
    (target / "tokenizer_config.json").write_text(json.dumps(settings))


def _write_t5(folder: Path) -> None:
    """T5 with a tokenizer of three words."""
    torch.manual_seed(2)
    config = T5Config(
        vocab_size=16,
        d_model=TEXT_WIDTH,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_heads=2,
        feed_forward_proj="gated-gelu",
        relative_attention_num_buckets=8,
        relative_attention_max_distance=20,
        tie_word_embeddings=False,  # of the output layer; the encoder shares its table all the same
    )
    T5EncoderModel(config).save_pretrained(folder / "text_encoder_2")
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁red", -1.0), ("▁apple", -1.0), ("▁cat", -1.0)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=512,
    )
    fast.save_pretrained(folder / "tokenizer_2")
