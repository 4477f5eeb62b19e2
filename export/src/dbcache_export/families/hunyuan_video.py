"""HunyuanVideo: double blocks over a video and a text stream, then single blocks over both joined."""

from __future__ import annotations

__all__ = ["plan", "transformer"]

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import HunyuanVideoTransformer3DModel
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional

from dbcache_export import checkpoint, spec
from dbcache_export.encoders import clip, tokenizer
from dbcache_export.errors import ExportError
from dbcache_export.families.literal import literal_timesteps
from dbcache_export.families.parts import Texts, configuration, under, whole
from dbcache_export.families.positions import counted, rotary_tables
from dbcache_export.families.rotary import mix
from dbcache_export.families.video import Transformer, Video, original, prefix_mask, templates, video_plan
from dbcache_export.families.watched import Watched
from dbcache_export.language import language_model
from dbcache_export.pipeline_calls import CALLS
from dbcache_export.scheduler import prediction, scheduler
from dbcache_export.spec import DTYPES, Graph, Options, Plan
from dbcache_export.template import fake_module

_STREAMS = ("hidden_states", "encoder_hidden_states")
_CONTEXT = (*_STREAMS, "temb", "attention_bias", "rotary_cos", "rotary_sin")
#: Of the pipeline's defaults and its autoencoder.
_WIDTH, _HEIGHT, _FRAMES, _FPS = 1280, 720, 129, 15.0
_DOWNSCALE, _TEMPORAL_DOWNSCALE = 8, 4
_MAX_TEXT, _CLIP_TEXT = 256, 77
#: The chat template of diffusers' pipeline, whose first 95 tokens are those in front of the prompt.
_PREFIX = (
    "<|start_header_id|>system<|end_header_id|>\n\nDescribe the video by detailing the following aspects: "
    "1. The main content and theme of the video."
    "2. The color, shape, size, texture, quantity, text, and spatial relationships of the objects."
    "3. Actions, events, behaviors temporal relationships, physical movement changes of the objects."
    "4. background environment, light, style and atmosphere."
    "5. camera angles, movements, and transitions used in the video:<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\n"
)
_SUFFIX = "<|eot_id|>"
_DROP = 95
#: The scheduler with which HunyuanVideo was published.
_SCHEDULER = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 7.0}


def plan(folder: Path, options: Options, fake: FakeTensorMode) -> Plan:
    """The plan of a HunyuanVideo text-to-video pipeline or transformer.

    Raises:
        ExportError: It is a variant with other inputs, or its text encoders are others.
    """
    inner = folder / "transformer" if (folder / "transformer").is_dir() else folder
    parts = transformer(inner, options, fake)
    embeds_guidance = "guidance" in parts.inputs
    return video_plan(
        folder,
        options,
        fake,
        parts,
        texts=_text(folder, options, fake),
        scheduler=scheduler(folder, CALLS["hunyuan_video"], _SCHEDULER),
        guidance={"kind": "embedded", "default": 6.0} if embeds_guidance else {"kind": "none"},
        steps=50,
        prediction=prediction(folder, _SCHEDULER),
    )


