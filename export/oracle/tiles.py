"""Records what diffusers' autoencoders make of latents in tiles and in runs of frames.

    tiles.py [--out tests/data/decode]

`toy.safetensors`: a decoder that is easily written down, float32. `picture/` and `video/`: an engine with a tiny
autoencoder of random weights, and what the autoencoder gives, as bytes. `tests/data/decode/README.md` explains them.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from dbcache_export.engine import export
from dbcache_export.families.patches import pack
from dbcache_export.spec import Options
from dbcache_export.tiny import pictures, texts, videos
from diffusers import AutoencoderKL, AutoencoderKLHunyuanVideo
from safetensors.torch import load_file, save, save_file
from torch import Tensor, nn

from reference import REFERENCE_DIR, write_bytes

__all__ = ["main"]

#: Pixels on each side of a tile, four cells.
_TILE = 32
_PICTURE = (112, 80)
_VIDEO = (48, 32, 21)


class Toy(nn.Module):
    """Repeats the first channel's cells, and adds the mean of all that it is given, so that tiles differ."""

    def forward(self, latents: Tensor) -> Tensor:
        """[1, channels, (frames,) height, width] to [1, 1, (1 + 4 · (frames - 1),) 8 · height, 8 · width]."""
        pixels = latents[:, :1].repeat_interleave(8, -1).repeat_interleave(8, -2) + latents.mean()
        return (
            torch.cat([pixels[:, :, :1], pixels[:, :, 1:].repeat_interleave(4, 2)], 2) if pixels.ndim == 5 else pixels
        )


def tiled(model: Any) -> Any:
    """The autoencoder with tiles of `_TILE` pixels that overlap by a quarter."""
    model.enable_tiling()
    if isinstance(model, AutoencoderKL):
        model.tile_sample_min_size, model.tile_latent_min_size = _TILE, _TILE // 8
    else:
        model.tile_sample_min_height = model.tile_sample_min_width = _TILE
        model.tile_sample_stride_height = model.tile_sample_stride_width = _TILE * 3 // 4
    return model


def _random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def _decoded(model: Any, latents: Tensor) -> Tensor:
    with torch.no_grad():
        return model.decode(latents, return_dict=False)[0].contiguous()


def toy() -> dict[str, Tensor]:
    """Latents and pixels of the toy decoder: pictures of several shapes in tiles, videos of several lengths in runs."""
    found: dict[str, Tensor] = {}

    def add(name: str, model: Any, latents: Tensor) -> None:
        model.post_quant_conv, model.decoder = nn.Identity(), Toy()
        found[f"{name}.latents"], found[f"{name}.pixels"] = latents, _decoded(model, latents)

    small: dict[str, Any] = {"block_out_channels": (8,) * 4, "latent_channels": 2, "norm_num_groups": 4}
    plain = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    for height, width in ((4, 5), (8, 3), (9, 7)):
        add(f"tiles{height}x{width}", tiled(AutoencoderKL(**small, **plain)), _random(1, 2, height, width))
    for frames in (5, 6, 7, 8, 13):
        add(f"runs{frames}", AutoencoderKLHunyuanVideo(**small), _random(1, 2, frames, 1, 1))
    add("both8", tiled(AutoencoderKLHunyuanVideo(**small)), _random(1, 2, 8, 1, 5))
    return found


def _engine(folder: Path, options: Options, write: Callable[[Path], None]) -> Path:
    """Exports the pipeline that `write` writes, in float16; gives its folder."""
    write(folder / "model")
    for file in (folder / "model").rglob("*.safetensors"):
        save_file({name: weight.half() for name, weight in load_file(file).items()}, file, {"format": "pt"})
    export(folder / "model", folder / "engine", options, lambda _: None)
    return folder / "model"


def _bytes(pixels: Tensor) -> Tensor:
    """[batch, 3, (frames,) height, width] to [batch, (frames,) height, width, 3], rounded as diffusers does."""
    return ((pixels * 0.5 + 0.5).clamp(0, 1) * 255).round().movedim(1, -1).to(torch.uint8).contiguous()


def picture(folder: Path) -> dict[str, Tensor]:
    """Two pictures, whole and in tiles."""

    def write(target: Path) -> None:
        pictures.write_pipeline("pixart", target)
        texts.write_kl(target)

    options = Options(pack=True, check=False, size=(128, 128))
    model: Any = AutoencoderKL.from_pretrained(_engine(folder, options, write) / "vae", torch_dtype=torch.float32)
    latents = _random(2, 4, _PICTURE[1] // 8, _PICTURE[0] // 8)
    scaled = latents / model.config.scaling_factor + model.config.shift_factor
    whole = _bytes(_decoded(model, scaled))
    return {"latents": pack(latents, 2), "whole": whole, "tiled": _bytes(_decoded(tiled(model), scaled))}


def video(folder: Path) -> dict[str, Tensor]:
    """A video in runs of frames, and in runs of tiles."""

    def write(target: Path) -> None:
        videos.write_pipeline("hunyuan_video", target)
        shutil.rmtree(target / "transformer")
        few = dict.fromkeys(("num_layers", "num_single_layers", "num_refiner_layers"), 1)
        videos.write_transformer("hunyuan_video", target / "transformer", **few)
        videos.write_parts("hunyuan_video", target)
        for part in ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"):
            shutil.rmtree(target / part)

    width, height, frames = _VIDEO
    options = Options(pack=True, check=False, size=(width, height), frames=frames)
    model: Any = AutoencoderKLHunyuanVideo.from_pretrained(
        _engine(folder, options, write) / "vae", torch_dtype=torch.float32
    )
    latents = _random(1, 4, (frames - 1) // 4 + 1, height // 8, width // 8)
    scaled = latents / model.config.scaling_factor
    whole = _bytes(_decoded(model, scaled))
    return {"latents": latents, "whole": whole, "tiled": _bytes(_decoded(tiled(model), scaled))}


def main(arguments: list[str] | None = None) -> None:
    """Writes all files."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=REFERENCE_DIR.parent / "decode")
    out: Path = parser.parse_args(arguments).out
    write_bytes(out / "toy.safetensors", save(toy()))
    for record in (picture, video):
        with tempfile.TemporaryDirectory() as work:
            write_bytes(out / record.__name__ / "vectors.safetensors", save(record(Path(work))))
            shutil.rmtree(out / record.__name__ / "engine", ignore_errors=True)
            shutil.copytree(Path(work) / "engine", out / record.__name__ / "engine")


if __name__ == "__main__":
    main()
