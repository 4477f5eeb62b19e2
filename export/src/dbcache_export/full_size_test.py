"""Models in their own shapes, with holes for weights: FLUX.1-dev's 24 GB in three shards, and other families."""

import json
import re
import resource
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from dbcache_export.conftest import child_environment
from dbcache_export.engine import export
from dbcache_export.spec import Options
from dbcache_export.tiny.pictures import SCHEDULERS

#: Class and arguments; everything else is diffusers' default, which is the published model's.
FLUX: tuple[str, dict[str, Any]] = ("FluxTransformer2DModel", {"guidance_embeds": True})
#: The same of other families, and how many parameters and graphs they have.
OTHERS: dict[str, tuple[str, dict[str, Any], int, int]] = {
    "sd35": (
        "SD3Transformer2DModel",
        {
            "num_layers": 24,
            "num_attention_heads": 24,
            "caption_projection_dim": 1536,
            "pos_embed_max_size": 384,
            "dual_attention_layers": list(range(13)),
            "qk_norm": "rms_norm",
        },
        2_469_663_936,
        26,
    ),
    "pixart": (
        "PixArtTransformer2DModel",
        {"caption_channels": 4096, "interpolation_scale": 2, "use_additional_conditions": False},
        610_856_096,
        30,
    ),
    "dit": ("DiTTransformer2DModel", {"out_channels": 8}, 749_826_464, 30),
    "qwen_image": ("QwenImageTransformer2DModel", {}, 20_430_401_088, 62),
    "flux2": ("Flux2Transformer2DModel", {}, 32_223_281_152, 58),
    "z_image": ("ZImageTransformer2DModel", {}, 6_154_908_736, 32),
}
SHARD_BYTES = 9_980_000_000

MAX_SECONDS = 60
MAX_MEMORY = 1_500_000_000
MAX_GRAPH_BYTES = 1_000_000


def write_sparse_checkpoint(folder: Path, name: str, config: dict[str, Any]) -> int:
    """Headers of a bfloat16 checkpoint before files that are holes; returns the number of values."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config | {"_class_name": name}))
    with torch.device("meta"):
        model = getattr(diffusers, name)(**config)
    shapes = {name: list(parameter.shape) for name, parameter in model.state_dict().items()}
    shards: list[dict[str, int]] = [{}]
    for name, shape in shapes.items():
        length = 2 * torch.Size(shape).numel()
        if sum(shards[-1].values()) + length > SHARD_BYTES:
            shards.append({})
        shards[-1][name] = length
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"diffusion_pytorch_model-{number:05}-of-{len(shards):05}.safetensors"
        end, header = 0, {}
        for name, length in shard.items():
            header[name] = {"dtype": "BF16", "shape": shapes[name], "data_offsets": [end, end + length]}
            weight_map[name] = file
            end += length
        text = json.dumps(header).encode()
        with (folder / file).open("wb") as out:
            out.write(struct.pack("<Q", len(text)) + text)
            out.truncate(8 + len(text) + end)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    return sum(torch.Size(shape).numel() for shape in shapes.values())


@pytest.mark.full_size
@pytest.mark.parametrize(("opset", "compute"), [(20, "fp32"), (23, "bf16")])
def test_flux_dev_exports_in_a_minute(tmp_path: Path, opset: int, compute: str) -> None:
    assert write_sparse_checkpoint(tmp_path, *FLUX) == 11_901_408_320
    engine = tmp_path / "engine"
    options = ["--opset", str(opset), "--compute", compute, "--no-content-hash"]
    command = [sys.executable, "-m", "dbcache_export", str(tmp_path), str(engine), *options]
    begin = time.monotonic()
    child = subprocess.run(command, env=child_environment(), capture_output=True, text=True, check=False)
    seconds = time.monotonic() - begin
    assert child.returncode == 0, child.stderr
    assert re.search(r"not checked: it needs \d+ GB of memory", child.stdout)
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    graphs = list(engine.glob("*.onnx"))
    size = sum(graph.stat().st_size for graph in graphs)
    print(f"{seconds:.1f} s, {memory / 1e6:.0f} MB, {len(graphs)} graphs of {size / 1e3:.0f} kB")
    assert len(graphs) == 59
    assert seconds < MAX_SECONDS
    assert memory < MAX_MEMORY
    assert size < MAX_GRAPH_BYTES


@pytest.mark.full_size
@pytest.mark.parametrize("family", OTHERS)
def test_other_families_export_in_two_minutes(family: str, tmp_path: Path) -> None:
    name, config, values, graphs = OTHERS[family]
    assert write_sparse_checkpoint(tmp_path / "model" / "transformer", name, config) == values
    scheduler, arguments = SCHEDULERS[family]
    getattr(diffusers, scheduler)(**arguments).save_pretrained(tmp_path / "model" / "scheduler")
    begin = time.monotonic()
    options = Options(compute="bf16", check=False, content_hash=False)
    summary = export(tmp_path / "model", tmp_path / "engine", options, lambda _: None)
    seconds = time.monotonic() - begin
    print(f"{family}: {seconds:.1f} s, {summary.graphs} graphs of {summary.graph_bytes / 1e3:.0f} kB")
    assert summary.graphs == graphs
    assert seconds < 2 * MAX_SECONDS
    assert summary.graph_bytes < MAX_GRAPH_BYTES
