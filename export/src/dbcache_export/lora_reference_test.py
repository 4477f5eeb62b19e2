"""Merges against those of PEFT and diffusers themselves, over float32 weights."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from diffusers.loaders.lora_conversion_utils import _convert_kohya_flux_lora_to_diffusers
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from dbcache_export.conftest import write_transformer
from dbcache_export.lora import merged
from dbcache_export.tiny.pictures import write_pipeline

Tensors = dict[str, torch.Tensor]
WIDTH, RANK = 32, 4
TWO = ["attn.to_q", "ff.net.0.proj"]


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A FLUX.1 transformer in float32."""
    folder = tmp_path_factory.mktemp("flux")
    write_transformer(folder, torch.float32)
    return folder


def weights_of(folder: Path) -> Tensors:
    return load_file(folder / "diffusion_pytorch_model.safetensors")


def same(folder: Path, file: Path, expected: Mapping[str, torch.Tensor], beside: Path) -> set[str]:
    """Checks that the merge gives these weights, and returns the names of those that it changed."""
    before = weights_of(folder)
    with merged(folder, [(file, 1.0)], beside) as copy:
        after = weights_of(copy)
    assert [name for name in before if not torch.allclose(after[name], expected[name], rtol=1e-5, atol=1e-5)] == []
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    return changed


def trained(model: torch.nn.Module, config: LoraConfig) -> PeftModel:
    """The model with an adapter whose factors are all random."""
    random = torch.Generator().manual_seed(5)
    adapted = get_peft_model(model, config)
    for name, value in adapted.named_parameters():
        if "lora_" in name:
            value.data = torch.randn(value.shape, generator=random)
    return adapted


CONFIGS: Mapping[str, dict[str, Any]] = {
    "alpha": {"lora_alpha": 8},
    "alpha_of_a_fraction": {"lora_alpha": 0.3},
    "rslora": {"lora_alpha": 8, "use_rslora": True},
    "alpha_by_expression": {"alpha_pattern": {r"transformer_blocks\.\d+\.attn\.to_q": 3}, "lora_alpha": 8},
    "the_first_expression_counts": {
        "alpha_pattern": {".*to_q": 3, "transformer_blocks.0.attn.to_q": 5},
        "lora_alpha": 2,
    },
    "an_expression_of_the_whole_name": {"alpha_pattern": {"^transformer_blocks.0.attn.to_q": 3, "^attn.to_q": 7}},
    "a_name_is_no_substring": {"alpha_pattern": {"o_q": 3, "proj": 5}, "lora_alpha": 8},
    "rank_by_expression": {"rank_pattern": {"(single_)?transformer_blocks.[01].attn.*": 2}, "lora_alpha": 8},
    "rslora_of_several_ranks": {"rank_pattern": {"to_q": 9}, "lora_alpha": 8, "use_rslora": True},
    "ranks_and_alphas": {"rank_pattern": {"to_q": 2}, "alpha_pattern": {"to_q": 6, "proj": 1}, "lora_alpha": 8},
    "some_layers": {"layers_to_transform": [1], "layers_pattern": ["x", "transformer_blocks"], "lora_alpha": 8},
    "one_layer": {"layers_to_transform": 0, "layers_pattern": "transformer_blocks", "lora_alpha": 8},
    "excluded_layers": {"exclude_modules": ["single_transformer_blocks.0.attn.to_q"], "lora_alpha": 8},
    "targets_by_expression": {"target_modules": r"transformer_blocks\.1\..*(to_q|proj)", "lora_alpha": 8},
    "all_linear": {"target_modules": "all-linear", "lora_alpha": 3},
    "orthogonal": {"init_lora_weights": "orthogonal", "lora_alpha": 8},
    "mica": {"init_lora_weights": "mica", "lora_alpha": 8},
    "dropout": {"lora_dropout": 0.5, "lora_alpha": 8},
}


@pytest.mark.parametrize(("name", "dtype"), [*((name, torch.float32) for name in CONFIGS), ("alpha", torch.bfloat16)])
def test_pefts_own_files_merge_as_peft_merges_them(name: str, dtype: torch.dtype, flux: Path, tmp_path: Path) -> None:
    config = LoraConfig(**{"r": RANK, "target_modules": TWO} | CONFIGS[name])
    trained(FluxTransformer2DModel.from_pretrained(flux), config).save_pretrained(tmp_path / "a")
    file = tmp_path / "a" / "adapter_model.safetensors"
    save_file({key: value.to(dtype) for key, value in load_file(file).items()}, file)
    with_adapter = PeftModel.from_pretrained(FluxTransformer2DModel.from_pretrained(flux), tmp_path / "a")
    same(flux, file, with_adapter.merge_and_unload().state_dict(), tmp_path)


