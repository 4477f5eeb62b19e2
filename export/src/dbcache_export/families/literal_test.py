"""Sinusoids of timesteps and of guidance scales, bit by bit what diffusers computes."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from diffusers.models.embeddings import Timesteps
from torch import nn

from dbcache_export.conftest import write_transformer
from dbcache_export.engine import export
from dbcache_export.families.literal import literal_timesteps
from dbcache_export.spec import Options

#: Measured 5e-7 with frequencies of PyTorch's own, 4e-5 with those of ONNX Runtime's exponential.
EXACT = 2e-6


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize(("channels", "shift", "scale"), [(256, 0, 1), (256, 1, 1), (64, 0.0, 1000), (32, 1, 1)])
def test_sinusoids_are_those_of_diffusers_to_the_bit(flip: bool, channels: int, shift: float, scale: float) -> None:
    owner = nn.Module()
    owner.time_proj = Timesteps(channels, flip, shift, scale)
    numbers = torch.linspace(0, 1, 997) * (1000 if scale == 1 else 1)
    want = owner.time_proj(numbers)
    literal_timesteps(owner)
    assert torch.equal(owner.time_proj(numbers), want)


def test_flux_embeds_timestep_and_guidance_exactly(tmp_path: Path) -> None:
    write_transformer(tmp_path / "model", torch.float32, num_layers=1, num_single_layers=1)
    report = export(tmp_path / "model", tmp_path / "engine", Options(check=True), lambda _: None).report
    assert report is not None
    assert report.errors["embed"] < EXACT
    assert report.errors["chain"] < EXACT
    embed = onnx.load(tmp_path / "engine" / "embed.onnx", load_external_data=False)
    assert not {node.op_type for node in embed.graph.node} & {"Exp", "Pow"}
