"""From a family's record and a model folder to a Plan."""

from __future__ import annotations

__all__ = ["Transformer", "plan", "transformer"]

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from dbcache_export import spec, vae, video_vae
from dbcache_export.checkpoint import Checkpoint, read
from dbcache_export.errors import ExportError
from dbcache_export.families.family import Cut, Family, Second, Source
from dbcache_export.families.literal import literal_timesteps
from dbcache_export.families.sizes import Video
from dbcache_export.families.texts import Texts
from dbcache_export.families.watched import Watched, original, pretrained
from dbcache_export.folder import configuration, documents, model_name
from dbcache_export.pipeline_calls import CALLS
from dbcache_export.scheduler import prediction, scheduler
from dbcache_export.spec import Graph, Options, Plan, Template, Tensor
from dbcache_export.template import fake_module, keep_float32


@dataclass(frozen=True)
class Transformer:
    """The transformer's share of a Plan, in the fields of the same names, and what it was made from."""

    source: Source
    cut: Cut
    checkpoint: Checkpoint
    tensors: Mapping[str, Tensor]
    inputs: Mapping[str, Mapping[str, Any]]
    embed: Graph
    blocks: tuple[spec.Block, ...]
    final: Graph
    reference: Callable[[], spec.Reference]

    def description(self) -> str:
        """The architecture in a line."""
        return f"{self.cut.description}, {self.checkpoint.values() / 1e6:.3g} M parameters"


def plan(family: Family, folder: Path, options: Options, fake: FakeTensorMode) -> Plan:
    """The plan of a pipeline in `folder`, or of its transformer alone.

    Raises:
        ExportError: It is a variant with other inputs, its parts do not fit each other, or an option has no effect.
    """
    if family.needs_scheduler and not (folder / "scheduler").is_dir():
        raise ExportError(f"{folder} has no scheduler", "give the folder of the whole pipeline")
    parts = transformer(family, folder, options, fake)
    cut = parts.cut
    steps = scheduler(folder, CALLS[family.calls], family.published)
    second = family.second(parts.source, steps)
    texts = family.texts(parts.source, parts.tensors)
    sizes, decoder = cut.sizes.fitted(folder, options, fake)
    extent = sizes.extent(options, cut.text, decodes=decoder is not None)
    sampling = family.sampling(parts.source)
    components = dict(_components(parts, second, texts, decoder))
    return Plan(
        name=options.name or model_name(folder),
        description=parts.description() + (", and another transformer for steps with little noise" if second else ""),
        dimensions=extent.dimensions,
        tensors={**parts.tensors, **(decoder.tensors if decoder else {}), **(texts.tensors if texts else {})},
        inputs=parts.inputs,
        streams=cut.streams,
        embed=parts.embed,
        blocks=parts.blocks,
        final=parts.final,
        prediction=prediction(folder, family.published),
        latents=sizes.layout(),
        size=extent.size,
        video=extent.video,
        scheduler=steps,
        guidance=sampling.guidance,
        steps=sampling.steps,
        checkpoints={name: checkpoint for name, (checkpoint, _) in components.items()},
        ignored={name: ignored for name, (_, ignored) in components.items()},
        reference=parts.reference,
        low_noise=_low_noise(family, parts, second) if second else None,
        text=texts.text if texts else None,
        decode=decoder.graph if decoder else None,
        documents=documents(folder),
        examples={name: given.example for name, given in cut.inputs.items() if given.example},
        oblong=cut.oblong,
    )


def transformer(family: Family, folder: Path, options: Options, fake: FakeTensorMode) -> Transformer:
    """The transformer of a pipeline in `folder`, or the one that lies there alone, as graphs.

    Raises:
        ExportError: It is a variant with other inputs.
    """
    inner = folder / "transformer" if (folder / "transformer").is_dir() else folder
    config = configuration(inner, family.model, family.fixed)
    source = Source(folder, inner, config, options, fake)
    model = _without_weights(family, source)
    first, last = family.embed(model, source.dtype), family.final(model, source.dtype)
    cut = family.cut(model, source)
    tensors = _tensors(cut, options)
    template = _templates(cut, tensors)
    embed = template("embed", first, cut.embedded or list(cut.inside))
    final = template("final", last, ["prediction"])
    return Transformer(
        source=source,
        cut=cut,
        checkpoint=read(inner, "transformer"),
        tensors=tensors,
        inputs={name: _from(name, cut) for name in embed.inputs},
        embed=Graph("embed.onnx", embed, "transformer", first.stored_name),
        blocks=_blocks(cut, template),
        final=Graph("final.onnx", final, "transformer", last.stored_name),
        reference=_reference(family, cut, inner),
    )


