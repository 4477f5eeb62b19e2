"""Writes the engine with which tests make videos: a tiny LTX-Video with its decoder, in tests/data/tiny-video/engine.

    tiny_video.py [--out tests/data/tiny-video/engine]

Random weights, different in every parameter; stored in float16, computed with in float32. Its videos show nothing.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

import diffusers
import torch
from dbcache_export.engine import export
from dbcache_export.spec import Options
from dbcache_export.tiny import save
from dbcache_export.tiny.videos import AUTOENCODERS, TRANSFORMERS, write_pipeline

from reference import REFERENCE_DIR

__all__ = ["main"]

_FAMILY = "ltx"
#: The smallest that the family takes, and two latent frames.
_SIZE = (128, 128)
_FRAMES = 9
_SMALL = {"num_layers": 2, "num_attention_heads": 1, "cross_attention_dim": 16}
#: Of the encoder, which is not used.
_CHANNELS = (4, 4, 4, 4)


def main() -> int:
    """Command line: writes the engine, prints its size and how far it is from PyTorch."""
    parser = argparse.ArgumentParser(description="write the engine with which tests make videos")
    parser.add_argument("--out", type=Path, default=REFERENCE_DIR.parent / "tiny-video/engine")
    out = parser.parse_args().out
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        model = Path(scratch) / "model"
        write_pipeline(_FAMILY, model)
        for part, (name, arguments), change in (
            ("transformer", TRANSFORMERS[_FAMILY], _SMALL),
            ("vae", AUTOENCODERS[_FAMILY], {"block_out_channels": _CHANNELS}),
        ):
            save(getattr(diffusers, name)(**{**arguments, **change}), model / part, torch.float16)
        shutil.rmtree(out, ignore_errors=True)
        options = Options(check=True, pack=True, size=_SIZE, frames=_FRAMES, name="tiny video")
        report = export(model, out, options, lambda _: None).report
    size = sum(path.stat().st_size for path in out.iterdir())
    print(f"{size / 1e3:.0f} kB; {report}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
