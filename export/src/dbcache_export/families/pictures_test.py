"""Every family that makes pictures, tiny and with random weights, against diffusers."""

from pathlib import Path

import pytest

from dbcache_export.check import CHAIN_TOLERANCE, EMBED_TOLERANCE, GRAPH_TOLERANCE
from dbcache_export.engine import export
from dbcache_export.spec import Options
from dbcache_export.tiny.pictures import write_pipeline

#: Family: its kinds of blocks.
KINDS = {
    "sd3": {"joint", "joint_last"},
    "sd35": {"dual", "joint", "joint_last"},
    "pixart": {"block"},
    "pixart_sized": {"block"},
    "dit": {"block"},
    "qwen_image": {"block"},
    "flux2": {"double", "single"},
    "z_image": {"block"},
}


@pytest.mark.slow  # `cargo xtask check-families` covers it in whole pipelines.
@pytest.mark.parametrize("family", KINDS)
def test_a_transformer_computes_what_diffusers_computes(family: str, tmp_path: Path) -> None:
    write_pipeline(family, tmp_path / "model")
    options = Options(check=True, size=(128, 128) if family != "z_image" else None)
    report = export(tmp_path / "model", tmp_path / "engine", options, lambda _: None).report
    assert report is not None
    assert set(report.errors) == {"embed", *KINDS[family], "final", "chain"}
    assert max(report.errors[kind] for kind in KINDS[family] | {"final"}) < GRAPH_TOLERANCE["f32"]
    assert report.errors["embed"] < EMBED_TOLERANCE["f32"]
    assert report.errors["chain"] < CHAIN_TOLERANCE["f32"]
    print(family, report)


@pytest.mark.parametrize("family", ["qwen_image", "z_image"])
def test_masks_fit_into_half_precision(family: str, tmp_path: Path) -> None:
    write_pipeline(family, tmp_path / "model")
    options = Options(check=True, compute="f16", size=(128, 128))
    report = export(tmp_path / "model", tmp_path / "engine", options, lambda _: None).report
    assert report is not None
    assert max(report.errors[kind] for kind in ("embed", "block", "final")) < GRAPH_TOLERANCE["f16"]
