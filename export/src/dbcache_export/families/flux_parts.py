"""The three parts into which a FLUX transformer is cut, and the uncut original for the check."""

from __future__ import annotations

__all__ = ["Block", "Embed", "Final", "FluxReference"]

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn

from dbcache_export.families.literal import literal_timesteps


class Embed(nn.Module):
    """From the inputs of a request and a step to the streams and what every block needs.

    Everything that crosses the engine's boundary is float32. In 16-bit models sigma and guidance stay float32 up to
    their sinusoids; diffusers rounds them first, which in bfloat16 leaves 8 bits of the timestep.
    """

    def __init__(self, model: FluxTransformer2DModel, dtype: torch.dtype) -> None:
        """Takes the layers before the first block from `model`."""
        super().__init__()
        self.x_embedder = model.x_embedder
        self.context_embedder = model.context_embedder
        self.time_text_embed = model.time_text_embed
        self.pos_embed = model.pos_embed
        self.dtype = dtype
        literal_timesteps(self)

    def forward(
        self,
        latents: Tensor,
        timestep: Tensor,
        prompt_embeds: Tensor,
        pooled_projections: Tensor,
        img_ids: Tensor,
        txt_ids: Tensor,
        guidance: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The streams, the conditioning of the modulations, and the rotary tables.

        Args:
            latents: [batch, image, patch features].
            timestep: [batch], sigma.
            prompt_embeds: [batch, text, text width].
            pooled_projections: [batch, pooled width].
            img_ids: [image, 3].
            txt_ids: [text, 3].
            guidance: [batch], where the model embeds the scale.

        Returns:
            hidden_states [batch, image, width], encoder_hidden_states [batch, text, width], temb [batch, width],
            rotary_cos and rotary_sin [text + image, head width], float32.
        """
        scales = (timestep * 1000,) if guidance is None else (timestep * 1000, guidance * 1000)
        temb = self.time_text_embed(*scales, pooled_projections.to(self.dtype))
        rotary_cos, rotary_sin = self.pos_embed(torch.cat((txt_ids, img_ids)))
        hidden_states = self.x_embedder(latents.to(self.dtype))
        encoder_hidden_states = self.context_embedder(prompt_embeds.to(self.dtype))
        return hidden_states, encoder_hidden_states, temb, rotary_cos, rotary_sin


class Block(nn.Module):
    """A block of either kind: both map (image, text) to (image, text)."""

    def __init__(self, block: nn.Module) -> None:
        """Wraps a FluxTransformerBlock or a FluxSingleTransformerBlock."""
        super().__init__()
        self.block = block

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        temb: Tensor,
        rotary_cos: Tensor,
        rotary_sin: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """[batch, image, width] and [batch, text, width] to the same."""
        text, image = self.block(
            hidden_states=hidden_states,
            encoder_hidden_states=encoder_hidden_states,
            temb=temb,
            image_rotary_emb=(rotary_cos, rotary_sin),
        )
        return image, text


class Final(nn.Module):
    """From the image stream to the prediction."""

    def __init__(self, model: FluxTransformer2DModel) -> None:
        """Takes the layers behind the last block from `model`."""
        super().__init__()
        self.norm_out = model.norm_out
        self.proj_out = model.proj_out

    def forward(self, hidden_states: Tensor, temb: Tensor) -> Tensor:
        """[batch, image, width] to [batch, image, patch features], float32."""
        prediction: Tensor = self.proj_out(self.norm_out(hidden_states, temb))
        return prediction.float()


class FluxReference:
    """diffusers' own model, whole, in float32."""

    def __init__(self, folder: Path) -> None:
        """Loads the transformer in `folder`."""
        self.model = FluxTransformer2DModel.from_pretrained(folder, torch_dtype=torch.float32).eval()

    def run(
        self,
        inputs: Mapping[str, Tensor],
        on_block: Callable[[int, dict[str, Tensor], dict[str, Tensor]], None],
    ) -> Tensor:
        """See `spec.Reference`."""
        blocks = [*self.model.transformer_blocks, *self.model.single_transformer_blocks]

        def hook(index: int) -> Callable[..., None]:
            def see(_: nn.Module, __: Any, given: dict[str, Any], result: tuple[Tensor, Tensor]) -> None:
                rotary = dict(zip(("rotary_cos", "rotary_sin"), given["image_rotary_emb"], strict=True))
                taken = {name: given[name] for name in ("hidden_states", "encoder_hidden_states", "temb")}
                text, image = result
                on_block(index, taken | rotary, {"hidden_states": image, "encoder_hidden_states": text})

            return see

        handles = [block.register_forward_hook(hook(i), with_kwargs=True) for i, block in enumerate(blocks)]
        names = {"latents": "hidden_states", "prompt_embeds": "encoder_hidden_states"}
        try:
            with torch.no_grad():
                prediction: Tensor = self.model(
                    **{names.get(name, name): value for name, value in inputs.items()}, return_dict=False
                )[0]
        finally:
            for handle in handles:
                handle.remove()
        return prediction
