"""Compares what a model draws with the pictures that it was trained on.

    evaluate.py MODEL [PROMPT …] [--steps 28] [--sheet samples.png] [--tarball FILE]

Prints the PSNR of each picture and the median, the tenth percentile and the worst. The noise of a picture is that of
its place in the alphabet, as `torch.randn([1, 3, 64, 64])` with that seed.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch

from data import PACKAGE, DataError, Pictures, known_prompts, obtain, sheet
from model import PromptFlux, ids_of, load, sample

__all__ = ["draw", "psnr"]

BATCH = 16


def psnr(drawn: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio in dB of pictures `[pictures, 3, side, side]` in -1 … 1: `[pictures]`."""
    error = ((drawn.clamp(-1, 1) - expected) / 2).square().mean(dim=(1, 2, 3))
    return -10 * torch.log10(error)


def draw(model: PromptFlux, ids: torch.Tensor, seeds: list[int], steps: int) -> torch.Tensor:
    """Draws one picture for each row of ids, from the noise of its seed: `[pictures, 3, side, side]`."""
    side = model.shape.side
    noise = torch.cat([torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
    return torch.cat([sample(model, i, n, steps) for i, n in zip(ids.split(BATCH), noise.split(BATCH), strict=True)])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="measure a trained emoji model")
    parser.add_argument("model", type=Path, help="the folder that train.py wrote")
    parser.add_argument("prompts", nargs="*", metavar="PROMPT", help="only these (default: all)")
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--sheet", type=Path, help="write the pictures into this PNG file")
    parser.add_argument("--tarball", type=Path, help=f"{PACKAGE}, if it is here already")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    everything = known_prompts()
    prompts = arguments.prompts or everything
    unknown = [prompt for prompt in prompts if prompt not in everything]
    if unknown:
        parser.error(f"no emoji is named {', '.join(unknown)}; the names are in prompts.txt")
    try:
        pictures = _only(obtain(arguments.tarball), prompts)
    except DataError as error:
        parser.error(str(error))

    model, vocabulary = load(arguments.model)
    ids = ids_of(vocabulary, prompts, model.shape.text_length)
    drawn = draw(model, ids, [everything.index(prompt) for prompt in prompts], arguments.steps)
    values = psnr(drawn, pictures.pixels)
    for prompt, value in sorted(zip(prompts, values.tolist(), strict=True), key=lambda pair: pair[1]):
        print(f"{value:5.1f} dB  {prompt}")
    median, tenth, worst = (values.quantile(level).item() for level in (0.5, 0.1, 0.0))
    print(f"median {median:.1f} dB, tenth percentile {tenth:.1f}, worst {worst:.1f}")
    if arguments.sheet:
        sheet(drawn).save(arguments.sheet)


def _only(pictures: Pictures, prompts: list[str]) -> Pictures:
    chosen = [pictures.prompts.index(prompt) for prompt in prompts]
    return Pictures(prompts, pictures.pixels[chosen])


if __name__ == "__main__":
    main()