def _text(folder: Path, options: Options, fake: FakeTensorMode) -> Texts | None:
    """Llama, asked to describe a video, two layers before its end; and what CLIP makes of the prompt alone."""
    parts = whole(folder, ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    if parts is None:
        return None
    names = ("prompt_embeds", "prompt_attention_mask")
    llama = language_model(parts[0], "llama", (-3,), options, fake, names, tokens="llama", drop=_DROP)
    pooled = clip(parts[1], "text_001.onnx", "clip", options, fake, ("pooled_projections",), tokens=_CLIP_TEXT)
    template: dict[str, Any] = {"prefix": _PREFIX, "suffix": _SUFFIX, "drop": _DROP, "padding": "longest"}
    tokenizers = {
        "llama": tokenizer(parts[2], _MAX_TEXT + _DROP, **template),
        "clip": tokenizer(parts[3], _CLIP_TEXT),
    }
    if tokenizers["llama"].pad_side != "right":
        raise ExportError(f"{parts[2]} pads on the left", "set padding_side to right, as HunyuanVideo has it")
    graphs: list[tuple[Graph, Mapping[str, spec.TextInput]]] = [
        (llama.graph, {"input_ids": ("llama", "ids"), "attention_mask": ("llama", "mask")}),
        (pooled.graph, {"input_ids": ("clip", "ids")}),
    ]
    return Texts(spec.Text(tokenizers, graphs, unconditional=""), [llama, pooled])


def transformer(folder: Path, options: Options, fake: FakeTensorMode) -> Transformer:
    """Cuts the transformer in `folder` into embed, blocks and final.

    Raises:
        ExportError: It is a variant with other inputs, such as an image.
    """
    fixed: dict[str, Sequence[Any]] = {"patch_size_t": [1], "image_condition_type": [None]}

    def understood(config: Mapping[str, Any]) -> Mapping[str, Sequence[Any]]:
        return fixed | {"out_channels": [None, config["in_channels"]]}

    config = configuration(folder, HunyuanVideoTransformer3DModel, understood)
    head = config["attention_head_dim"]
    width = config["num_attention_heads"] * head
    compute = options.compute
    video = Video(
        layout="bcfhw",
        channels=config["in_channels"],
        downscale=_DOWNSCALE,
        temporal_downscale=_TEMPORAL_DOWNSCALE,
        patch=config["patch_size"],
        width=_WIDTH,
        height=_HEIGHT,
        frames=_FRAMES,
        fps=_FPS,
    )
    tensors = {
        "latents": spec.Tensor("f32", video.latents()),
        "timestep": spec.Tensor("f32", ("batch",)),
        "guidance": spec.Tensor("f32", ("batch",)),
        "prompt_embeds": spec.Tensor("f32", ("batch", "text", config["text_embed_dim"])),
        "prompt_attention_mask": spec.Tensor("f32", ("batch", "text")),
        "pooled_projections": spec.Tensor("f32", ("batch", config["pooled_projection_dim"])),
        "hidden_states": spec.Tensor(compute, ("batch", "image", width)),
        "encoder_hidden_states": spec.Tensor(compute, ("batch", "text", width)),
        "temb": spec.Tensor(compute, ("batch", width)),
        "attention_bias": spec.Tensor(compute, ("batch", 1, 1, "total")),
        "rotary_cos": spec.Tensor("f32", ("image", head)),
        "rotary_sin": spec.Tensor("f32", ("image", head)),
        "prediction": spec.Tensor("f32", video.latents()),
    }
    inputs = {
        "latents": {"per": "step", "from": "latents"},
        "timestep": {"per": "step", "from": "timestep"},
        "prompt_embeds": {"per": "request", "from": "text"},
        "prompt_attention_mask": {"per": "request", "from": "text"},
        "pooled_projections": {"per": "request", "from": "text"},
        "guidance": {"per": "request", "from": "guidance"},
    }
    if not config["guidance_embeds"]:
        del tensors["guidance"], inputs["guidance"]
    small = config | {"num_layers": 1, "num_single_layers": 1}
    model: Any = fake_module(fake, compute, lambda: HunyuanVideoTransformer3DModel(**small))
    literal_timesteps(model)
    template = templates(tensors, video.patch)
    double = template("double", _Block(model.transformer_blocks[0]), _CONTEXT, _STREAMS)
    single = template("single", _Block(model.single_transformer_blocks[0]), _CONTEXT, _STREAMS)
    places = [(double, "transformer_blocks", i) for i in range(config["num_layers"])]
    places += [(single, "single_transformer_blocks", i) for i in range(config["num_single_layers"])]
    return Transformer(
        description=f"HunyuanVideo transformer: {config['num_layers']} double and {config['num_single_layers']} single "
        f"blocks, width {width}",
        checkpoint=checkpoint.read(folder, "transformer"),
        video=video,
        tensors=tensors,
        inputs=inputs,
        streams=_STREAMS,
        embed=Graph(
            "embed.onnx", template("embed", _Embed(model, DTYPES[compute][0]), tuple(inputs), _CONTEXT), "transformer"
        ),
        blocks=tuple(
            spec.Block(kind.name, Graph(f"block_{i:03}.onnx", kind, "transformer", under(f"{group}.{n}.")), group=group)
            for i, (kind, group, n) in enumerate(places)
        ),
        final=Graph(
            "final.onnx",
            template("final", _Final(model), ("hidden_states", "temb", "latents"), ("prediction",)),
            "transformer",
        ),
        reference=lambda: _reference(folder),
        text=(1, _MAX_TEXT),
        examples={"prompt_attention_mask": prefix_mask},
    )


class _Embed(nn.Module):
    """From the inputs of a request and a step to the streams and what every block needs."""

    def __init__(self, model: HunyuanVideoTransformer3DModel, dtype: torch.dtype) -> None:
        super().__init__()
        self.x_embedder = model.x_embedder
        self.time_text_embed = model.time_text_embed
        self.context_embedder = model.context_embedder
        for block in model.context_embedder.token_refiner.refiner_blocks:
            block.attn.processor = _Refining()
        self.config = model.config
        self.dtype = dtype

    def forward(
        self,
        latents: Tensor,
        timestep: Tensor,
        prompt_embeds: Tensor,
        prompt_attention_mask: Tensor,
        pooled_projections: Tensor,
        guidance: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """[batch, channels, frames, height, width], [batch], [batch, text, width], [batch, text] of 1 and 0, pooled."""
        patch: int = self.config.patch_size
        frames, rows, columns = latents.shape[2], latents.shape[3] // patch, latents.shape[4] // patch
        scale = None if guidance is None else guidance * 1000
        temb, _ = self.time_text_embed(timestep, pooled_projections.to(self.dtype), scale)
        hidden_states = self.x_embedder(latents.to(self.dtype))
        text = self._refined(prompt_embeds.to(self.dtype), timestep, prompt_attention_mask)
        bias = _bias(prompt_attention_mask, self.dtype)
        bias = functional.pad(bias, (frames * rows * columns, 0))[:, None, None]
        cos, sin = rotary_tables(
            counted(frames, rows, columns), self.config.rope_axes_dim, float(self.config.rope_theta)
        )
        return hidden_states, text, temb, bias, cos, sin

    def _refined(self, states: Tensor, timestep: Tensor, mask: Tensor) -> Tensor:
        """The original, but that a mask is added to the scores: text sees text, padding the first token."""
        refiner = self.context_embedder
        weights = mask[:, :, None]
        pooled = ((states * weights).sum(dim=1) / weights.sum(dim=1)).to(self.dtype)
        temb = refiner.time_text_embed(timestep, pooled)
        states = refiner.proj_in(states)
        seen = mask[:, :, None] * mask[:, None]
        seen = torch.cat([torch.ones_like(seen[:, :, :1]), seen[:, :, 1:]], dim=2)
        bias = _bias(seen, self.dtype)[:, None]
        for block in refiner.token_refiner.refiner_blocks:
            states = block(states, temb, bias)
        return states


def _bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Zero where the mask is one, and the lowest value where it is zero."""
    return ((1 - mask) * torch.finfo(dtype).min).to(dtype)


class _Refining:
    """The processor of the text refiner's Attention, for a mask that is the same for all heads."""

    def __call__(self, attn: Any, hidden_states: Tensor, encoder_hidden_states: None, attention_mask: Tensor) -> Tensor:
        query, key, value = (
            layer(hidden_states).unflatten(2, (attn.heads, -1)) for layer in (attn.to_q, attn.to_k, attn.to_v)
        )
        projected: Tensor = attn.to_out[0](mix(query, key, value, attention_mask))
        return projected


class _Block(nn.Module):
    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        temb: Tensor,
        attention_bias: Tensor,
        rotary_cos: Tensor,
        rotary_sin: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """[batch, image, width] and [batch, text, width] to the same."""
        rotary = (rotary_cos, rotary_sin)
        video, text = self.block(hidden_states, encoder_hidden_states, temb, attention_bias, rotary)
        return video, text


class _Final(nn.Module):
    def __init__(self, model: HunyuanVideoTransformer3DModel) -> None:
        super().__init__()
        self.norm_out = model.norm_out
        self.proj_out = model.proj_out
        self.patch: int = model.config.patch_size

    def forward(self, hidden_states: Tensor, temb: Tensor, latents: Tensor) -> Tensor:
        """[batch, image, width] to the shape of the latents, which are taken for that shape only; float32."""
        batch, channels, frames, height, width = latents.shape
        rows, columns = height // self.patch, width // self.patch
        torch._check(hidden_states.shape[1] == frames * rows * columns)
        tokens = self.proj_out(self.norm_out(hidden_states, temb))
        cells = tokens.reshape(batch, frames, rows, columns, channels, self.patch, self.patch)
        return cells.permute(0, 4, 1, 2, 5, 3, 6).reshape(latents.shape).float()


def _reference(folder: Path) -> Watched:
    model = original(HunyuanVideoTransformer3DModel, folder)

    def arguments(inputs: Mapping[str, Tensor]) -> dict[str, Any]:
        return {
            "hidden_states": inputs["latents"],
            "timestep": inputs["timestep"],
            "encoder_hidden_states": inputs["prompt_embeds"],
            "encoder_attention_mask": inputs["prompt_attention_mask"].long(),
            "pooled_projections": inputs["pooled_projections"],
            "guidance": inputs["guidance"] * 1000 if "guidance" in inputs else None,
        }

    def named(taken: dict[str, Any], result: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        cos, sin = taken.get("freqs_cis") or taken["image_rotary_emb"]
        bias = _bias(taken["attention_mask"].float(), torch.float32)
        inputs = {name: taken[name] for name in (*_STREAMS, "temb")}
        inputs |= {"attention_bias": bias, "rotary_cos": cos, "rotary_sin": sin}
        return inputs, dict(zip(_STREAMS, result, strict=True))

    blocks = [*model.transformer_blocks, *model.single_transformer_blocks]
    return Watched(model, blocks, arguments, named)
