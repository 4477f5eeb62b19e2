"""Folders as people have them: old names of classes and weights, keys that nobody reads, parts that are left out."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from dbcache_export import families
from dbcache_export.check import OTHER_TOLERANCE
from dbcache_export.conftest import child_environment, rewrite
from dbcache_export.engine import export
from dbcache_export.errors import ExportError, ExportWarning
from dbcache_export.families.catalogue import FAMILIES
from dbcache_export.spec import Options, Plan
from dbcache_export.tiny.pictures import write_pipeline
from dbcache_export.tiny.texts import write_kl
from dbcache_export.tiny.videos import AUTOENCODERS, write_second
from dbcache_export.tiny.videos import write_pipeline as write_video

#: What configurations of 2023 say of the class that has since been split up, and what its parts do not read.
EARLIER = {"_class_name": "Transformer2DModel", "num_vector_embeds": None, "only_cross_attention": False}


def plan(folder: Path) -> Plan:
    return families.plan(folder, Options(), FakeTensorMode())


def change(path: Path, **settings: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps((json.loads(path.read_text()) if path.is_file() else {}) | settings))


@pytest.mark.parametrize("family", ["pixart", "dit"])
def test_a_class_that_was_split_up_is_known_by_its_norm(family: str, tmp_path: Path) -> None:
    write_pipeline(family, tmp_path)
    today = plan(tmp_path)
    change(tmp_path / "transformer" / "config.json", **EARLIER)
    with pytest.warns(ExportWarning, match=r"num_vector_embeds = null, only_cross_attention = false ignored"):
        earlier = plan(tmp_path)
    assert (earlier.description, earlier.inputs) == (today.description, today.inputs)
    tokens = {
        name: torch.zeros([{"batch": 1, "image": 4, "text": 3}.get(str(axis), axis) for axis in tensor.shape])
        for name, tensor in today.embed.template.inputs.items()
    }
    tokens["img_ids"] = torch.tensor([[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1]])
    tokens["class_labels"] = torch.zeros(1, dtype=torch.int64)
    results = [one.reference().run(tokens, lambda *_: None) for one in (today, earlier)]
    assert torch.equal(*results)
    change(tmp_path / "transformer" / "config.json", norm_type="layer_norm")
    with pytest.raises(ExportError, match="Transformer2DModel is not supported"):
        plan(tmp_path)


@pytest.mark.parametrize(
    ("pipeline", "named"),
    [
        ("FluxKontextPipeline", "FluxKontextPipeline"),
        (["pipeline_of_mine", "FluxPipeline"], r"pipeline_of_mine\.FluxPipeline"),
        ("SanaPipeline", "SanaPipeline"),
    ],
)
@pytest.mark.parametrize("index", ["model_index.json", "modular_model_index.json"])
def test_a_pipeline_that_does_more_is_refused_by_its_class(
    index: str, pipeline: Any, named: str, pipeline_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "transformer").symlink_to(pipeline_folder / "transformer")
    change(tmp_path / index, _class_name=pipeline)
    with pytest.raises(ExportError, match=rf"a {named} is not supported, .*; supported .*: FluxPipeline"):
        plan(tmp_path)
    (tmp_path / "transformer").unlink()
    with pytest.raises(ExportError, match=rf"a {named}, has neither"):
        plan(tmp_path)


def test_every_family_has_a_pipeline_of_diffusers() -> None:
    import diffusers

    assert all(family.pipelines for family in FAMILIES.values())
    assert all(hasattr(diffusers, name) for family in FAMILIES.values() for name in family.pipelines)


def test_a_part_that_the_index_leaves_out_is_not_exported(pipeline_folder: Path, tmp_path: Path) -> None:
    for part in pipeline_folder.iterdir():
        (tmp_path / part.name).symlink_to(part)
    (tmp_path / "model_index.json").unlink()
    change(tmp_path / "model_index.json", _class_name="FluxPipeline", vae=[None, None], image_encoder=[None, None])
    with pytest.raises(ExportError, match="has no vae, but there is a folder; take vae out"):
        plan(tmp_path)
    (tmp_path / "vae").unlink()
    assert plan(tmp_path).decode is None


@pytest.mark.parametrize("part", ["transformer", "text_encoder_2"])
def test_quantised_weights_are_refused_by_their_key(part: str, pipeline_folder: Path, tmp_path: Path) -> None:
    for name in ("transformer", "text_encoder_2"):
        (tmp_path / name).mkdir()
        config = json.loads((pipeline_folder / name / "config.json").read_text())
        method = {"quantization_config": {"quant_method": "bitsandbytes"}} if name == part else {}
        change(tmp_path / name / "config.json", **config, **method)
    with pytest.raises(ExportError, match=rf"{part}.config\.json: quantised .*quantization_config: bitsandbytes"):
        plan(tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_attention_heads": "two"}, r"its settings make no model \(\w+: .*; compare its config\.json"),
        ({"num_attention_heads": None}, r"its settings make no model \(TypeError: "),
        ({"out_channels": None}, None),
        ({"in_channels": 9}, r"in_channels|out_channels = 4"),
    ],
)
def test_settings_that_make_no_model_are_no_bug(settings: dict[str, Any], message: str | None, tmp_path: Path) -> None:
    write_pipeline("sd3", tmp_path)
    change(tmp_path / "transformer" / "config.json", **settings)
    if message is None:
        assert plan(tmp_path).tensors["prediction"].shape[2] == 16
        return
    with pytest.raises(ExportError, match=message):
        plan(tmp_path)


def test_a_folder_without_a_class_is_told(tmp_path: Path) -> None:
    change(tmp_path / "config.json", model_type="bert")
    with pytest.raises(ExportError, match=r"config\.json without a _class_name is not supported"):
        plan(tmp_path)


def test_half_of_a_pipeline_of_two_transformers_is_refused(tmp_path: Path) -> None:
    write_video("wan", tmp_path)
    change(tmp_path / "model_index.json", _class_name="WanPipeline", boundary_ratio=0.9)
    with pytest.raises(ExportError, match=r"no transformer_2, but its model_index\.json has the boundary_ratio 0\.9"):
        plan(tmp_path)
    change(tmp_path / "model_index.json", boundary_ratio=None, expand_timesteps=True)
    assert plan(tmp_path).low_noise is None


def test_two_transformers_are_of_one_form_if_diffusers_makes_the_same_of_them(tmp_path: Path) -> None:
    write_video("wan", tmp_path)
    write_second("wan", tmp_path, 0.9)
    change(tmp_path / "transformer_2" / "config.json", left_over=1)
    with pytest.warns(ExportWarning, match="transformer_2.config.json: left_over = 1 ignored"):
        assert plan(tmp_path).low_noise is not None


def test_the_layers_of_an_autoencoders_attention_have_earlier_names_too(tmp_path: Path) -> None:
    write_pipeline("dit", tmp_path / "model")
    write_kl(tmp_path / "model")
    earlier = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}

    def rename(name: str) -> str:
        for today, before in earlier.items():
            name = name.replace(today, before)
        return name

    rewrite(tmp_path / "model" / "vae" / "diffusion_pytorch_model.safetensors", rename)
    report = export(tmp_path / "model", tmp_path / "engine", Options(check=True, size=(64, 64)), lambda _: None).report
    assert report is not None
    assert report.errors["decode"] < OTHER_TOLERANCE["f32"]


@pytest.mark.parametrize(
    ("family", "settings", "message"),
    [
        ("ltx", {"timestep_conditioning": True}, r"timestep_conditioning = true\) is not supported; take vae out"),
        ("ltx", {"decoder_inject_noise": [True, False, False, False, False]}, r"decoder_inject_noise = \[true"),
        ("wan", {"out_channels": 4}, "out_channels = 4"),
        ("wan", {"patch_size": 2}, "out_channels = 3"),
        ("mochi", {"scaling_factor": None}, "scaling_factor = null"),
        ("wan", {"latents_mean": None}, "its settings make no model"),
    ],
)
def test_a_decoder_that_needs_more_is_refused_by_its_key(
    family: str, settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    write_video(family, tmp_path)
    name, arguments = AUTOENCODERS[family]
    change(tmp_path / "vae" / "config.json", _class_name=name, **(dict(arguments) | settings))
    with pytest.raises(ExportError, match=message):
        plan(tmp_path)


def test_the_command_prints_what_is_ignored(tmp_path: Path) -> None:
    change(tmp_path / "config.json", _class_name="FluxTransformer2DModel", unheard_of=[1])
    command = [sys.executable, "-m", "dbcache_export", str(tmp_path), str(tmp_path / "out")]
    child = subprocess.run(command, env=child_environment(), capture_output=True, text=True, check=False)
    told = f"{tmp_path / 'config.json'}: unheard_of = [1] ignored, as by diffusers' FluxTransformer2DModel"
    assert child.stderr.splitlines()[1:] == [
        f"warning: {told}",
        f"error: {tmp_path} has no .safetensors file; download the model's weights into it",
    ]
