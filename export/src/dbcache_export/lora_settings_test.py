"""Where alpha may stand, and what is refused: a factor file of rank 4 with alpha 8 has scale 2."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dbcache_export.errors import ExportError
from dbcache_export.lora import merged, provenance

RANK, ALPHA, WIDTH = 4, 8, 32
LAYER = "transformer_blocks.0.attn.to_q"
CONFIG = "adapter_config.json"


def layer(name: str, alpha: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    ends = ("lora_down", "lora_up") if name.startswith("lora_") else ("lora_A", "lora_B")
    down, up = torch.randn(RANK, WIDTH, generator=random), torch.randn(WIDTH, RANK, generator=random)
    found = {f"{name}.{ends[0]}.weight": down, f"{name}.{ends[1]}.weight": up}
    return found if alpha is None else found | {f"{name}.alpha": alpha}


PLAIN = layer(f"transformer.{LAYER}")
KOHYA = layer("lora_unet_double_blocks_0_img_attn_proj")
WITH_ALPHA = layer(f"transformer.{LAYER}", torch.tensor(float(ALPHA)))


def doc(**settings: Any) -> str:
    return json.dumps({"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA} | settings)


def diffusers(**settings: Any) -> dict[str, str]:
    own = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA} | settings
    return {"lora_adapter_metadata": json.dumps({f"transformer.{name}": value for name, value in own.items()})}


def merge(
    folder: Path, tmp_path: Path, tensors: Mapping[str, torch.Tensor], header: Mapping[str, str], config: str | None
) -> tuple[float, list[str]]:
    """The strength with which the adapter was added, and what was said of it."""
    save_file(dict(tensors), tmp_path / "a.safetensors", {"format": "pt"} | dict(header))
    if config is not None:
        (tmp_path / CONFIG).write_text(config)
    said: list[str] = []
    before = load_file(folder / "diffusion_pytorch_model.safetensors")
    with merged(folder, [(tmp_path / "a.safetensors", 1.0)], tmp_path, said.append) as copy:
        after = load_file(copy / "diffusion_pytorch_model.safetensors")
    (changed,) = [name for name in before if not torch.equal(before[name], after[name])]
    down, up = list(tensors.values())[:2]
    product = (up @ down).flatten()
    difference = (after[changed].float() - before[changed].float()).flatten()
    return float(difference @ product / (product @ product)), said


@pytest.mark.parametrize(
    ("tensors", "header", "config"),
    [
        (WITH_ALPHA, {}, None),
        (PLAIN, {}, doc()),
        (PLAIN, {}, json.dumps({"lora_alpha": ALPHA})),
        (PLAIN, {}, json.dumps({"r": RANK})),  # PEFT's default is 8
        (PLAIN, {}, doc(alpha_pattern={r"transformer_blocks\.\d+\.attn\.to_[qk]": 8}, lora_alpha=1)),
        (PLAIN, {}, doc(use_rslora=True, lora_alpha=4)),
        (PLAIN, {}, doc(use_rslora=True, lora_alpha=4, r=9, rank_pattern={"to_q": RANK})),
        (PLAIN, {"lora_alpha": "8"}, None),
        (PLAIN, {"alpha": "8.0"}, None),
        (PLAIN, {"network_alpha": "8"}, None),
        (PLAIN, {"ss_network_alpha": "8.0"}, None),
        (PLAIN, {"ss_network_alpha": "8", "ss_network_dim": "4"}, None),
        (PLAIN, {"transformer.lora_alpha": "8"}, None),
        (PLAIN, {"transformer.network_alpha": "8"}, None),
        (PLAIN, {"diffusion_model.alpha": "8"}, None),
        (PLAIN, {"base_model.model.lora_alpha": "8"}, None),
        (PLAIN, {"unet.lora_alpha": "8"}, None),
        (PLAIN, {"lora_unet_alpha": "8"}, None),
        (PLAIN, {"lora_unet.network_alpha": "8"}, None),
        (PLAIN, {"lora_transformer_lora_alpha": "8"}, None),
        (PLAIN, {f"transformer.{LAYER}.alpha": "8"}, None),
        (PLAIN, {"network_alphas": json.dumps({f"transformer.{LAYER}.alpha": 8})}, None),
        (PLAIN, {"rank": "4", "lora_alpha": "8", "text_encoder.lora_alpha": "1", "lora_te_alpha": "1"}, None),
        (PLAIN, {"lora_alpha": "4", "use_rslora": "True"}, None),
        (PLAIN, diffusers(), None),
        (PLAIN, diffusers() | {"lora_alpha": "8", "ss_network_alpha": "8"}, doc()),
        (PLAIN, {"lora_adapter_metadata": doc()}, None),
        (PLAIN, {"transformer.lora_adapter_metadata": doc()}, None),
        (PLAIN, {"adapter_config": doc()}, None),
        (PLAIN, {"lora_config": json.dumps({"rank": RANK, "alpha": ALPHA})}, None),
        (PLAIN, diffusers(use_rslora=False, init_lora_weights="gaussian", bias="none", modules_to_save=None), None),
        (PLAIN, {"ss_network_alpha": "None"}, doc()),
        (KOHYA, {"ss_network_alpha": "8", "ss_network_dim": "4", "ss_network_module": "networks.lora_flux"}, None),
        (KOHYA, {"ss_network_alpha": "8"}, None),
        (WITH_ALPHA, {"ss_network_alpha": "Dynamic", "ss_network_dim": "Dynamic"}, None),
        (WITH_ALPHA, {"ss_network_alpha": "8", "ss_network_dim": "4", "sshs_model_hash": "0"}, doc()),
        (layer(f"transformer.{LAYER}", torch.tensor([8], dtype=torch.bfloat16)), {"lora_alpha": "8.01"}, None),
    ],
)
def test_alpha_counts_wherever_it_stands(
    tensors: Mapping[str, torch.Tensor],
    header: Mapping[str, str],
    config: str | None,
    transformer_folder: Path,
    tmp_path: Path,
) -> None:
    scale, said = merge(transformer_folder, tmp_path, tensors, header, config)
    assert scale == pytest.approx(2, rel=2e-3)
    assert len(said) == 1 and said[0].startswith("merging a.safetensors (layers: 1), weight 1 · scale 2 (alpha: ")


@pytest.mark.parametrize(
    "header",
    [
        {},
        {"text_encoder.lora_alpha": "8"},
        {"software": '{"alpha": 8}'},
        {"lora_adapter_metadata": json.dumps({"text_encoder.lora_alpha": 8, "text_encoder.r": 4})},
    ],
)
def test_without_alpha_the_scale_is_one(header: Mapping[str, str], transformer_folder: Path, tmp_path: Path) -> None:
    scale, texts = merge(transformer_folder, tmp_path, PLAIN, header, None)
    assert scale == pytest.approx(1, rel=2e-3)
    assert texts == ["merging a.safetensors (layers: 1), weight 1 · scale 1 (alpha: no alpha)"]


ROOT = {"use_rslora": True}
#: By the message: tensors, header, adapter_config.json.
REFUSED: list[tuple[str, Mapping[str, torch.Tensor], Mapping[str, str], str | None]] = [
    # Places that disagree.
    ("alpha of .* 8.0 in its alpha tensor, 4 in adapter_config.json", WITH_ALPHA, {}, doc(lora_alpha=4)),
    ("8.0 in its alpha tensor, 1 in its header", WITH_ALPHA, {"lora_alpha": "1"}, None),
    ("8.0 in its alpha tensor, 1 in kohya's entries", WITH_ALPHA, {"ss_network_alpha": "1"}, None),
    ("8 in adapter_config.json beside it, 4 in lora_adapter_metadata", PLAIN, diffusers(lora_alpha=4), doc()),
    ("lora_alpha is 4 in network_alpha of its header, 8", PLAIN, {"alpha": "8", "network_alpha": "4"}, None),
    ("4 in kohya's entries", PLAIN, {"alpha": "8", "ss_network_alpha": "4"}, None),
    ("use_rslora is", PLAIN, diffusers(use_rslora=False), doc(**ROOT)),
    ("asks for its root", WITH_ALPHA, {}, doc(**ROOT)),
    ("says rank 8 of transformer_blocks.0.attn.to_q, its factors have 4", PLAIN, {}, doc(r=8)),
    ("says rank 8 of", PLAIN, {"rank": "8"}, None),
    ("says rank 2 of", PLAIN, {}, doc(rank_pattern={".*to_q": 2})),
    ("says rank 16, its layers have 4", WITH_ALPHA, {"ss_network_dim": "16"}, None),
    (
        "which exclude_modules, target_modules of .* leave out",
        PLAIN,
        {},
        doc(exclude_modules=["to_q"], target_modules=["to_k"]),
    ),
    ("which target_modules of .* leave out", PLAIN, {}, doc(target_modules=["to_k"])),
    (
        "leave out",
        PLAIN,
        {},
        doc(target_modules=["to_q"], layers_to_transform=[1], layers_pattern="transformer_blocks"),
    ),
    ("may have multiplied the factors", PLAIN, {"ss_network_alpha": "8", "sshs_model_hash": "0"}, None),
    ("has an alpha of its own", PLAIN, {"ss_network_alpha": "Dynamic"}, None),
    ("has an alpha for proj_out, the file has no such layer", PLAIN, {"proj_out.alpha": "8"}, None),
    ("several alphas|alpha for", PLAIN, {"network_alphas": json.dumps({"transformer.x.alpha": 8})}, None),
    ("is 8 in its header, 4 in another", PLAIN, {f"{LAYER}.alpha": "8", f"transformer.{LAYER}.alpha": "4"}, None),
    # What cannot be read.
    ("lora_adapter_metadata in its header is no JSON", PLAIN, {"lora_adapter_metadata": "{"}, None),
    ("lora_adapter_metadata in its header is no JSON object but list", PLAIN, {"lora_adapter_metadata": "[1]"}, None),
    ("is no JSON object but NoneType", PLAIN, {"lora_adapter_metadata": "null"}, None),
    ("adapter_config.json beside it is no JSON", PLAIN, {}, ""),
    ("adapter_config.json beside it is no JSON object", PLAIN, {}, '"x"'),
    ("network_alphas in its header is no JSON", PLAIN, {"network_alphas": "8"}, None),
    ("lora_alpha in its header is 'eight', not a number", PLAIN, {"lora_alpha": "eight"}, None),
    ("is nan, not a number", PLAIN, {"alpha": "NaN"}, None),
    ("has lora_alpha twice", PLAIN, {}, '{"lora_alpha": 8, "lora_alpha": 4}'),
    ("000, not a number", PLAIN, {}, doc(lora_alpha=10**400)),
    ("is None, not a number", PLAIN, {}, doc(lora_alpha=None)),
    ("is '8', not a number", PLAIN, {}, doc(lora_alpha="8")),
    ("is True, not a number", PLAIN, {}, doc(lora_alpha=True)),
    ("ss_network_alpha in its header is 'x', not a number", PLAIN, {"ss_network_alpha": "x"}, None),
    ("is 0, not a rank", PLAIN, {}, doc(r=0)),
    ("is 'yes', not true or false", PLAIN, {}, doc(use_rslora="yes")),
    (r"is \[1\], not numbers by layer", PLAIN, {}, doc(alpha_pattern=[1])),
    ("not numbers by layer", PLAIN, {}, doc(alpha_pattern={"to_q": "8"})),
    ("not ranks by layer", PLAIN, {}, doc(rank_pattern={"to_q": None})),
    ("alpha_pattern of .* holds no regular expressions", PLAIN, {}, doc(alpha_pattern={"to_(": 8})),
    ("cannot be read", PLAIN, {}, doc(target_modules="to_(")),
    ("dit.lora_alpha|an alpha for dit", PLAIN, {"dit.lora_alpha": "8"}, None),
    (
        "transformer_lora_alpha in its header is a setting that is not known",
        PLAIN,
        {"transformer_lora_alpha": "8"},
        None,
    ),
    ("use_new in adapter_config.json beside it is a setting that is not known", PLAIN, {}, doc(use_new=True)),
    # What asks for more than two factors.
    *(
        (f"{name} .* in adapter_config.json beside it asks for more", PLAIN, {}, doc(**{name: value}))
        for name, value in {
            "use_dora": True,
            "fan_in_fan_out": True,
            "lora_bias": True,
            "bias": "all",
            "peft_type": "LOHA",
            "modules_to_save": ["proj_out"],
            "target_parameters": ["x"],
            "trainable_token_indices": [1],
            "layer_replication": [[0, 1]],
            "init_lora_weights": "pissa",
            "use_qalora": True,
            "alora_invocation_tokens": [1],
            "kasa_config": {"beta": 1},
        }.items()
    ),
    ("transformer.use_dora True in lora_adapter_metadata", PLAIN, diffusers(use_dora=True), None),
    ("use_dora True in its header", PLAIN, {"use_dora": "true"}, None),
    ("peft_type 'OFT' in its header", PLAIN, {"transformer.peft_type": "OFT"}, None),
]


@pytest.mark.parametrize(("message", "tensors", "header", "config"), REFUSED)
def test_settings_that_cannot_count_are_an_error(
    message: str,
    tensors: Mapping[str, torch.Tensor],
    header: Mapping[str, str],
    config: str | None,
    transformer_folder: Path,
    tmp_path: Path,
) -> None:
    with pytest.raises(ExportError, match=message):
        merge(transformer_folder, tmp_path, tensors, header, config)


def test_joined_layers_have_one_alpha(transformer_folder: Path, tmp_path: Path) -> None:
    name = "lora_unet_double_blocks_0_img_attn_qkv"
    tensors = {
        f"{name}.lora_down.weight": torch.ones(RANK, WIDTH),
        f"{name}.lora_up.weight": torch.ones(3 * WIDTH, RANK),
    }
    with pytest.raises(ExportError, match="to_v apart, the file has joined them"):
        merge(transformer_folder, tmp_path, tensors, diffusers(alpha_pattern={"to_q": 4}), None)


def test_settings_of_another_file_in_the_folder_are_not_guessed_at(transformer_folder: Path, tmp_path: Path) -> None:
    save_file(PLAIN, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ExportError, match="describes one of them; move"):
        merge(transformer_folder, tmp_path, PLAIN, {}, doc())


def test_the_settings_beside_an_adapter_are_part_of_what_it_is(tmp_path: Path) -> None:
    save_file(PLAIN, tmp_path / "a.safetensors")
    records = [provenance([(tmp_path / "a.safetensors", 0.5)])]
    for alpha in (4, 8):
        (tmp_path / CONFIG).write_text(doc(lora_alpha=alpha))
        records.append(provenance([(tmp_path / "a.safetensors", 0.5)]))
    assert len({record["lora 1 a.safetensors"] for record in records}) == 3
