"""Writes a FLUX.1-dev of a few blocks, or of all, as an engine without its weights, for `cargo xtask pack-gpu`.

OUT_DIR holds the graphs and the manifest, and of the weights file only its header: `cargo xtask check-gpu`, and
`measure-mpi`, make the rest from a seed. `shape.json` says what the steps are measured with.
"""

from __future__ import annotations

import argparse
import json
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from holes import published, write_pipeline

_FEW = {"double": 2, "single": 4}
_WIDE = {"heads": 24, "text_width": 4096, "text_tokens": 512, "cells": 128, "compute": "bf16"}
_NARROW = {"heads": 2, "text_width": 64, "text_tokens": 16, "cells": 16, "compute": "fp32", "opset": 20}
#: What is exported: FLUX.1-dev's own width for GPUs, with and without an operator for attention, and with all blocks;
#: and narrow ones on which the way there is tried on a CPU. `ranks` is for CPUs that make one picture together.
SHAPES: dict[str, dict[str, Any]] = {
    "wide": {**_WIDE, **_FEW, "opset": 23},
    "wide-opset-20": {**_WIDE, **_FEW, "opset": 20},
    "whole": {**_WIDE, "double": 19, "single": 38, "opset": 23},
    "ranks": {**_WIDE, "cells": 64, "compute": "fp32", "opset": 20, "double": 1, "single": 2},
    "narrow": {**_NARROW, **_FEW},
    "narrow-whole": {**_NARROW, "double": 19, "single": 38},
}


def main() -> int:
    """Exports one shape; 0 if it is done."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("out_dir", type=Path)
    parser.add_argument("--double", type=int, metavar="N", help="double blocks, if not those of the shape")
    parser.add_argument("--single", type=int, metavar="N", help="single blocks, if not those of the shape")
    given = parser.parse_args()
    counts = {name: getattr(given, name) for name in ("double", "single")}
    shape = SHAPES[given.shape] | {name: count for name, count in counts.items() if count is not None}
    model = published("FLUX.1-dev")
    model["transformer"] |= {
        "num_layers": shape["double"],
        "num_single_layers": shape["single"],
        "num_attention_heads": shape["heads"],
        "joint_attention_dim": shape["text_width"],
    }
    # Tensors go in and latents come out, so that nothing else takes time.
    del model["text"], model["vae"]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        write_pipeline(model, folder)
        size = f"{shape['cells'] * 8}x{shape['cells'] * 8}"
        options = ["--compute", shape["compute"], "--opset", str(shape["opset"]), "--size", size]
        options += ["--pack", "--no-check", "--no-content-hash"]
        subprocess.run([sys.executable, "-m", "dbcache_export", folder, given.out_dir, *options], check=True)
    _keep_headers(given.out_dir)
    (given.out_dir / "shape.json").write_text(json.dumps(shape))
    return 0


def _keep_headers(folder: Path) -> None:
    """Cuts each weights file behind its header, and calls it a header."""
    for weights in folder.glob("*.safetensors"):
        with weights.open("rb") as file:
            prefix = file.read(8)
            header = prefix + file.read(struct.unpack("<Q", prefix)[0])
        weights.with_suffix(".header").write_bytes(header)
        weights.unlink()


if __name__ == "__main__":
    sys.exit(main())
