"""Trains the emoji model from nothing, in one stage, on a CPU.

    train.py --out emoji --minutes 60 [--seed 0] [--tarball FILE]
    train.py --out emoji --minutes 90 --resume

The folder `--out` is what the exporter takes. Beside it lies `OUT.checkpoint.pt`, from which `--resume` goes on, with
the same random numbers that an uncut run would have drawn. Both are replaced at every `--save-minutes` and at the end
(Ctrl-C included), each in one step.

What matters, learned from earlier attempts: the mapping from prompt to shape is learned at high noise, so most
samples are drawn there; with noise levels around one half, shapes stay vague however long one trains.
"""

from __future__ import annotations

import argparse
import copy
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from data import NULL, PACKAGE, DataError, Pictures, obtain, token_ids, vocabulary_of
from files import replaced_file, replaced_folder
from model import PromptFlux, Shape, ids_of, save

__all__ = ["Budget", "Recipe", "Training"]

CARD = """# Emoji

A small FLUX transformer in pixel space that draws {count} emoji at 64 x 64, one for each prompt of `prompts.json`.
It has learned these pictures by heart, and draws near-copies of them.

Made by `export/train/train.py` of dbcache-trt: seed {seed}, {steps} steps of {batch} pictures.

Training pictures: Noto Emoji, copyright Google LLC, Apache License 2.0, as packed in the npm package {package}
(MIT). The weights are under the Apache License 2.0.
"""


@dataclass(frozen=True)
class Recipe:
    """How one step is made.

    Attributes:
        batch: Pictures a step.
        learning_rate: Of AdamW, at its height.
        warmup_steps: Over which the learning rate rises.
        hold: Share of the run after which the learning rate falls, in a line, to `floor` of its height.
        floor: See `hold`.
        betas: Of AdamW.
        weight_decay: On matrices only.
        clip: Largest norm of the gradient.
        ema: Share that the averaged weights keep at each step, once the run is long enough.
        uncond: Share of samples whose prompt is replaced by the unconditional one.
        noise_mean: sigma = sigmoid(normal(noise_mean, noise_std)); 1.0 and 1.6 mean mostly high noise.
        noise_std: See `noise_mean`.
        noise_max: Largest sigma.
        loss_floor: The loss of a sample is mean((prediction - picture)^2) / max(sigma, loss_floor)^2.
    """

    batch: int = 16
    learning_rate: float = 1e-3
    warmup_steps: int = 150
    hold: float = 0.5
    floor: float = 0.02
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.01
    clip: float = 1.0
    ema: float = 0.9985
    uncond: float = 0.1
    noise_mean: float = 1.0
    noise_std: float = 1.6
    noise_max: float = 0.999
    loss_floor: float = 0.15


@dataclass(frozen=True)
class Budget:
    """How long to train: one of the two numbers, counted from the very start, earlier runs included."""

    steps: int | None = None
    minutes: float | None = None

    def __post_init__(self) -> None:
        """Refuses a budget that says nothing, or two things.

        Raises:
            ValueError: Not exactly one of the two is given, or it is not positive.
        """
        given = [amount for amount in (self.steps, self.minutes) if amount is not None]
        if len(given) != 1 or given[0] <= 0:
            raise ValueError(f"expected a positive number of steps or of minutes, got {self.steps}, {self.minutes}")

    def spent(self, steps: int, minutes: float) -> float:
        """The share of the budget that is used up, 0 … 1 and more."""
        if self.minutes is not None:
            return minutes / self.minutes
        return steps / self.steps if self.steps is not None else 1.0


