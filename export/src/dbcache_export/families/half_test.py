"""Graphs that compute in 16 bits, against float32 PyTorch, where ONNX Runtime can run them on a CPU."""

from pathlib import Path

import onnxruntime
import pytest

from dbcache_export.check import CHAIN_TOLERANCE, EMBED_TOLERANCE, GRAPH_TOLERANCE, OTHER_TOLERANCE
from dbcache_export.engine import export
from dbcache_export.spec import DType, Options
from dbcache_export.tiny import pictures, videos
from dbcache_export.tiny.texts import write_texts

pytestmark = pytest.mark.slow

#: Graphs of transformers; all others are those of text encoders and decoders.
_PARTS = {"embed": EMBED_TOLERANCE, "chain": CHAIN_TOLERANCE}
_BLOCKS = ("block", "double", "single", "last", "final")


def write(family: str, folder: Path) -> None:
    if family in videos.TRANSFORMERS:
        videos.write_pipeline(family, folder)
    else:
        pictures.write_pipeline(family, folder)
        if family == "pixart":
            write_texts(family, folder)


@pytest.mark.parametrize("compute", ["f16", "bf16"])
@pytest.mark.parametrize("family", ["sd3", "pixart", "z_image", "cogvideox", "wan"])
def test_sixteen_bits_stay_near_thirty_two(family: str, compute: DType, tmp_path: Path) -> None:
    """Graphs of bf16 are computed in float32, as the runtime has no bf16: their own rounding is not run."""
    write(family, tmp_path / "model")
    options = Options(compute=compute, check=True, frames=9 if family in videos.TRANSFORMERS else None)
    report = export(tmp_path / "model", tmp_path / "engine", options, lambda _: None).report
    assert report is not None
    assert {"embed", "final", "chain"} <= set(report.errors)
    for name, error in report.errors.items():
        kind = GRAPH_TOLERANCE if name in _BLOCKS else _PARTS.get(name, OTHER_TOLERANCE)
        assert error <= kind[compute], (name, error)
    if compute == "f16":  # as exact as float32 would mean that the graphs compute in it
        assert max(report.errors.values()) > 1e-4
    print(family, compute, report)


def test_what_bf16_computes_is_not_run_on_a_cpu(tmp_path: Path) -> None:
    """When this fails, the runtime can, and the check is to run these graphs as they are."""
    write("wan", tmp_path / "model")
    options = Options(compute="bf16", check=False, frames=9, pack=True)
    export(tmp_path / "model", tmp_path / "engine", options, lambda _: None)
    with pytest.raises(Exception, match="NOT_IMPLEMENTED"):
        onnxruntime.InferenceSession(tmp_path / "engine" / "block_000.onnx", providers=["CPUExecutionProvider"])
