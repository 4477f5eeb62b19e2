"""Videos as lists of tokens, in which the columns run fastest, then the rows, then the frames."""

from __future__ import annotations

__all__ = ["Grid", "VideoProjection"]

from typing import Any, Literal

import torch
from torch import Tensor

from dbcache_export.families.layers import Modulated

#: The order of a token's features: channel, row, column, or row, column, channel.
Features = Literal["cpp", "ppc"]


class Grid:
    """The tokens of a video: how many there are along each axis, and the way back to latents."""

    def __init__(self, latents: Tensor, patch: int, axes: str = "bcfhw") -> None:
        """Reads the lengths of the latents' axes; `patch` are their cells on each side of a token."""
        length = dict(zip(axes, latents.shape, strict=True))
        self.shape, self.axes, self.patch = latents.shape, axes, patch
        self.batch, self.channels, self.frames = length["b"], length["c"], length["f"]
        self.rows, self.columns = length["h"] // patch, length["w"] // patch

    @property
    def sides(self) -> tuple[int, int, int]:
        """Tokens along each axis."""
        return self.frames, self.rows, self.columns

    @property
    def tokens(self) -> int:
        """All of them."""
        return self.frames * self.rows * self.columns

    def embed_frames(self, projection: Any, frames: Tensor) -> Tensor:
        """A patch embedding of pictures for each frame, [batch · frames, channels, height, width]: tokens."""
        tokens = projection(frames).flatten(2).transpose(1, 2)
        return tokens.reshape(self.batch, self.tokens, tokens.shape[2])

    def latents(self, tokens: Tensor, features: Features) -> Tensor:
        """[batch, tokens, features] to the shape of the latents, float32.

        Args:
            tokens: In the order of this module.
            features: Their order.
        """
        torch._check(tokens.shape[1] == self.tokens)
        inner = {"c": self.channels, "p": self.patch}
        cells = tokens.reshape(self.batch, *self.sides, *(inner[axis] for axis in features))
        channel, row, column = (4, 5, 6) if features == "cpp" else (6, 4, 5)
        places = {"b": [0], "f": [1], "c": [channel], "h": [2, row], "w": [3, column]}
        return cells.permute([place for axis in self.axes for place in places[axis]]).reshape(self.shape).float()


class VideoProjection(Modulated):
    """The last layers of many models, where the engine takes the shape of the latents."""

    features: Features = "cpp"

    def forward(self, hidden_states: Tensor, temb: Tensor, latents: Tensor) -> Tensor:
        """[batch, image, width] to the shape of the latents, float32."""
        grid = Grid(latents, self.config.patch_size)
        return grid.latents(self.projected(hidden_states, temb), self.features)
