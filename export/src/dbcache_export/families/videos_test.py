"""Every family that makes videos, tiny and with random weights, against diffusers."""

from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from dbcache_export import families
from dbcache_export.check import GRAPH_TOLERANCE
from dbcache_export.engine import export
from dbcache_export.errors import ExportError
from dbcache_export.families import cogvideox
from dbcache_export.spec import Options
from dbcache_export.tiny.videos import TRANSFORMERS, write_transformer

#: Family: its kinds of blocks.
KINDS = {
    "cogvideox": {"block"},
    "cogvideox_rotary": {"block"},
    "mochi": {"block", "last"},
    "wan": {"block"},
    "ltx": {"block"},
    "hunyuan_video": {"double", "single"},
}

#: Wan's and LTX's frequencies are constants; Mochi's are parameters, and its positions sums.
EMBED_TOLERANCE = 2e-5


@pytest.mark.slow  # `cargo xtask check-families` covers it in whole pipelines.
@pytest.mark.parametrize("family", KINDS)
def test_a_transformer_computes_what_diffusers_computes(family: str, tmp_path: Path) -> None:
    write_transformer(family, tmp_path / "model")
    report = export(tmp_path / "model", tmp_path / "engine", Options(check=True), lambda _: None).report
    assert report is not None
    assert set(report.errors) == {"embed", *KINDS[family], "final", "chain"}
    assert max(report.errors[kind] for kind in KINDS[family] | {"final", "chain"}) < GRAPH_TOLERANCE["f32"]
    assert report.errors["embed"] < EMBED_TOLERANCE
    print(family, report)


def test_every_tiny_model_is_tested() -> None:
    assert set(KINDS) == set(TRANSFORMERS)


@pytest.mark.parametrize("size", [(3, 4), (4, 3), (6, 2), (2, 7), (1, 1), (30, 45), (5, 12)])
def test_rotary_positions_are_fitted_into_the_grid_of_training(size: tuple[int, int]) -> None:
    """As diffusers' pipeline does it in Python numbers."""
    config = torch.nn.Module()
    config.patch_size, config.attention_head_dim = 2, 16
    config.sample_height, config.sample_width = 6, 8
    config.use_rotary_positional_embeddings = True
    latents = torch.zeros(1, 3, 4, 2 * size[0], 2 * size[1])
    expected = cogvideox._pipeline_rotary(config, latents)
    assert expected is not None
    for ours, theirs in zip(cogvideox._rotary(config, 3, *size), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("family", "change"),
    [
        ("cogvideox", {"patch_size_t": 2}),
        ("wan", {"image_dim": 8}),
        ("ltx", {"patch_size": 2}),
        ("hunyuan_video", {"image_condition_type": "token_replace"}),
        ("mochi", {"out_channels": 5}),
    ],
)
def test_variants_with_other_inputs_are_refused(family: str, change: dict[str, object], tmp_path: Path) -> None:
    write_transformer(family, tmp_path / "model", **change)
    with pytest.raises(ExportError, match=f"a variant .*{next(iter(change))}"):
        export(tmp_path / "model", tmp_path / "engine", Options(check=False), lambda _: None)


def test_the_default_length_is_a_whole_number_of_latent_frames(tmp_path: Path) -> None:
    write_transformer("wan", tmp_path)
    plan = families.plan(tmp_path, Options(frames=5, size=(32, 48)), FakeTensorMode())
    assert plan.video == {"frames": {"default": 5, "min": 1, "max": 9}, "temporal_downscale": 4, "fps": 16.0}
    assert plan.size["default"] == [32, 48]
    assert plan.dimensions["latent_frames"] == {"min": 1, "max": 3}
    with pytest.raises(ExportError, match=r"6 frames; give --frames as 1 \+ a multiple of 4"):
        families.plan(tmp_path, Options(frames=6), FakeTensorMode())
    with pytest.raises(ExportError, match=r"0 frames; give --frames"):
        families.plan(tmp_path, Options(frames=0), FakeTensorMode())
    with pytest.raises(ExportError, match="in multiples of 16"):
        families.plan(tmp_path, Options(size=(40, 48)), FakeTensorMode())
    with pytest.raises(ExportError, match="--downscale 4, but the model's is 8"):
        families.plan(tmp_path, Options(downscale=4), FakeTensorMode())


@pytest.mark.parametrize("family", sorted(KINDS))
def test_a_transformer_alone_has_the_scheduler_of_its_publication(family: str, tmp_path: Path) -> None:
    write_transformer(family, tmp_path)
    plan = families.plan(tmp_path, Options(), FakeTensorMode())
    expected = {
        "cogvideox": ("ddim", "v_prediction"),
        "cogvideox_rotary": ("ddim", "v_prediction"),
        "wan": ("unipc", "velocity"),
    }
    assert (plan.scheduler["kind"], plan.prediction["kind"]) == expected.get(family, ("flow_match_euler", "velocity"))
    assert plan.scheduler.get("inverted", False) == (family == "mochi")
