"""Times the steps of a FLUX.1 transformer in PyTorch, beside `cargo xtask check-gpu`: needs PyTorch and nothing else.

FOLDER holds `engine/` with its own weights, `inputs.safetensors` and `shape.json`. Every step computes all blocks, as
`--cache none` does, and nothing is compiled. diffusers' own model is timed as well where it can be imported.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import struct
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

try:
    import torch
    from torch.nn import functional
except ImportError as missing:
    sys.exit(f"left out: PyTorch cannot be imported by {sys.executable} ({missing})")

HEAD_WIDTH = 128
#: How many of a head's numbers each axis of a position turns.
AXES = (16, 56, 56)
CHANNELS = 64
GUIDANCE = 3.5

Weights = Mapping[str, torch.Tensor]


def read_tensors(path: Path, device: str) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file."""
    dtypes = {"BF16": torch.bfloat16, "F32": torch.float32}
    with path.open("rb") as file:
        length = struct.unpack("<Q", file.read(8))[0]
        header: dict[str, Any] = json.loads(file.read(length))
        header.pop("__metadata__", None)
        tensors = {}
        for name, tensor in header.items():
            begin, end = tensor["data_offsets"]
            file.seek(8 + length + begin)
            values = torch.frombuffer(bytearray(file.read(end - begin)), dtype=dtypes[tensor["dtype"]])
            tensors[name] = values.reshape(tensor["shape"]).to(device)
    return tensors


