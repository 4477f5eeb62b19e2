"""Whole video pipelines, tiny, with random weights: text encoders and decoders against transformers and diffusers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLCogVideoX, AutoencoderKLWan
from diffusers.pipelines.hunyuan_video import pipeline_hunyuan_video
from torch._subclasses.fake_tensor import FakeTensorMode

from dbcache_export import families, video_vae
from dbcache_export.check import OTHER_TOLERANCE
from dbcache_export.cogvideox_vae import CogVideoX
from dbcache_export.engine import export
from dbcache_export.errors import ExportError
from dbcache_export.families.video_text import _Mask
from dbcache_export.spec import Options
from dbcache_export.tiny import randomise
from dbcache_export.tiny.videos import write_parts, write_pipeline, write_second

pytestmark = pytest.mark.slow

#: Family: its graphs beside the transformer's.
GRAPHS = {
    "cogvideox": {"t5", "decode"},
    "hunyuan_video": {"llama", "clip", "decode"},
    "mochi": {"t5", "mask", "decode"},
    "wan": {"t5", "zero", "decode"},
    "ltx": {"t5", "mask", "decode"},
}


@pytest.mark.parametrize("family", GRAPHS)
def test_a_pipeline_computes_what_its_parts_compute(family: str, tmp_path: Path) -> None:
    write_pipeline(family, tmp_path / "model")
    write_parts(family, tmp_path / "model")
    if family == "mochi":
        (tmp_path / "model" / "model_index.json").write_text(json.dumps({"force_zeros_for_empty_prompt": True}))
    report = export(tmp_path / "model", tmp_path / "engine", Options(check=True, frames=25), lambda _: None).report
    assert report is not None
    assert GRAPHS[family] <= set(report.errors)
    assert max(report.errors[graph] for graph in GRAPHS[family]) < OTHER_TOLERANCE["f32"]
    fields: dict[str, Any] = json.loads((tmp_path / "engine" / "manifest.json").read_text("utf-8"))
    made = {output for graph in fields["text"]["graphs"] for output in graph["outputs"]}
    assert {name for name, source in fields["inputs"].items() if source["from"] == "text"} <= made
    assert (fields["decode"] is not None) == ("decode" in GRAPHS[family])
    print(family, report)


def test_an_empty_prompt_is_all_padding_where_the_pipeline_says_so() -> None:
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]])
    assert _Mask(empties=True)(mask).tolist() == [[1, 1, 1, 0], [0, 0, 0, 0]]
    assert _Mask(empties=False)(mask).tolist() == mask.tolist()


@pytest.mark.parametrize("residual", [False, True])
def test_wans_frames_decode_in_one_pass(residual: bool) -> None:
    """Both kinds: of Wan 2.1, and of Wan 2.2's 5 B model."""
    kind = {"is_residual": True, "in_channels": 12, "out_channels": 12, "patch_size": 2} if residual else {}
    statistics = {"latents_mean": [0.0] * 4, "latents_std": [1.0] * 4}
    model = AutoencoderKLWan(base_dim=16, z_dim=4, dim_mult=[1] * 4, num_res_blocks=1, **statistics, **kind).eval()
    randomise(model)
    latents = torch.randn(1, 4, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        frame_by_frame = model.decode(latents, return_dict=False)[0]
        at_once = video_vae._Wan(model, torch.float32)(latents)
    assert at_once.shape[2] == 9
    torch.testing.assert_close(at_once, frame_by_frame, rtol=0, atol=5e-5)


@pytest.mark.parametrize("frames", [1, 2, 3, 4, 5, 7])
def test_cogvideoxs_groups_of_frames_decode_in_one_pass(frames: int) -> None:
    """The original takes three latent frames or two, then two at a time; of an even number it gives three more."""
    settings = {"block_out_channels": (8,) * 4, "latent_channels": 4, "layers_per_block": 1, "norm_num_groups": 4}
    model = AutoencoderKLCogVideoX(scaling_factor=1.0, **settings).eval()
    randomise(model)
    latents = torch.randn(2, 4, frames, 4, 6, generator=torch.Generator().manual_seed(frames))
    with torch.no_grad():
        by_group = model.decode(latents, return_dict=False)[0]
        at_once = CogVideoX(model, torch.float32)(latents)
    assert at_once.shape[2] == 4 * (frames - 1) + 1
    torch.testing.assert_close(at_once, by_group[:, :, -at_once.shape[2] :], rtol=0, atol=5e-5)


def test_a_decoder_of_another_kind_is_refused(tmp_path: Path) -> None:
    write_pipeline("cogvideox", tmp_path)
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKLMagvit"}))
    with pytest.raises(ExportError, match=r"AutoencoderKLMagvit is not supported; take vae out"):
        families.plan(tmp_path, Options(), FakeTensorMode())


def test_hunyuan_video_asks_in_its_template(tmp_path: Path) -> None:
    write_pipeline("hunyuan_video", tmp_path)
    write_parts("hunyuan_video", tmp_path)
    text = families.plan(tmp_path, Options(), FakeTensorMode()).text
    assert text is not None
    tokenizer = text.tokenizers["llama"]
    published = pipeline_hunyuan_video.DEFAULT_PROMPT_TEMPLATE
    assert f"{tokenizer.prefix}{{}}{tokenizer.suffix}" == published["template"]
    assert (tokenizer.drop, tokenizer.length) == (published["crop_start"], 256 + published["crop_start"])
    assert text.tokenizers["clip"].prefix == ""
    config = tmp_path / "tokenizer" / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"padding_side": "left"}))
    with pytest.raises(ExportError, match="pads on the left"):
        families.plan(tmp_path, Options(), FakeTensorMode())


def test_a_pipeline_of_two_transformers(tmp_path: Path) -> None:
    """Its export is checked against both originals; its adapters, and pipelines that do not fit, are refused."""
    model = tmp_path / "model"
    write_pipeline("wan", model)
    write_second("wan", model, 0.9)
    export(model, tmp_path / "engine", Options(check=True, pack=True), lambda _: None)
    manifest = json.loads((tmp_path / "engine" / "manifest.json").read_text())
    other = manifest["low_noise"]
    assert (other["below"], other["guidance"], manifest["guidance"]["default"]) == (900.0, 3.0, 4.0)
    assert len(other["blocks"]) == len(manifest["blocks"])
    assert [weights["name"] for weights in manifest["weights"]] == [
        "transformer.safetensors",
        "transformer_2.safetensors",
    ]
    with pytest.raises(ExportError, match="two transformers, and an adapter belongs to one"):
        export(model, tmp_path / "other", Options(lora=((tmp_path / "x", 1.0),)), lambda _: None)
    config = json.loads((model / "transformer_2" / "config.json").read_text())
    (model / "transformer_2" / "config.json").write_text(json.dumps(config | {"num_layers": 5}))
    with pytest.raises(ExportError, match="differ in num_layers"):
        families.plan(model, Options(), FakeTensorMode())
    (model / "model_index.json").write_text("{}")
    with pytest.raises(ExportError, match=r"model_index\.json has the boundary_ratio None"):
        families.plan(model, Options(), FakeTensorMode())


def test_an_autoencoder_of_another_model_is_refused(tmp_path: Path) -> None:
    write_pipeline("mochi", tmp_path)
    write_parts("mochi", tmp_path)
    config = json.loads((tmp_path / "vae" / "config.json").read_text())
    (tmp_path / "vae" / "config.json").write_text(json.dumps(config | {"latent_channels": 5}))
    with pytest.raises(ExportError, match="the VAE has 5 latent channels, the transformer expects 4"):
        families.plan(tmp_path, Options(), FakeTensorMode())