def _without_weights(family: Family, source: Source) -> Any:
    """The original with few blocks, whose parameters have no values."""
    few = {**source.config, **family.few}
    model = fake_module(source.fake, source.options.compute, lambda: family.model(**few))
    keep_float32(source.fake, model, family.float32)
    literal_timesteps(model)
    return model


def _tensors(cut: Cut, options: Options) -> dict[str, Tensor]:
    """Outside float32, inside the compute type."""
    latents = Tensor("f32", cut.sizes.latents())
    inputs = {name: Tensor(given.dtype, given.shape) for name, given in cut.inputs.items()}
    inside = {
        name: made if isinstance(made, Tensor) else Tensor(options.compute, made) for name, made in cut.inside.items()
    }
    return {"latents": latents} | inputs | inside | {"prediction": latents}


def _from(name: str, cut: Cut) -> dict[str, Any]:
    """The manifest's entry for an input of the embed graph."""
    if name == "latents":
        return {"per": "step", "from": "latents"}
    return {"per": cut.inputs[name].per, "from": cut.inputs[name].source}


#: Makes a template: (name, module, outputs).
_Templates = Callable[[str, nn.Module, Sequence[str]], Template]


def _templates(cut: Cut, tensors: Mapping[str, Tensor]) -> _Templates:
    """Templates take those tensors that a module's `forward` names and the model has."""
    lengths = cut.sizes.traced_lengths()

    def template(name: str, module: nn.Module, given: Sequence[str]) -> Template:
        taken = [argument for argument in inspect.signature(module.forward).parameters if argument in tensors]
        return Template(name, module, {k: tensors[k] for k in taken}, {k: tensors[k] for k in given}, lengths)

    return template


def _blocks(cut: Cut, template: _Templates) -> tuple[spec.Block, ...]:
    """All blocks in their order, over one template for each kind."""
    places = [(name, place, kind) for name, kinds in cut.lists.items() for place, kind in enumerate(kinds)]
    templates = {kind: template(kind.name, kind.module, kind.gives or cut.streams) for _, _, kind in places}
    return tuple(
        spec.Block(
            kind.name,
            Graph(f"block_{number:03}.onnx", templates[kind], "transformer", _under(f"{name}.{place}.")),
            joins_streams=kind.joins_streams,
            group=name,
            joined=kind.joined,
        )
        for number, (name, place, kind) in enumerate(places)
    )


def _under(prefix: str) -> Callable[[str], str]:
    """From a parameter of a module that holds one `block` to that of the checkpoint's block `prefix`."""
    return lambda name: prefix + name.removeprefix("block.")


def _reference(family: Family, cut: Cut, folder: Path) -> Callable[[], spec.Reference]:
    def load() -> Watched:
        model = (original if isinstance(cut.sizes, Video) else pretrained)(family.model, folder)
        return Watched(model, [block for name in cut.lists for block in getattr(model, name)], family.watch(model))

    return load


def _low_noise(family: Family, parts: Transformer, second: Second) -> spec.LowNoise:
    """The graphs of the first transformer over the parameters of the second."""

    def other(graph: Graph) -> Graph:
        return replace(graph, file=f"low_noise_{graph.file}", component=second.folder.name)

    return spec.LowNoise(
        below=second.below,
        guidance=second.guidance,
        embed=other(parts.embed),
        blocks=tuple(replace(block, graph=other(block.graph)) for block in parts.blocks),
        final=other(parts.final),
        reference=_reference(family, parts.cut, second.folder),
    )


def _components(
    parts: Transformer,
    second: Second | None,
    texts: Texts | None,
    decoder: vae.Decoder | video_vae.VideoDecoder | None,
) -> Iterator[tuple[str, tuple[Checkpoint, Sequence[str]]]]:
    """The name of each component, its checkpoint, and prefixes of parameters that the engine has no use for."""
    yield "transformer", (parts.checkpoint, parts.cut.ignored)
    if second:
        yield second.folder.name, (read(second.folder, second.folder.name), parts.cut.ignored)
    for encoder in texts.encoders if texts else ():
        yield str(encoder.graph.component), (encoder.checkpoint, encoder.ignored)
    if decoder:
        yield "vae", (decoder.checkpoint, decoder.ignored)