class Flux:
    """FLUX.1's transformer over a file of weights, as diffusers names them."""

    def __init__(self, weights: Weights, heads: int, double: int, single: int) -> None:
        """Takes weights of one dtype and device."""
        self.weights, self.heads, self.double, self.single = weights, heads, double, single

    def __call__(
        self,
        latents: torch.Tensor,
        prompt: torch.Tensor,
        pooled: torch.Tensor,
        positions: torch.Tensor,
        timestep: torch.Tensor,
    ) -> torch.Tensor:
        """One prediction: [1, image, 64] of latents of that shape, at a timestep from 0 to 1."""
        temb = self._conditions(timestep, pooled)
        rotary = _rotary(positions)
        image, text = self._linear("x_embedder", latents), self._linear("context_embedder", prompt)
        for index in range(self.double):
            image, text = self._double_block(f"transformer_blocks.{index}", image, text, temb, rotary)
        stream = torch.cat([text, image], 1)
        for index in range(self.single):
            stream = self._single_block(f"single_transformer_blocks.{index}", stream, temb, rotary)
        image = stream[:, text.shape[1] :]
        scale, shift = self._linear("norm_out.linear", functional.silu(temb)).unsqueeze(1).chunk(2, -1)
        return self._linear("proj_out", _norm(image) * (1 + scale) + shift)

    def _linear(self, name: str, value: torch.Tensor) -> torch.Tensor:
        return functional.linear(value, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def _two_layers(self, name: str, value: torch.Tensor) -> torch.Tensor:
        return self._linear(f"{name}.linear_2", functional.silu(self._linear(f"{name}.linear_1", value)))

    def _conditions(self, timestep: torch.Tensor, pooled: torch.Tensor) -> torch.Tensor:
        guidance = torch.full_like(timestep, GUIDANCE)
        sines = [_sines(1000 * value).to(pooled.dtype) for value in (timestep, guidance)]
        embedder = "time_text_embed"
        return (
            self._two_layers(f"{embedder}.timestep_embedder", sines[0])
            + self._two_layers(f"{embedder}.guidance_embedder", sines[1])
            + self._two_layers(f"{embedder}.text_embedder", pooled)
        )

    def _heads(self, attn: str, layer: str, norm: str, value: torch.Tensor) -> torch.Tensor:
        """A projection, divided into heads: [1, heads, tokens, width]."""
        split = self._linear(f"{attn}.{layer}", value).unflatten(-1, (self.heads, HEAD_WIDTH))
        if norm:
            split = functional.rms_norm(split, (HEAD_WIDTH,), self.weights[f"{attn}.{norm}.weight"], 1e-6)
        return split.transpose(1, 2)

    def _double_block(
        self, name: str, image: torch.Tensor, text: torch.Tensor, temb: torch.Tensor, rotary: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        active = functional.silu(temb)
        of_image = self._linear(f"{name}.norm1.linear", active).unsqueeze(1).chunk(6, -1)
        of_text = self._linear(f"{name}.norm1_context.linear", active).unsqueeze(1).chunk(6, -1)
        values, words = _scaled(image, of_image[0], of_image[1]), _scaled(text, of_text[0], of_text[1])
        attn = f"{name}.attn"
        of_words = (("add_q_proj", "norm_added_q"), ("add_k_proj", "norm_added_k"), ("add_v_proj", ""))
        of_values = (("to_q", "norm_q"), ("to_k", "norm_k"), ("to_v", ""))
        query, key, value = (
            torch.cat([self._heads(attn, *added, words), self._heads(attn, *own, values)], 2)
            for added, own in zip(of_words, of_values, strict=True)
        )
        joined = _attend(query, key, value, rotary)
        words, values = joined[:, : text.shape[1]], joined[:, text.shape[1] :]
        image = image + of_image[2] * self._linear(f"{attn}.to_out.0", values)
        text = text + of_text[2] * self._linear(f"{attn}.to_add_out", words)
        image = image + of_image[5] * self._feed(f"{name}.ff", _scaled(image, of_image[3], of_image[4]))
        text = text + of_text[5] * self._feed(f"{name}.ff_context", _scaled(text, of_text[3], of_text[4]))
        return image, text

    def _feed(self, name: str, value: torch.Tensor) -> torch.Tensor:
        hidden = functional.gelu(self._linear(f"{name}.net.0.proj", value), approximate="tanh")
        return self._linear(f"{name}.net.2", hidden)

    def _single_block(self, name: str, stream: torch.Tensor, temb: torch.Tensor, rotary: torch.Tensor) -> torch.Tensor:
        shift, scale, gate = self._linear(f"{name}.norm.linear", functional.silu(temb)).unsqueeze(1).chunk(3, -1)
        value, attn = _scaled(stream, shift, scale), f"{name}.attn"
        hidden = functional.gelu(self._linear(f"{name}.proj_mlp", value), approximate="tanh")
        attended = _attend(
            self._heads(attn, "to_q", "norm_q", value),
            self._heads(attn, "to_k", "norm_k", value),
            self._heads(attn, "to_v", "", value),
            rotary,
        )
        return stream + gate * self._linear(f"{name}.proj_out", torch.cat([attended, hidden], -1))


def _norm(value: torch.Tensor) -> torch.Tensor:
    return functional.layer_norm(value, value.shape[-1:], eps=1e-6)


def _scaled(value: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return _norm(value) * (1 + scale) + shift


def _sines(times: torch.Tensor) -> torch.Tensor:
    """Cosines and sines of 128 frequencies: [1, 256]."""
    frequencies = torch.exp(-math.log(10000) * torch.arange(128, device=times.device, dtype=torch.float32) / 128)
    angles = times.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], -1)


def _rotary(positions: torch.Tensor) -> torch.Tensor:
    """Complex numbers that turn the pairs of a head: [tokens, 64]."""
    parts = []
    for axis, width in enumerate(AXES):
        powers = torch.arange(0, width, 2, device=positions.device, dtype=torch.float64) / width
        angles = torch.outer(positions[:, axis].double(), 1 / 10000**powers)
        parts.append(torch.polar(torch.ones_like(angles), angles))
    return torch.cat(parts, 1).to(torch.complex64)


def _attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rotary: torch.Tensor) -> torch.Tensor:
    def turn(part: torch.Tensor) -> torch.Tensor:
        pairs = torch.view_as_complex(part.float().unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * rotary).flatten(-2).to(part.dtype)

    attended = functional.scaled_dot_product_attention(turn(query), turn(key), value)
    return attended.transpose(1, 2).flatten(2)


