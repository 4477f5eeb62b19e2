"""A few steps on a tiny model and made-up pictures: it learns, is saved, goes on, and what it draws is measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel

from data import DataError, Pictures
from evaluate import draw, psnr
from model import PromptFlux, Shape, ids_of, load
from train import Budget, Recipe, Training

SHAPE = Shape(
    double_blocks=1, single_blocks=2, heads=2, head_width=16, rope_axes=(4, 6, 6), patch=4, side=8, text_length=3
)
RECIPE = Recipe(batch=8, learning_rate=4e-3, warmup_steps=5)
COLOURS = {"red": (1.0, -1.0, -1.0), "green": (-1.0, 1.0, -1.0), "dark blue": (-1.0, -1.0, 0.0)}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def training(seed: int = 0) -> Training:
    pixels = torch.tensor(list(COLOURS.values()))[:, :, None, None].expand(-1, -1, SHAPE.side, SHAPE.side)
    return Training(Pictures(list(COLOURS), pixels.contiguous()), SHAPE, RECIPE, seed)


def test_starts_at_zero() -> None:
    model = PromptFlux(SHAPE, words=4)
    x = torch.randn(2, 3, SHAPE.side, SHAPE.side)
    assert torch.equal(model._unpack(model._pack(x)), x)
    assert torch.count_nonzero(model(x, torch.tensor([0.9, 0.1]), torch.tensor([[2, 0, 0], [1, 0, 0]]))) == 0


def test_learns_and_is_saved(tmp_path: Path) -> None:
    run = training()
    run.run(Budget(steps=120))
    first, last = sum(run.losses[:10]) / 10, sum(run.losses[-10:]) / 10
    assert last < 0.1 * first

    folder = tmp_path / "model"
    run.save_model(folder)
    run.save_model(folder)  # What is there already is replaced.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]
    assert json.loads((folder / "prompts.json").read_text()) == sorted(COLOURS)
    assert (folder / "README.md").read_text().count("Apache License 2.0") == 2
    transformer = FluxTransformer2DModel.from_pretrained(folder / "transformer", torch_dtype=torch.float16)
    assert transformer.dtype == torch.float16

    model, vocabulary = load(folder, SHAPE.side)
    assert all(path.stat().st_mode & 0o044 for path in folder.rglob("*"))
    for name, value in run.average.state_dict().items():
        assert torch.equal(model.state_dict()[name], value.half().float()), name
    drawn = draw(model, ids_of(vocabulary, list(COLOURS), SHAPE.text_length), [0, 1, 2], steps=8)
    assert psnr(drawn, run.pictures.pixels).min() > 15


def test_a_resumed_run_equals_an_uncut_one(tmp_path: Path) -> None:
    uncut, cut, resumed = training(), training(), training()
    uncut.run(Budget(steps=6))
    for _ in range(3):
        cut.step(cut.steps / 6)
    cut.save_checkpoint(tmp_path / "checkpoint.pt")
    resumed.load_checkpoint(tmp_path / "checkpoint.pt")
    resumed.run(Budget(steps=6))
    assert resumed.losses == uncut.losses[3:]
    for name, value in uncut.average.state_dict().items():
        assert torch.equal(resumed.average.state_dict()[name], value), name


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    training(seed=1).save_checkpoint(tmp_path / "checkpoint.pt")
    with pytest.raises(DataError, match="another seed"):
        training(seed=2).load_checkpoint(tmp_path / "checkpoint.pt")


def test_budget() -> None:
    assert Budget(steps=10).spent(5, 99) == 0.5
    assert Budget(minutes=2).spent(99, 0.5) == 0.25
    for wrong in ({}, {"steps": 0}, {"steps": 1, "minutes": 1.0}, {"minutes": -1.0}):
        with pytest.raises(ValueError, match="expected a positive number"):
            Budget(**wrong)  # type: ignore[arg-type]
    run = training()
    run.run(Budget(minutes=1e-6))
    assert run.steps == 1


def test_learning_rate_rises_holds_and_falls() -> None:
    run = training()
    assert run.learning_rate(0.0) == pytest.approx(RECIPE.learning_rate / 5)
    run.steps = 100
    assert run.learning_rate(0.5) == RECIPE.learning_rate
    assert run.learning_rate(0.75) == pytest.approx(RECIPE.learning_rate / 2)
    assert run.learning_rate(1.0) == pytest.approx(RECIPE.learning_rate * RECIPE.floor)
