"""A FLUX transformer over pixels with words as text, and the folder in which it is kept.

The transformer is diffusers' own, with FLUX.1's topology (19 double and 38 single blocks) at a width of 96. A
picture of 64 x 64 becomes 64 tokens, patches of 8 x 8 x 3 values; the model predicts the clean picture x0 from
x = (1 - sigma) * x0 + sigma * noise.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import FluxTransformer2DModel
from safetensors.torch import load_file
from safetensors.torch import save as serialize
from torch import nn

from data import token_ids, vocabulary_of

__all__ = ["MIN_SIGMA", "PromptFlux", "Shape", "ids_of", "load", "sample", "save"]

CHANNELS = 3
MIN_SIGMA = 0.02
"""The smallest divisor of velocity = (x - x0) / max(sigma, MIN_SIGMA)."""


@dataclass(frozen=True)
class Shape:
    """The sizes of a model; the default is the one that ships."""

    double_blocks: int = 19
    single_blocks: int = 38
    heads: int = 3
    head_width: int = 32
    rope_axes: tuple[int, int, int] = (8, 12, 12)
    patch: int = 8
    side: int = 64
    text_length: int = 8

    @property
    def width(self) -> int:
        """Features of a token inside the transformer."""
        return self.heads * self.head_width


class PromptFlux(nn.Module):
    """The transformer with its table of words.

    Attributes:
        transformer: A `FluxTransformer2DModel`.
        token_embedding: `[words, width]`.
        position_embedding: `[text length, width]`.
    """

    def __init__(self, shape: Shape, words: int) -> None:
        """Starts from scratch, AdaLN-zero: every block is the identity, and the prediction is 0."""
        super().__init__()
        self.shape = shape
        self.transformer: Any = FluxTransformer2DModel(
            patch_size=1,
            in_channels=CHANNELS * shape.patch**2,
            num_layers=shape.double_blocks,
            num_single_layers=shape.single_blocks,
            attention_head_dim=shape.head_width,
            num_attention_heads=shape.heads,
            joint_attention_dim=shape.width,
            pooled_projection_dim=shape.width,
            guidance_embeds=False,
            axes_dims_rope=shape.rope_axes,
        )
        self.token_embedding = nn.Embedding(words, shape.width)
        self.position_embedding = nn.Parameter(0.02 * torch.randn(shape.text_length, shape.width))
        nn.init.normal_(self.token_embedding.weight, std=0.5)
        for linear in self._zero_at_start():
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)
        cells = torch.arange(shape.side // shape.patch)
        grid = torch.cartesian_prod(cells, cells).float()
        self.register_buffer("img_ids", torch.cat([torch.zeros(len(grid), 1), grid], dim=1), persistent=False)
        self.register_buffer("txt_ids", torch.zeros(shape.text_length, 3), persistent=False)

    def forward(self, x: torch.Tensor, sigma: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Predicts the clean pictures.

        Args:
            x: Noisy pictures `[batch, 3, side, side]`.
            sigma: `[batch]`, 1 (noise) … 0 (clean).
            ids: Token ids `[batch, text length]`, 0 for padding.

        Returns:
            x0, shaped as x.
        """
        words = self.token_embedding(ids)
        is_word = (ids != 0).to(words.dtype)[..., None]
        output = self.transformer(
            hidden_states=self._pack(x),
            encoder_hidden_states=words + self.position_embedding,
            pooled_projections=(words * is_word).sum(1) / is_word.sum(1).clamp(min=1),
            timestep=sigma,
            img_ids=self.img_ids,
            txt_ids=self.txt_ids,
            return_dict=False,
        )[0]
        return self._unpack(output)

    def _zero_at_start(self) -> list[Any]:
        """The modulation of every block and of the last norm, and the projection to pixels."""
        modulations = [self.transformer.norm_out.linear]
        for block in self.transformer.transformer_blocks:
            modulations += [block.norm1.linear, block.norm1_context.linear]
        modulations += [block.norm.linear for block in self.transformer.single_transformer_blocks]
        return [*modulations, self.transformer.proj_out]

    def _pack(self, x: torch.Tensor) -> torch.Tensor:
        """`[batch, 3, side, side]` to `[batch, tokens, 3 * patch * patch]`, channel first within a patch."""
        patch, cells = self.shape.patch, self.shape.side // self.shape.patch
        parts = x.view(-1, CHANNELS, cells, patch, cells, patch).permute(0, 2, 4, 1, 3, 5)
        return parts.reshape(-1, cells * cells, CHANNELS * patch * patch)

    def _unpack(self, tokens: torch.Tensor) -> torch.Tensor:
        """The inverse of `_pack`."""
        patch, side = self.shape.patch, self.shape.side
        cells = side // patch
        parts = tokens.view(-1, cells, cells, CHANNELS, patch, patch).permute(0, 3, 1, 4, 2, 5)
        return parts.reshape(-1, CHANNELS, side, side)