def positions_of(cells: int, text_tokens: int, device: str) -> torch.Tensor:
    """Zeros for words, then row and column of each patch of 2 x 2 cells: [tokens, 3]."""
    side = torch.arange(cells // 2, device=device, dtype=torch.float32)
    rows, columns = torch.meshgrid(side, side, indexing="ij")
    image = torch.stack([torch.zeros_like(rows), rows, columns], -1).reshape(-1, 3)
    return torch.cat([torch.zeros(text_tokens, 3, device=device), image])


def milliseconds(step: Callable[[], object], steps: int, device: str) -> list[float]:
    """The time of each of so many steps, after two that are not counted."""
    times = []
    for _ in range(steps + 2):
        begin = time.perf_counter()
        step()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(1000 * (time.perf_counter() - begin))
    return times[2:]


def diffusers_step(shape: Mapping[str, Any], weights: Weights, inputs: Mapping[str, Any]) -> Any:
    """A step of diffusers' own model over the same weights, and None where diffusers is not there."""
    try:
        from diffusers import FluxTransformer2DModel
    except ImportError as missing:
        print(f"diffusers cannot be imported ({missing}); the transformer of this script is timed alone")
        return None
    prompt, positions = inputs["prompt"], inputs["positions"]
    with torch.device("meta"):
        model = FluxTransformer2DModel(
            num_layers=shape["double"],
            num_single_layers=shape["single"],
            num_attention_heads=shape["heads"],
            joint_attention_dim=prompt.shape[-1],
            guidance_embeds=True,
        )
    model.load_state_dict(dict(weights), assign=True)
    return lambda: model(
        hidden_states=inputs["latents"],
        encoder_hidden_states=prompt,
        pooled_projections=inputs["pooled"],
        timestep=inputs["timestep"],
        guidance=torch.full_like(inputs["timestep"], GUIDANCE),
        img_ids=positions[prompt.shape[1] :],
        txt_ids=positions[: prompt.shape[1]],
        return_dict=False,
    )[0]


def main() -> int:
    """Prints milliseconds a step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--steps", type=int, default=10)
    given = parser.parse_args()
    device: str = given.device
    if device == "cuda" and not torch.cuda.is_available():
        sys.exit(f"left out: PyTorch {torch.__version__} sees no CUDA device")
    shape = json.loads((given.folder / "shape.json").read_text())
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[shape["compute"]]
    stored = read_tensors(given.folder / "engine" / "transformer.safetensors", device)
    weights = {name: value.to(dtype) for name, value in stored.items()}
    texts = read_tensors(given.folder / "inputs.safetensors", device)
    torch.manual_seed(0)
    inputs = {
        "latents": torch.randn(1, (shape["cells"] // 2) ** 2, CHANNELS).to(device, dtype),
        "prompt": texts["prompt_embeds"].to(dtype),
        "pooled": texts["pooled_projections"].to(dtype),
        "positions": positions_of(shape["cells"], shape["text_tokens"], device),
        "timestep": torch.full((1,), 0.5, device=device, dtype=dtype),
    }
    flux = Flux(weights, shape["heads"], shape["double"], shape["single"])
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    with torch.inference_mode():
        steps = {"this script": lambda: flux(**inputs)}
        theirs = diffusers_step(shape, weights, inputs)
        if theirs is not None:
            steps["diffusers"] = theirs
            difference = (theirs() - flux(**inputs)).abs().sum() / theirs().abs().sum()
            print(f"this script differs from diffusers by {difference.item():.1e} (relative L1)")
        for who, step in steps.items():
            times = milliseconds(step, given.steps, device)
            figures = f"{statistics.median(times):.2f} ms a step ({min(times):.2f} to {max(times):.2f})"
            print(f"PyTorch {torch.__version__}, {name}, {shape['compute']}, {who}: {figures}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