def test_peft_merges_a_convolution_so(tmp_path: Path) -> None:
    write_pipeline("sd3", tmp_path / "model")
    folder = tmp_path / "model" / "transformer"

    def model() -> torch.nn.Module:
        return diffusers.SD3Transformer2DModel.from_pretrained(folder)

    trained(model(), LoraConfig(r=RANK, lora_alpha=8, target_modules=["pos_embed.proj"])).save_pretrained(
        tmp_path / "a"
    )
    expected = PeftModel.from_pretrained(model(), tmp_path / "a").merge_and_unload().state_dict()
    file = tmp_path / "a" / "adapter_model.safetensors"
    assert same(folder, file, expected, tmp_path) == {"pos_embed.proj.weight"}


def test_where_pefts_settings_name_no_alpha_it_is_pefts_default(flux: Path, tmp_path: Path) -> None:
    adapted = trained(FluxTransformer2DModel.from_pretrained(flux), LoraConfig(r=RANK, target_modules=TWO))
    adapted.save_pretrained(tmp_path / "a")
    settings = tmp_path / "a" / "adapter_config.json"
    settings.write_text(json.dumps({k: v for k, v in json.loads(settings.read_text()).items() if k != "lora_alpha"}))
    expected = PeftModel.from_pretrained(FluxTransformer2DModel.from_pretrained(flux), tmp_path / "a")
    file = tmp_path / "a" / "adapter_model.safetensors"
    same(flux, file, expected.merge_and_unload().state_dict(), tmp_path)


def fused(transformer: torch.nn.Module) -> Tensors:
    """The weights that diffusers has fused."""
    state = transformer.state_dict().items()
    return {name.replace(".base_layer", ""): value for name, value in state if ".lora_" not in name}