@torch.inference_mode()
def sample(model: PromptFlux, ids: torch.Tensor, noise: torch.Tensor, steps: int) -> torch.Tensor:
    """Draws pictures with Euler steps over linear sigmas, without guidance.

    Args:
        model: In evaluation mode.
        ids: Token ids `[batch, text length]`.
        noise: Where to start, `[batch, 3, side, side]`.
        steps: How many.

    Returns:
        Pictures, shaped as the noise, about in -1 … 1.
    """
    sigmas = torch.linspace(1, 0, steps + 1)
    x = noise
    for sigma, following in pairwise(sigmas):
        velocity = (x - model(x, sigma.expand(len(x)), ids)) / sigma.clamp(min=MIN_SIGMA)
        x = x + (following - sigma) * velocity
    return x


def save(model: PromptFlux, prompts: list[str], folder: Path) -> None:
    """Writes the model into an empty folder, in fp16, as the exporter takes it.

    The folder gets `transformer/` as diffusers writes it, `text/embedding.safetensors` and `text/vocab.json`
    (word: id), and `prompts.json`.
    """
    transformer, text = folder / "transformer", folder / "text"
    transformer.mkdir()
    text.mkdir()
    # Not save_pretrained: that would need the module itself in fp16.
    config = {name: value for name, value in model.transformer.config.items() if not name.startswith("_")}
    config |= {
        "_class_name": "FluxTransformer2DModel",
        "_diffusers_version": diffusers.__version__,
    }
    _write_json(transformer / "config.json", config)
    _write_tensors(transformer / "diffusion_pytorch_model.safetensors", model.transformer.state_dict())
    tables = {
        "token_embedding.weight": model.token_embedding.weight,
        "position_embedding": model.position_embedding,
    }
    _write_tensors(text / "embedding.safetensors", tables)
    _write_json(text / "vocab.json", vocabulary_of(prompts))
    _write_json(folder / "prompts.json", sorted(prompts))


def load(folder: Path, side: int = Shape.side) -> tuple[PromptFlux, dict[str, int]]:
    """Reads a model folder.

    Args:
        folder: As `save` writes it.
        side: Of the pictures; the folder does not say.

    Returns:
        The model in float32 and evaluation mode, and its vocabulary.
    """
    transformer: Any = FluxTransformer2DModel.from_pretrained(folder / "transformer", torch_dtype=torch.float32)
    tables = load_file(folder / "text" / "embedding.safetensors")
    vocabulary: dict[str, int] = json.loads((folder / "text" / "vocab.json").read_text(encoding="utf-8"))
    config = transformer.config
    shape = Shape(
        double_blocks=config.num_layers,
        single_blocks=config.num_single_layers,
        heads=config.num_attention_heads,
        head_width=config.attention_head_dim,
        rope_axes=tuple(config.axes_dims_rope),
        patch=round((config.in_channels / CHANNELS) ** 0.5),
        side=side,
        text_length=len(tables["position_embedding"]),
    )
    model = PromptFlux(shape, len(vocabulary))
    model.transformer = transformer
    model.token_embedding.weight.data = tables["token_embedding.weight"].float()
    model.position_embedding.data = tables["position_embedding"].float()
    return model.eval(), vocabulary


def ids_of(vocabulary: dict[str, int], prompts: list[str], length: int) -> torch.Tensor:
    """Token ids of several prompts, `[prompts, length]`."""
    return torch.tensor([token_ids(vocabulary, prompt, length) for prompt in prompts])


def _write_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    half = {name: tensor.detach().to(torch.float16).contiguous() for name, tensor in tensors.items()}
    path.write_bytes(serialize(half, {"format": "pt"}))


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
