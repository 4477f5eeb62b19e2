import json
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
    layer = "transformer_blocks.0.attn.to_q"
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


def test_diffusers_settings_hold_alpha(transformer_folder: Path, tmp_path: Path) -> None:
    layer = "transformer_blocks.0.attn.to_q"
    weight = weights_of(transformer_folder)[f"{layer}.weight"]
    down, up = pair(*weight.shape)
    settings = {"transformer.lora_alpha": 5, "transformer.r": RANK, "transformer.alpha_pattern": {}}
    save_file(peft(layer, down, up), tmp_path / "a.safetensors", {"lora_adapter_metadata": json.dumps(settings)})
    with merged(transformer_folder, [(tmp_path / "a.safetensors", 1.0)], tmp_path) as copy:
        after = weights_of(copy)[f"{layer}.weight"]
    assert close(after, (weight.float() + 5 / RANK * up @ down).half())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t | {"text_encoder.layers.0.q.lora_A.weight": torch.zeros(2, 2)}, "text_encoder.layers.0.q"),
        (lambda t: t | {"transformer.x.lora_magnitude_vector": torch.zeros(2)}, "lora_magnitude_vector"),
        (lambda t: {k.replace("blocks.0", "blocks.9"): v for k, v in t.items()}, "belong to no layer"),
        (lambda t: {k: v for k, v in t.items() if "lora_B" not in k}, "belong to no layer"),
        (lambda t: {k: torch.zeros(2, 7) if "lora_A" in k else v for k, v in t.items()}, "would change by"),
        (lambda _: {}, "holds no layers"),
    ],
)
def test_what_fits_nothing_is_an_error(
    change: Callable[[Tensors], Mapping[str, Any]], message: str, transformer_folder: Path, tmp_path: Path
) -> None:
    layer = "transformer_blocks.0.attn.to_q"
    down, up = pair(*weights_of(transformer_folder)[f"{layer}.weight"].shape)
    save_file(dict(change(peft(layer, down, up))), tmp_path / "a.safetensors")
    with (
        pytest.raises(ExportError, match=message),
        merged(transformer_folder, [(tmp_path / "a.safetensors", 1.0)], tmp_path),
    ):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_an_engine_with_an_adapter_is_another_engine(tmp_path: Path) -> None:
    write_pipeline("pixart", tmp_path / "model", torch.float16)
    layer = "transformer_blocks.3.ff.net.2"
    weight = weights_of(tmp_path / "model" / "transformer")[f"{layer}.weight"]
    save_file(peft(layer, *pair(*weight.shape)), tmp_path / "a.safetensors")
    manifests = []
    for name, lora in (("plain", ()), ("styled", ((tmp_path / "a.safetensors", 1.0),))):
        # The check compares every graph, and the chain, with diffusers' model over the merged weights.
        options = Options(check=True, content_hash=False, size=(128, 128), lora=lora)
        export(tmp_path / "model", tmp_path / name, options, lambda _: None)
        manifests.append(json.loads((tmp_path / name / "manifest.json").read_text("utf-8")))
    plain, styled = manifests
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
