"""Writes a FLUX.1-dev of a few blocks as an engine without its weights, for `cargo xtask pack-gpu`.

OUT_DIR holds the graphs and the manifest, and of the weights file only its header: `cargo xtask check-gpu` makes the
rest from a seed. `shape.json` says what the steps are measured with.
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

_WIDE = {"heads": 24, "text_width": 4096, "text_tokens": 512, "cells": 128, "compute": "bf16"}
#: What is exported: FLUX.1-dev's own width for GPUs, with and without an operator for attention, and a narrow one on
#: which the way there is tried on a CPU.
SHAPES: dict[str, dict[str, Any]] = {
    "wide": {**_WIDE, "opset": 23},
    "wide-opset-20": {**_WIDE, "opset": 20},
    "narrow": {"heads": 2, "text_width": 64, "text_tokens": 16, "cells": 16, "compute": "fp32", "opset": 20},
}


def main() -> int:
    """Exports one shape; 0 if it is done."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("out_dir", type=Path)
    parser.add_argument("--double", type=int, default=2, metavar="N", help="double blocks (2)")
    parser.add_argument("--single", type=int, default=4, metavar="N", help="single blocks (4)")
    given = parser.parse_args()
    shape = {**SHAPES[given.shape], "double": given.double, "single": given.single}
    model = published("FLUX.1-dev")
    model["transformer"] |= {
        "num_layers": given.double,
        "num_single_layers": given.single,
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
