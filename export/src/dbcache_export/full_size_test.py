"""FLUX.1-dev's own shape: 19 + 38 blocks, 11.9 B parameters in three shards, 24 GB of holes."""

import json
import re
import resource
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel

from dbcache_export.conftest import child_environment

CONFIG = {"guidance_embeds": True}  # everything else is diffusers' default
SHARD_BYTES = 9_980_000_000

MAX_SECONDS = 60
MAX_MEMORY = 1_500_000_000
MAX_GRAPH_BYTES = 1_000_000


def write_sparse_checkpoint(folder: Path) -> int:
    """Headers of a bfloat16 checkpoint before files that are holes; returns the number of parameters."""
    with torch.device("meta"):
        model = FluxTransformer2DModel(**CONFIG)
    shapes = {name: list(parameter.shape) for name, parameter in model.named_parameters()}
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
    (folder / "config.json").write_text(json.dumps(CONFIG | {"_class_name": "FluxTransformer2DModel"}))
    return sum(torch.Size(shape).numel() for shape in shapes.values())


@pytest.mark.full_size
@pytest.mark.parametrize(("opset", "compute"), [(20, "fp32"), (23, "bf16")])
def test_flux_dev_exports_in_a_minute(tmp_path: Path, opset: int, compute: str) -> None:
    assert write_sparse_checkpoint(tmp_path) == 11_901_408_320
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