def by_diffusers(folder: Path, file: Path) -> Tensors:
    """What `load_lora_weights` and `fuse_lora` make of an adapter."""
    others = dict.fromkeys(("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    transformer = FluxTransformer2DModel.from_pretrained(folder)
    pipeline = FluxPipeline(scheduler=FlowMatchEulerDiscreteScheduler(), transformer=transformer, **others)
    pipeline.load_lora_weights(str(file))
    pipeline.fuse_lora(components=["transformer"])
    return fused(pipeline.transformer)


@pytest.mark.parametrize(
    "name", ["alpha", "rslora", "alpha_by_expression", "rslora_of_several_ranks", "ranks_and_alphas"]
)
@pytest.mark.parametrize("by_pipeline", [True, False], ids=["pipeline", "transformer"])
def test_diffusers_own_files_merge_as_diffusers_fuses_them(
    name: str, by_pipeline: bool, flux: Path, tmp_path: Path
) -> None:
    config = LoraConfig(**{"r": RANK, "target_modules": TWO} | CONFIGS[name])
    transformer = trained(FluxTransformer2DModel.from_pretrained(flux), config).get_base_model()
    if by_pipeline:
        FluxPipeline.save_lora_weights(
            tmp_path,
            transformer_lora_layers=get_peft_model_state_dict(transformer),
            transformer_lora_adapter_metadata=transformer.peft_config["default"].to_dict(),
        )
        expected = by_diffusers(flux, tmp_path / "pytorch_lora_weights.safetensors")
    else:
        transformer.save_lora_adapter(tmp_path)
        other = FluxTransformer2DModel.from_pretrained(flux)
        other.load_lora_adapter(str(tmp_path), weight_name="pytorch_lora_weights.safetensors", prefix=None)
        other.fuse_lora()
        expected = fused(other)
    same(flux, tmp_path / "pytorch_lora_weights.safetensors", expected, tmp_path)


def factors(
    layers: Mapping[str, tuple[int, int]], ends: tuple[str, str], alphas: tuple[float, ...] = (), rank: int = RANK
) -> Tensors:
    """Random factors of layers [out, in], and alphas in turn."""
    random = torch.Generator().manual_seed(6)
    found = {}
    for number, (layer, (out, into)) in enumerate(layers.items()):
        found[f"{layer}.{ends[0]}"] = torch.randn(rank, into, generator=random)
        found[f"{layer}.{ends[1]}"] = torch.randn(out, rank, generator=random)
        if alphas:
            found[f"{layer}.alpha"] = torch.tensor(alphas[number % len(alphas)])
    return found


def prefixed(prefix: str, layers: Mapping[str, tuple[int, int]], change: Callable[[str], str] = str) -> Any:
    return {prefix + change(name): shape for name, shape in layers.items()}


PEFT, KOHYA, XLABS = (
    ("lora_A.weight", "lora_B.weight"),
    ("lora_down.weight", "lora_up.weight"),
    ("down.weight", "up.weight"),
)
DIFFUSERS_LAYERS = {
    "x_embedder": (WIDTH, 16),
    "transformer_blocks.0.attn.to_q": (WIDTH, WIDTH),
    "transformer_blocks.1.attn.add_v_proj": (WIDTH, WIDTH),
    "norm_out.linear": (2 * WIDTH, WIDTH),
}
ORIGINAL_LAYERS = {
    "double_blocks_0_img_attn_qkv": (3 * WIDTH, WIDTH),
    "double_blocks_1_txt_attn_qkv": (3 * WIDTH, WIDTH),
    "double_blocks_0_img_attn_proj": (WIDTH, WIDTH),
    "double_blocks_0_txt_attn_proj": (WIDTH, WIDTH),
    "double_blocks_1_img_mlp_0": (4 * WIDTH, WIDTH),
    "double_blocks_1_txt_mlp_2": (WIDTH, 4 * WIDTH),
    "double_blocks_1_img_mod_lin": (6 * WIDTH, WIDTH),
    "single_blocks_0_linear2": (WIDTH, 5 * WIDTH),
    "single_blocks_1_modulation_lin": (3 * WIDTH, WIDTH),
}
XLABS_LAYERS = {
    "double_blocks.0.processor.qkv_lora1": (3 * WIDTH, WIDTH),
    "double_blocks.0.processor.qkv_lora2": (3 * WIDTH, WIDTH),
    "double_blocks.1.processor.proj_lora1": (WIDTH, WIDTH),
    "double_blocks.1.processor.proj_lora2": (WIDTH, WIDTH),
    "single_blocks.0.processor.qkv_lora": (3 * WIDTH, WIDTH),
    "single_blocks.1.processor.proj_lora": (WIDTH, 5 * WIDTH),
}
ALPHAS = (8.0, 3.0, 0.5)
FILES = {
    "diffusers": factors(prefixed("transformer.", DIFFUSERS_LAYERS), PEFT),
    "diffusers_with_alphas": factors(prefixed("transformer.", DIFFUSERS_LAYERS), PEFT, ALPHAS),
    "kohya_in_diffusers_names": factors(
        prefixed("lora_transformer_", DIFFUSERS_LAYERS, lambda name: name.replace(".", "_")), KOHYA, ALPHAS
    ),
    "kohya": factors(prefixed("lora_unet_", ORIGINAL_LAYERS), KOHYA, ALPHAS),
    "kohya_without_alphas": factors(prefixed("lora_unet_", ORIGINAL_LAYERS), KOHYA),
    "xlabs": factors(XLABS_LAYERS, XLABS),
    "xlabs_with_prefix": factors(prefixed("diffusion_model.", XLABS_LAYERS), XLABS),
}


@pytest.mark.parametrize("name", FILES)
def test_other_layouts_merge_as_diffusers_fuses_them(name: str, flux: Path, tmp_path: Path) -> None:
    save_file(FILES[name], tmp_path / "a.safetensors", {"format": "pt"})
    changed = same(flux, tmp_path / "a.safetensors", by_diffusers(flux, tmp_path / "a.safetensors"), tmp_path)
    assert len(changed) >= len([key for key in FILES[name] if key.endswith(("up.weight", "lora_B.weight"))])


@pytest.mark.parametrize("is_dotted", [False, True], ids=["kohya", "dots"])
def test_layers_outside_the_blocks_merge_as_diffusers_translates_them(
    is_dotted: bool, flux: Path, tmp_path: Path
) -> None:
    # diffusers gives these layers names without `transformer.`, which its pipeline then passes over.
    layers = {
        "img_in": (WIDTH, 16),
        "txt_in": (WIDTH, 24),
        "time_in.in_layer": (WIDTH, 256),
        "time_in.out_layer": (WIDTH, WIDTH),
        "vector_in.in_layer": (WIDTH, 20),
        "vector_in.out_layer": (WIDTH, WIDTH),
        "guidance_in.in_layer": (WIDTH, 256),
        "guidance_in.out_layer": (WIDTH, WIDTH),
        "final_layer.linear": (16, WIDTH),
        "final_layer.adaLN_modulation.1": (2 * WIDTH, WIDTH),
    }
    file = factors(prefixed("lora_unet_", layers, lambda name: name.replace(".", "_")), KOHYA)
    dotted = factors(prefixed("base_model.model.", layers), PEFT)
    save_file(dotted if is_dotted else file, tmp_path / "a.safetensors")
    transformer = FluxTransformer2DModel.from_pretrained(flux)
    transformer.load_lora_adapter(_convert_kohya_flux_lora_to_diffusers(dict(file)), prefix=None)
    transformer.fuse_lora()
    assert len(same(flux, tmp_path / "a.safetensors", fused(transformer), tmp_path)) == len(layers)
