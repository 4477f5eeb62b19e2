"""The training pictures: 112 emoji on white, from an npm package.

The package `emoji-datasource-google` 16.0.0 (MIT) holds Google's Noto Emoji as pictures of 64 x 64 pixels, and
`emoji.json` with their names. The pictures are under the Apache License 2.0; so are weights trained on them, as far
as those are a derived work. `prompts.txt` lists the emoji, each by its name in lower case: the name is the prompt.

    data.py [--tarball FILE] [--sheet data.png]
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import re
import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

__all__ = [
    "NULL",
    "PACKAGE",
    "PAD",
    "DataError",
    "Pictures",
    "fetch",
    "known_prompts",
    "load",
    "obtain",
    "sheet",
    "token_ids",
    "vocabulary_of",
]

PACKAGE = "emoji-datasource-google@16.0.0"
SHA256 = "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438"
SIDE = 64
PAD, NULL = "<pad>", "<null>"
"""The words with ids 0 and 1: padding, and the unconditional prompt."""


class DataError(Exception):
    """The pictures cannot be had; the message says why and what to do."""


@dataclass(frozen=True)
class Pictures:
    """Prompts and their pictures: `pixels` is `[pictures, 3, side, side]`, float32 in -1 … 1."""

    prompts: list[str]
    pixels: torch.Tensor


def known_prompts() -> list[str]:
    """The prompts of `prompts.txt`, in alphabetical order."""
    return Path(__file__).with_name("prompts.txt").read_text(encoding="utf-8").splitlines()


def obtain(tarball: Path | None) -> Pictures:
    """The pictures of the package, downloaded (74 MB) unless a tarball is given.

    Raises:
        DataError: No npm, no network, or another file than the one that this program was written for.
    """
    if tarball is not None:
        return load(tarball, known_prompts())
    with tempfile.TemporaryDirectory() as folder:
        return load(fetch(Path(folder)), known_prompts())


def fetch(folder: Path) -> Path:
    """Downloads the package into a folder, through npm.

    Raises:
        DataError: npm is missing or fails.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise DataError("npm is not installed; install it, or download the package and pass --tarball")
    command = [npm, "pack", PACKAGE, "--silent", "--pack-destination", str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise DataError(f"npm pack {PACKAGE} failed: {result.stderr.strip()}; check the network, or pass --tarball")
    return folder / result.stdout.split()[-1]


def load(tarball: Path, prompts: list[str], sha256: str | None = SHA256) -> Pictures:
    """Reads the pictures of the prompts out of the package.

    Args:
        tarball: The package as npm delivers it.
        prompts: Names of emoji, in lower case and without punctuation.
        sha256: What the tarball must hash to; None for any.

    Raises:
        DataError: The tarball is another one, or lacks a prompt.
    """
    content = tarball.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if sha256 is not None and found != sha256:
        raise DataError(f"{tarball} has SHA-256 {found}, expected {sha256}; pass the tarball of {PACKAGE}")
    # A whole pass, not a look-up by name: a compressed archive can only be read from front to back.
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as archive:
        wanted = re.compile(r"package/(emoji\.json|img/google/64/[^/]+\.png)")
        files = {
            member.name.rpartition("/")[2]: member_file.read()
            for member in archive
            if wanted.fullmatch(member.name) and (member_file := archive.extractfile(member))
        }
    images = {_prompt_of(emoji["name"]): emoji["image"] for emoji in json.loads(files["emoji.json"])}
    missing = [prompt for prompt in prompts if images.get(prompt) not in files]
    if missing:
        raise DataError(f"{tarball} has no picture for {', '.join(missing)}; pass the tarball of {PACKAGE}")
    return Pictures(list(prompts), torch.stack([_on_white(files[images[prompt]]) for prompt in prompts]))


def vocabulary_of(prompts: list[str]) -> dict[str, int]:
    """Gives each word an id, in order of appearance, after the two special words."""
    words = [PAD, NULL, *(word for prompt in prompts for word in prompt.split())]
    return {word: index for index, word in enumerate(dict.fromkeys(words))}


def token_ids(vocabulary: dict[str, int], prompt: str, length: int) -> list[int]:
    """The ids of the prompt's words, padded to `length`.

    Raises:
        DataError: The prompt has an unknown word or too many words.
    """
    words = prompt.split()
    unknown = [word for word in words if word not in vocabulary]
    if unknown or not 0 < len(words) <= length:
        raise DataError(f"prompt {prompt!r}: expected 1 to {length} known words; unknown: {unknown or 'none'}")
    ids = [vocabulary[word] for word in words]
    return ids + [vocabulary[PAD]] * (length - len(ids))


def sheet(pixels: torch.Tensor, columns: int = 14) -> Image.Image:
    """Puts pictures `[pictures, 3, side, side]` in -1 … 1 beside each other; the last row may have gaps."""
    count, _, side, _ = pixels.shape
    rows = -(-count // columns)
    canvas = Image.new("RGB", (columns * side, rows * side), "white")
    values = ((pixels.clamp(-1, 1) + 1) * 127.5).byte().permute(0, 2, 3, 1).numpy()
    for index, picture in enumerate(values):
        canvas.paste(Image.fromarray(picture), (index % columns * side, index // columns * side))
    return canvas


def _prompt_of(name: str) -> str:
    """An emoji's name without capitals and punctuation."""
    return " ".join(re.findall(r"[a-z0-9]+", name.lower()))


def _on_white(png: bytes) -> torch.Tensor:
    """Decodes a picture with transparency: `[3, side, side]` in -1 … 1."""
    picture = Image.open(io.BytesIO(png)).convert("RGBA")
    background = Image.new("RGBA", picture.size, "white")
    background.alpha_composite(picture)
    opaque = background.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(opaque)).permute(2, 0, 1).float() / 127.5 - 1


def main() -> None:
    """Command line: says what there is, and shows it."""
    parser = argparse.ArgumentParser(description="fetch the training pictures")
    parser.add_argument("--tarball", type=Path, help=f"{PACKAGE}, if it is here already")
    parser.add_argument("--sheet", type=Path, help="write all pictures into this PNG file")
    arguments = parser.parse_args()
    try:
        pictures = obtain(arguments.tarball)
    except DataError as error:
        parser.error(str(error))
    print(f"{len(pictures.prompts)} pictures, {len(vocabulary_of(pictures.prompts))} words")
    if arguments.sheet:
        sheet(pictures.pixels).save(arguments.sheet)


if __name__ == "__main__":
    main()
