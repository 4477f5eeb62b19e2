import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dbcache_export import checkpoint
from dbcache_export.cli import parse
from dbcache_export.engine import export
from dbcache_export.errors import ExportError
from dbcache_export.lora import merged
from dbcache_export.spec import Options
from dbcache_export.tiny.pictures import write_pipeline

Tensors = dict[str, torch.Tensor]
RANK = 2
LAYER = "transformer_blocks.0.attn.to_q"


def weights_of(folder: Path) -> Tensors:
    found: Tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


def pair(out: int, into: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(RANK, into, generator=random), torch.randn(out, RANK, generator=random)


def close(got: torch.Tensor, expected: torch.Tensor) -> bool:
    """Equal but for the last bit, which the order of the products decides."""
    return torch.allclose(got.float(), expected.float(), rtol=2**-10, atol=1e-6)


def peft(layer: str, down: torch.Tensor, up: torch.Tensor) -> Tensors:
    return {f"transformer.{layer}.lora_A.weight": down, f"transformer.{layer}.lora_B.weight": up}


def wrapped(layer: str, down: torch.Tensor, up: torch.Tensor) -> Tensors:
    return {f"base_model.model.{layer}.lora_A.weight": down, f"base_model.model.{layer}.lora_B.weight": up}


def early(layer: str, down: torch.Tensor, up: torch.Tensor) -> Tensors:
    return {f"transformer.{layer}.lora.down.weight": down, f"transformer.{layer}.lora.up.weight": up}


def joined(layer: str, tensors: Tensors) -> Tensors:
    """The factors of one layer three times over, for a layer that stands for three."""
    down, up = tensors.values()
    return {f"{layer}.lora_A.weight": down, f"{layer}.lora_B.weight": torch.cat([up] * 3)}


def kohya(layer: str, down: torch.Tensor, up: torch.Tensor) -> Tensors:
    name = "lora_unet_" + layer.replace(".", "_")
    return {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(3.0)}


@pytest.mark.parametrize(("style", "alpha"), [(peft, RANK), (wrapped, RANK), (early, RANK), (kohya, 3.0)])
@pytest.mark.parametrize(
    ("family", "layer"),
    [
        ("sd3", "transformer_blocks.1.attn.to_out.0"),
        ("qwen_image", "transformer_blocks.2.img_mlp.net.0.proj"),
        ("flux2", "single_transformer_blocks.0.attn.to_qkv_mlp_proj"),
        ("z_image", "layers.0.attention.to_q"),
        ("pixart", "transformer_blocks.0.attn2.to_k"),
    ],
)
def test_every_layout_adds_the_product(
    family: str, layer: str, style: Callable[..., Tensors], alpha: float, tmp_path: Path
) -> None:
    write_pipeline(family, tmp_path / "model", torch.float16)
    before = weights_of(tmp_path / "model" / "transformer")
    weight = before[f"{layer}.weight"]
    down, up = pair(*weight.shape)
    save_file(style(layer, down, up), tmp_path / "a.safetensors")
    with merged(tmp_path / "model", [(tmp_path / "a.safetensors", 0.5)], tmp_path) as copy:
        after = weights_of(copy / "transformer")
        stored = checkpoint.read(copy / "transformer", "transformer")
    assert (
        stored.shards[0].header_sha256
        != checkpoint.read(tmp_path / "model" / "transformer", "x").shards[0].header_sha256
    )
    expected = (weight.float() + 0.5 * alpha / RANK * up @ down).half()
    assert close(after[f"{layer}.weight"], expected)
    assert {name for name in before if not torch.equal(before[name], after[name])} == {f"{layer}.weight"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "model"]


def test_fluxs_own_names_stand_for_several_layers(transformer_folder: Path, tmp_path: Path) -> None:
    before = weights_of(transformer_folder)
    width = before["transformer_blocks.0.attn.to_q.weight"].shape[0]
    double, single = pair(3 * width, width, 1), pair(7 * width, width, 2)
    tensors = {
        "lora_unet_double_blocks_1_txt_attn_qkv.lora_down.weight": double[0],
        "lora_unet_double_blocks_1_txt_attn_qkv.lora_up.weight": double[1],
        "lora_unet_single_blocks_0_linear1.lora_down.weight": single[0],
        "lora_unet_single_blocks_0_linear1.lora_up.weight": single[1],
        "lora_unet_single_blocks_0_linear1.alpha": torch.tensor(1.0),
    }
    save_file(tensors, tmp_path / "a.safetensors")
    with merged(transformer_folder, [(tmp_path / "a.safetensors", 1.0)], tmp_path) as copy:
        after = weights_of(copy)
    changes = {
        f"transformer_blocks.1.attn.{name}": part @ double[0]
        for name, part in zip(("add_q_proj", "add_k_proj", "add_v_proj"), double[1].chunk(3), strict=True)
    }
    rows = single[1].split([width, width, width, 4 * width])
    changes |= {
        f"single_transformer_blocks.0.{name}": 0.5 * part @ single[0]
        for name, part in zip(("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"), rows, strict=True)
    }
    for layer, change in changes.items():
        expected = (before[f"{layer}.weight"].float() + change).half()
        assert close(after[f"{layer}.weight"], expected), layer
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {f"{layer}.weight" for layer in changes}


def test_adapters_add_up_before_they_are_rounded(transformer_folder: Path, tmp_path: Path) -> None:
    layer = LAYER
    weight = weights_of(transformer_folder)[f"{layer}.weight"]
    pairs = [pair(*weight.shape, seed) for seed in (1, 2)]
    adapters = []
    for number, (one, strength) in enumerate(zip(pairs, (0.25, -1.5), strict=True)):
        save_file(peft(layer, *one), tmp_path / f"{number}.safetensors")
        adapters.append((tmp_path / f"{number}.safetensors", strength))
    with merged(transformer_folder, adapters, tmp_path) as copy:
        after = weights_of(copy)[f"{layer}.weight"]
    total = sum(strength * up @ down for (down, up), (_, strength) in zip(pairs, adapters, strict=True))
    assert close(after, (weight.float() + total).half())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t | {"text_encoder.layers.0.q.lora_A.weight": torch.zeros(2, 2)}, "text_encoder.layers.0.q"),
        (lambda t: t | {"transformer.x.lora_magnitude_vector": torch.zeros(2)}, "lora_magnitude_vector"),
        (lambda t: {k.replace("blocks.0", "blocks.9"): v for k, v in t.items()}, "belong to no layer"),
        (lambda t: {k: torch.zeros(2, 7) if "lora_A" in k else v for k, v in t.items()}, "would change by"),
        (lambda t: {k: v[:1] if "lora_A" in k else v for k, v in t.items()}, "no factors"),
        (lambda t: {k: v[:0] if "lora_A" in k else v[:, :0] for k, v in t.items()}, "lora_A.weight has rank 0"),
        (lambda t: {k: v.reshape(-1) for k, v in t.items()}, "no factors"),
        (lambda t: {k: v.to(torch.int8) for k, v in t.items()}, "lora_A.weight is stored as torch.int8"),
        (lambda t: {k: v * torch.nan if "lora_B" in k else v for k, v in t.items()}, "lora_B.weight holds NaN"),
        (lambda t: {k: v * 0 + torch.inf if "lora_A" in k else v for k, v in t.items()}, "lora_A.weight holds NaN"),
        (lambda t: t | {f"transformer.{LAYER}.alpha": torch.ones(2)}, "alpha has the shape"),
        (lambda t: t | {f"transformer.{LAYER}.alpha": torch.tensor(torch.nan)}, "alpha holds NaN"),
        (lambda _: {}, "holds no layers"),
        # A factor without the other.
        (lambda t: {k: v for k, v in t.items() if "lora_B" not in k}, "lora_A.weight lacks the factor lora_B"),
        (lambda t: {k: v for k, v in t.items() if "lora_A" not in k}, "lora_B.weight lacks the factor lora_A"),
        (lambda _: {f"transformer.{LAYER}.alpha": torch.tensor(1.0)}, "lacks the factor lora_A and lora_B"),
        # A layer twice.
        (lambda t: t | {k.removeprefix("transformer."): v for k, v in t.items()}, "to_q.weight is there twice"),
        (lambda t: t | {k.replace("transformer.", "diffusion_model.", 1): v for k, v in t.items()}, "is there twice"),
        (lambda t: t | kohya(LAYER, *t.values()), "is there twice"),
        (lambda t: t | {k.replace("lora_A", "lora_A.default"): v for k, v in t.items()}, "is there twice"),
        (lambda t: t | joined("diffusion_model.double_blocks.0.img_attn.qkv", t), "to_q.weight is there twice"),
        # What is no factor of a layer.
        (lambda t: {k.replace("lora_A", "lora_A.style"): v for k, v in t.items()}, "adapter name other than 'default'"),
        (lambda t: t | {f"transformer.{LAYER}.lora_B.bias": torch.zeros(32)}, "biases of factors"),
        (lambda t: t | {f"transformer.{LAYER}.dora_scale": torch.zeros(32)}, "DoRA"),
        (lambda t: t | {f"transformer.{LAYER}.diff": torch.zeros(32, 32)}, "whole differences"),
        (lambda t: t | {f"transformer.{LAYER}.diff_b": torch.zeros(32)}, "whole differences"),
        (lambda t: t | {f"lora_unet_{LAYER}.hada_w1_a": torch.zeros(32, 2)}, "LoHa"),
        (lambda t: t | {f"transformer.{LAYER}.lokr_w1": torch.zeros(2, 2)}, "LoKr"),
        (lambda t: t | {f"base_model.model.{LAYER}.oft_R": torch.zeros(2, 2)}, "OFT"),
        (lambda t: t | {f"lora_unet_{LAYER}.scalar": torch.ones(())}, "scales that were trained"),
        (lambda t: t | {f"base_model.model.{LAYER}.lora_E": torch.zeros(2, 1)}, "AdaLoRA"),
        (lambda t: t | {f"base_model.model.{LAYER}.lora_embedding_A": torch.zeros(2, 2)}, "factors of an embedding"),
        (lambda t: t | {f"lora_unet_{LAYER}.lora_mid.weight": torch.zeros(2, 2, 1, 1)}, "lora_mid"),
        (lambda t: t | {f"base_model.model.{LAYER}.bias": torch.zeros(32)}, "whole tensors of the transformer"),
        (lambda t: t | {"base_model.model.proj_out.weight": torch.zeros(16, 32)}, "whole tensors of the transformer"),
        (lambda t: t | {f"transformer.{LAYER}.base_layer.weight": torch.zeros(32, 32)}, "base_layer"),
        (lambda t: t | {"transformer.double_blocks.0.query_norm.scale": torch.zeros(2)}, "control adapter"),
        (lambda t: t | {"transformer_2.x.lora_A.weight": torch.zeros(2, 2)}, "second transformer"),
        (lambda t: t | {"lora_te1_text_model_x.lora_up.weight": torch.zeros(2, 2)}, "text encoder"),
        (lambda t: t | {"text_encoders.clip_l.transformer.x.lora_A.weight": torch.zeros(2, 2)}, "text encoder"),
        (lambda t: t | {"unet.down_blocks.0.q.lora_A.weight": torch.zeros(2, 2)}, "U-Net"),
        (lambda t: t | {"lora_unet_double_blocks_0_norm.lora_up.weight": torch.zeros(2, 2)}, "belong to no layer"),
        (lambda t: t | {"lora_unet_distilled_guidance_layer.alpha": torch.zeros(())}, "belong to no layer"),
    ],
)
def test_what_fits_nothing_is_an_error(
    change: Callable[[Tensors], Mapping[str, Any]], message: str, transformer_folder: Path, tmp_path: Path
) -> None:
    down, up = pair(*weights_of(transformer_folder)[f"{LAYER}.weight"].shape)
    tensors = change(peft(LAYER, down, up))
    save_file({name: value.clone() for name, value in tensors.items()}, tmp_path / "a.safetensors")
    with (
        pytest.raises(ExportError, match=message),
        merged(transformer_folder, [(tmp_path / "a.safetensors", 1.0)], tmp_path),
    ):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.mark.parametrize(
    ("scales", "weights", "message"),
    [
        ((0.0,), (1.0,), "0.safetensors changes nothing"),
        ((1.0, 0.0), (1.0, 1.0), "1.safetensors changes nothing"),
        ((1.0,), (1e-9,), "changes nothing once rounded"),
        ((1.0, 1.0), (0.5, -0.5), "changes nothing once rounded"),
        ((1.0,), (1e9,), "0.safetensors makes transformer_blocks.0.attn.to_q.weight NaN or infinite"),
        ((1.0, 1.0), (1.0, -1e9), "1.safetensors makes transformer_blocks.0.attn.to_q.weight NaN or infinite"),
        ((1e30, 1.0), (1e30, 1.0), "0.safetensors makes transformer_blocks.0.attn.to_q.weight NaN or infinite"),
    ],
)
def test_a_merge_changes_something_and_stays_finite(
    scales: tuple[float, ...], weights: tuple[float, ...], message: str, transformer_folder: Path, tmp_path: Path
) -> None:
    down, up = pair(*weights_of(transformer_folder)[f"{LAYER}.weight"].shape)
    adapters = []
    for number, (scale, weight) in enumerate(zip(scales, weights, strict=True)):
        save_file(peft(LAYER, down, scale * up), tmp_path / f"{number}.safetensors")
        adapters.append((tmp_path / f"{number}.safetensors", weight))
    with pytest.raises(ExportError, match=message), merged(transformer_folder, adapters, tmp_path):
        pass
    assert len(list(tmp_path.iterdir())) == len(adapters)


