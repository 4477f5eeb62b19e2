import json
import shutil
from pathlib import Path

import pytest
from torch._subclasses.fake_tensor import FakeTensorMode

from dbcache_export import families
from dbcache_export.errors import ExportError
from dbcache_export.spec import Options, Plan


def plan(folder: Path, options: Options | None = None) -> Plan:
    return families.plan(folder, options or Options(), FakeTensorMode())


def test_a_transformer_alone_takes_its_text_from_outside(transformer_folder: Path) -> None:
    made = plan(transformer_folder, Options(downscale=1, size=(16, 24), name="x"))
    assert made.text is None
    assert made.decode is None
    assert made.latents == {"layout": "tokens", "channels": 4, "downscale": 1, "patch": 2}
    assert made.size == {"default": [16, 24], "min": 4, "max": 48, "multiple_of": 2}
    assert made.dimensions["image"] == {"min": 4, "max": 576}
    assert made.scheduler["shift"] == {"kind": "none"}
    assert plan(transformer_folder).size["default"] == [1024, 1024]


def test_16_bit_models_meet_the_outside_in_float32(transformer_folder: Path) -> None:
    tensors = plan(transformer_folder, Options(compute="bf16")).tensors
    narrow = {name for name, tensor in tensors.items() if tensor.dtype == "bf16"}
    assert narrow == {"hidden_states", "encoder_hidden_states", "temb"}


def test_options_without_effect_are_refused(
    transformer_folder: Path, pipeline_folder: Path, emoji_folder: Path
) -> None:
    with pytest.raises(ExportError, match="in multiples of 16"):
        plan(transformer_folder, Options(size=(1000, 1000)))
    with pytest.raises(ExportError, match="--frames 9, but the model makes pictures; leave it out"):
        plan(transformer_folder, Options(frames=9))
    with pytest.raises(ExportError, match="the VAE's is 2"):
        plan(pipeline_folder, Options(downscale=8))
    with pytest.raises(ExportError, match="64x64 pixels only"):
        plan(emoji_folder, Options(size=(128, 128)))


def test_parts_of_different_models_are_refused(pipeline_folder: Path, emoji_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(pipeline_folder / "vae", tmp_path / "flux" / "vae")
    shutil.copytree(emoji_folder / "transformer", tmp_path / "flux" / "transformer")
    with pytest.raises(ExportError, match="VAE has 4 latent channels, the transformer expects 48"):
        plan(tmp_path / "flux")
    shutil.copytree(emoji_folder, tmp_path / "emoji")
    (tmp_path / "emoji" / "text" / "vocab.json").write_text(json.dumps({"<pad>": 0}))
    with pytest.raises(ExportError, match="for 1 words"):
        plan(tmp_path / "emoji")