@dataclass
class Training:
    """A run: the model, its average, the optimiser and the random numbers.

    Attributes:
        pictures: What to learn.
        shape: Of the model.
        recipe: How to learn it.
        seed: Of the first weights and of all draws.
        steps: Done so far.
        minutes: Spent so far, earlier runs included.
        losses: Of the steps of this run.
    """

    pictures: Pictures
    shape: Shape = field(default_factory=Shape)
    recipe: Recipe = field(default_factory=Recipe)
    seed: int = 0
    steps: int = 0
    minutes: float = 0.0
    losses: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Makes the first weights, without touching torch's global generator."""
        vocabulary = vocabulary_of(self.pictures.prompts)
        length = self.shape.text_length
        self._ids = ids_of(vocabulary, self.pictures.prompts, length)
        self._null = torch.tensor(token_ids(vocabulary, NULL, length))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.model = PromptFlux(self.shape, len(vocabulary))
        self.average = copy.deepcopy(self.model).eval().requires_grad_(False)
        parameters = list(self.model.parameters())
        self._optimizer = torch.optim.AdamW(
            [
                {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": self.recipe.weight_decay},
                {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
            ],
            lr=self.recipe.learning_rate,
            betas=self.recipe.betas,
            fused=True,
        )
        self._random = torch.Generator().manual_seed(self.seed)

    def step(self, spent: float) -> float:
        """Learns from one batch.

        Args:
            spent: The share of the run that lies behind, which sets the learning rate.

        Returns:
            The loss.
        """
        recipe = self.recipe
        for group in self._optimizer.param_groups:
            group["lr"] = self.learning_rate(spent)
        clean, ids, sigma, noise = self._draw()
        mix = sigma[:, None, None, None]
        prediction = self.model((1 - mix) * clean + mix * noise, sigma, ids)
        errors = (prediction - clean).square().mean(dim=(1, 2, 3))
        loss = (errors / sigma.clamp(min=recipe.loss_floor).square()).mean()
        self._optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), recipe.clip)
        self._optimizer.step()
        self.steps += 1
        # The first weights are worth nothing, so the average forgets faster at the start.
        keep = min(recipe.ema, self.steps / (self.steps + 20))
        with torch.no_grad():
            for averaged, current in zip(self.average.parameters(), self.model.parameters(), strict=True):
                averaged.lerp_(current, 1 - keep)
        self.losses.append(loss.item())
        return self.losses[-1]

    def run(self, budget: Budget, after_step: Callable[[float], None] = lambda loss: None) -> None:
        """Trains until the budget is spent.

        Args:
            budget: How long.
            after_step: Told the loss of each step.
        """
        started, before = time.monotonic(), self.minutes
        while (spent := budget.spent(self.steps, self.minutes)) < 1:
            loss = self.step(spent)
            self.minutes = before + (time.monotonic() - started) / 60
            after_step(loss)

    def learning_rate(self, spent: float) -> float:
        """The rate at a share of the run: it rises, holds, and falls."""
        rise = min(1.0, (self.steps + 1) / self.recipe.warmup_steps)
        fall = max(self.recipe.floor, min(1.0, (1 - spent) / (1 - self.recipe.hold)))
        return self.recipe.learning_rate * rise * fall

    def save_model(self, folder: Path) -> None:
        """Writes the averaged weights as a model folder."""
        card = CARD.format(
            count=len(self.pictures.prompts),
            seed=self.seed,
            steps=self.steps,
            batch=self.recipe.batch,
            package=PACKAGE,
        )
        with replaced_folder(folder) as new:
            save(self.average, self.pictures.prompts, new)
            (new / "README.md").write_text(card, encoding="utf-8")

    def save_checkpoint(self, path: Path) -> None:
        """Writes everything that `load_checkpoint` needs."""
        state = {
            "identity": self._identity(),
            "steps": self.steps,
            "minutes": self.minutes,
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "random": self._random.get_state(),
        }
        with replaced_file(path) as new:
            torch.save(state, new)

    def load_checkpoint(self, path: Path) -> None:
        """Goes on where a run was saved.

        Raises:
            DataError: The checkpoint is of another run.
        """
        state: dict[str, Any] = torch.load(path, weights_only=True)
        if state["identity"] != self._identity():
            raise DataError(f"{path} belongs to another seed, shape, recipe or set of prompts; train anew, elsewhere")
        self.steps, self.minutes = state["steps"], state["minutes"]
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._random.set_state(state["random"])

    def _draw(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """One batch: pictures and noise `[batch, 3, side, side]`, ids `[batch, text length]`, sigma `[batch]`."""
        recipe, count = self.recipe, self.recipe.batch
        chosen = torch.randint(len(self._ids), (count,), generator=self._random)
        clean, ids = self.pictures.pixels[chosen], self._ids[chosen]
        ids[torch.rand(count, generator=self._random) < recipe.uncond] = self._null
        level = recipe.noise_mean + recipe.noise_std * torch.randn(count, generator=self._random)
        noise = torch.randn(clean.shape, generator=self._random)
        return clean, ids, torch.sigmoid(level).clamp(max=recipe.noise_max), noise

    def _identity(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "shape": asdict(self.shape),
            "recipe": asdict(self.recipe),
            "prompts": self.pictures.prompts,
        }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="train the emoji model")
    budget = parser.add_mutually_exclusive_group(required=True)
    budget.add_argument("--minutes", type=float, help="train this long in all")
    budget.add_argument("--steps", type=int, help="train this many steps in all")
    parser.add_argument("--out", type=Path, required=True, help="the model folder to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true", help="go on from OUT.checkpoint.pt")
    parser.add_argument("--tarball", type=Path, help=f"{PACKAGE}, if it is here already")
    parser.add_argument("--save-minutes", type=float, default=5.0, help="how often to save (default 5)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="fewer, when the machine has other work")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    checkpoint = arguments.out.with_name(f"{arguments.out.name}.checkpoint.pt")
    if checkpoint.exists() and not arguments.resume:
        parser.error(f"{checkpoint} exists; pass --resume to go on, or remove it")
    try:
        allowed = Budget(arguments.steps, arguments.minutes)
        training = Training(obtain(arguments.tarball), seed=arguments.seed)
        if arguments.resume:
            training.load_checkpoint(checkpoint)
    except FileNotFoundError as error:
        parser.error(f"cannot read {error.filename}: {error.strerror}")
    except (DataError, ValueError) as error:
        parser.error(str(error))

    saved_minutes = training.minutes
    report = _Report(training)

    def after_step(_loss: float) -> None:
        nonlocal saved_minutes
        report.after_step()
        if training.minutes - saved_minutes >= arguments.save_minutes:
            saved_minutes = training.minutes
            training.save_checkpoint(checkpoint)
            training.save_model(arguments.out)

    try:
        training.run(allowed, after_step)
    except KeyboardInterrupt:
        print("interrupted; pass --resume to go on", flush=True)
    training.save_checkpoint(checkpoint)
    training.save_model(arguments.out)
    print(f"{arguments.out}: {training.steps} steps, {training.minutes:.1f} minutes", flush=True)


class _Report:
    """Prints how it goes, every so many steps."""

    EVERY_STEPS = 50

    def __init__(self, training: Training) -> None:
        self._training = training
        self._since = (training.steps, training.minutes)

    def after_step(self) -> None:
        training = self._training
        if training.steps % self.EVERY_STEPS:
            return
        steps, minutes = self._since
        self._since = (training.steps, training.minutes)
        seconds = max(1e-9, 60 * (training.minutes - minutes))
        recent = training.losses[-100:]
        print(
            f"{training.minutes:6.1f} min  step {training.steps}  loss {sum(recent) / len(recent):.4f}  "
            f"{(training.steps - steps) * training.recipe.batch / seconds:.1f} pictures/s",
            flush=True,
        )


if __name__ == "__main__":
    main()