def test_a_transformer_that_is_not_finite_is_not_the_adapters_fault(tmp_path: Path, transformer_folder: Path) -> None:
    shutil.copytree(transformer_folder, tmp_path / "model")
    file = tmp_path / "model" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors[f"{LAYER}.weight"][0, 0] = torch.nan
    save_file(tensors, file)
    save_file(peft(LAYER, *pair(*tensors[f"{LAYER}.weight"].shape)), tmp_path / "a.safetensors")
    with (
        pytest.raises(ExportError, match=f"{LAYER}.weight of the transformer holds NaN"),
        merged(tmp_path / "model", [(tmp_path / "a.safetensors", 1.0)], tmp_path),
    ):
        pass


def test_an_engine_with_an_adapter_is_another_engine(tmp_path: Path) -> None:
    write_pipeline("pixart", tmp_path / "model", torch.float16)
    layer = "transformer_blocks.3.ff.net.2"
    weight = weights_of(tmp_path / "model" / "transformer")[f"{layer}.weight"]
    save_file(peft(layer, *pair(*weight.shape)), tmp_path / "a.safetensors")
    manifests, said = [], []
    for name, lora in (("plain", ()), ("styled", ((tmp_path / "a.safetensors", 1.0),))):
        # The check compares every graph, and the chain, with diffusers' model over the merged weights.
        options = Options(check=True, content_hash=False, size=(128, 128), lora=lora)
        export(tmp_path / "model", tmp_path / name, options, said.append)
        manifests.append(json.loads((tmp_path / name / "manifest.json").read_text("utf-8")))
    plain, styled = manifests
    assert [text for text in said if "a.safetensors" in text] == [
        "merging a.safetensors (layers: 1), weight 1 · scale 1 (alpha: no alpha)"
    ]
    assert plain["name"] == styled["name"] == "model"
    assert styled["exported_with"]["lora 1 a.safetensors"].startswith("1 ")
    assert plain["weights"][0]["header_sha256"] != styled["weights"][0]["header_sha256"]
    assert styled["weights"][0]["folder"] is None
    assert [path.name for path in (tmp_path / "styled").glob("*.safetensors")] == ["transformer.safetensors"]


@pytest.mark.parametrize("text", ["a.safetensors", "a.safetensors:", "a.safetensors:0", "a.safetensors:nan", ":1"])
def test_a_weight_must_be_a_number_that_does_something(text: str, transformer_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"")
    with pytest.raises(SystemExit):
        parse([str(transformer_folder), str(tmp_path / "e"), "--lora", text.replace("a.", f"{tmp_path}/a.")])
    given = parse([str(transformer_folder), str(tmp_path / "e"), "--lora", f"{tmp_path}/a.safetensors:0.5"])[2]
    assert given.lora == ((tmp_path / "a.safetensors", 0.5),)
