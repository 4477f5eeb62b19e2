"""The training pictures, from a package made here and from the real one."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
import torch
from PIL import Image

from data import DataError, fetch, known_prompts, load, obtain, sheet, token_ids, vocabulary_of


def package(path: Path, emoji: dict[str, tuple[int, int, int, int]]) -> Path:
    """A tarball laid out as the real one, with one plain colour an emoji."""
    with tarfile.open(path, "w:gz") as archive:

        def add(name: str, content: bytes) -> None:
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))

        for name, colour in emoji.items():
            buffer = io.BytesIO()
            Image.new("RGBA", (64, 64), colour).save(buffer, "PNG")
            add(f"img/google/64/{name}.png", buffer.getvalue())
        add("emoji.json", json.dumps([{"name": n.upper(), "image": f"{n}.png"} for n in emoji]).encode())
    return path


def test_transparency_becomes_white(tmp_path: Path) -> None:
    tarball = package(tmp_path / "p.tgz", {"red-apple": (255, 0, 0, 255), "ghost": (0, 0, 0, 0)})
    pictures = load(tarball, ["ghost", "red apple"], sha256=None)
    assert pictures.prompts == ["ghost", "red apple"]
    assert pictures.pixels.shape == (2, 3, 64, 64)
    assert torch.equal(pictures.pixels[0], torch.ones(3, 64, 64))
    assert pictures.pixels[1, :, 0, 0].tolist() == [1, -1, -1]


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    tarball = package(tmp_path / "p.tgz", {"ghost": (0, 0, 0, 0)})
    with pytest.raises(DataError, match="SHA-256"):
        load(tarball, ["ghost"])
    with pytest.raises(DataError, match="no picture for lemon"):
        load(tarball, ["ghost", "lemon"], sha256=None)


def test_words() -> None:
    prompts = known_prompts()
    vocabulary = vocabulary_of(prompts)
    assert len(prompts) == len(set(prompts)) == 112
    assert prompts == sorted(prompts)
    assert (vocabulary["<pad>"], vocabulary["<null>"]) == (0, 1)
    assert sorted(vocabulary.values()) == list(range(118))
    assert token_ids(vocabulary, "panda face", 4) == [vocabulary["panda"], vocabulary["face"], 0, 0]
    with pytest.raises(DataError, match="unknown: \\['unicorn'\\]"):
        token_ids(vocabulary, "unicorn face", 4)


def test_sheet() -> None:
    assert sheet(torch.zeros(5, 3, 8, 8), columns=3).size == (24, 16)


def test_the_real_package(tmp_path: Path) -> None:
    try:
        tarball = fetch(tmp_path)
    except DataError as error:
        pytest.skip(str(error))
    pictures = obtain(tarball)
    assert pictures.pixels.shape == (112, 3, 64, 64)
    assert pictures.pixels.amin() >= -1
    assert pictures.pixels.amax() == 1
    # No two prompts may have the same picture, or the model could not tell them apart.
    assert len(pictures.pixels.flatten(1).unique(dim=0)) == 112
