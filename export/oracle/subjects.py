"""Loads the models that traces are recorded on, each with the inputs of one generation.

* a *prompt model*: a folder with `transformer/`, `text/` and `prompts.json`, as `export/train/` writes it;
* the *public traces*: a folder with `index.json` and `oracle.safetensors`, which holds weights and inputs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import FluxTransformer2DModel
from safetensors.torch import load_file

from generate import Conditions, Subject

__all__ = ["PIXEL_SHAPE", "UNCONDITIONAL", "PromptModel", "public_subject", "start_noise"]

PIXEL_SHAPE = (1, 3, 64, 64)
PATCH = 8
UNCONDITIONAL = "<null>"
MIN_SIGMA = 0.02
"""Divisor of the velocity near sigma 0; the model predicts the clean picture."""


def start_noise(seed: int) -> torch.Tensor:
    """Standard normal noise `[1, 3, 64, 64]`, float32, from torch's CPU generator."""
    return torch.randn(PIXEL_SHAPE, generator=torch.Generator("cpu").manual_seed(seed), dtype=torch.float32)


def linear_sigmas(steps: int) -> torch.Tensor:
    """The FLUX pipeline's sigmas without shift, `[steps + 1]`, float32: linspace(1, 1/steps, steps) and 0."""
    return torch.from_numpy(np.append(np.linspace(1.0, 1 / steps, steps), 0.0).astype(np.float32))


class PromptModel:
    """A pixel-space FLUX that draws what one of its prompts names; its fp16 weights are used as float32."""

    def __init__(self, folder: Path) -> None:
        """Loads transformer, embeddings and vocabulary."""
        self.transformer: Any = FluxTransformer2DModel.from_pretrained(
            folder / "transformer", torch_dtype=torch.float32
        ).eval()
        embedding = load_file(folder / "text" / "embedding.safetensors")
        self._tokens = embedding["token_embedding.weight"].float()
        self._positions = embedding["position_embedding"].float()
        vocabulary = (folder / "text" / "vocab.json").read_text(encoding="utf-8")
        self._vocabulary: dict[str, int] = json.loads(vocabulary)

    def conditions(self, prompt: str) -> Conditions:
        """Looks the words up.

        Returns:
            `encoder_hidden_states` `[1, 8, width]`, and `pooled_projections` `[1, width]`, the words' mean.
        """
        ids = [self._vocabulary[word] for word in prompt.split()]
        padded = torch.tensor(ids + [0] * (len(self._positions) - len(ids)))
        return {
            "encoder_hidden_states": (self._tokens[padded] + self._positions)[None],
            "pooled_projections": self._tokens[torch.tensor(ids)].mean(dim=0, keepdim=True),
        }

    def subject(self, prompt: str, seed: int, steps: int) -> Subject:
        """Everything for one generation of one picture."""
        batch, channels, height, width = PIXEL_SHAPE
        rows, columns = height // PATCH, width // PATCH
        noise = start_noise(seed).view(batch, channels, rows, PATCH, columns, PATCH)
        tokens = noise.permute(0, 2, 4, 1, 3, 5).reshape(batch, rows * columns, channels * PATCH * PATCH)
        grid = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).float()
        return Subject(
            transformer=self.transformer,
            latents=tokens,
            sigmas=linear_sigmas(steps),
            shared={
                "img_ids": torch.cat([torch.zeros(len(grid), 1), grid], dim=1),
                "txt_ids": torch.zeros(len(self._positions), 3),
            },
            cond=self.conditions(prompt),
            uncond=self.conditions(UNCONDITIONAL),
            min_sigma=MIN_SIGMA,
        )


def public_subject(folder: Path, steps: int) -> Subject:
    """The model of the public traces with its inputs."""
    index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    tensors = {name: tensor.float() for name, tensor in load_file(folder / "oracle.safetensors").items()}
    transformer: Any = FluxTransformer2DModel(**index["model"]).eval()
    weights = {name.removeprefix("w."): tensor for name, tensor in tensors.items() if name.startswith("w.")}
    transformer.load_state_dict(weights)
    return Subject(
        transformer=transformer,
        latents=tensors["in.latents"],
        sigmas=tensors[f"in.sigmas{steps}"],
        shared={
            "img_ids": tensors["in.img_ids"],
            "txt_ids": tensors["in.txt_ids"],
            "guidance": torch.tensor([index["guidance"]]),
        },
        cond={
            "encoder_hidden_states": tensors["in.prompt"],
            "pooled_projections": tensors["in.pooled"],
        },
        uncond={
            "encoder_hidden_states": tensors["in.neg_prompt"],
            "pooled_projections": tensors["in.neg_pooled"],
        },
    )
