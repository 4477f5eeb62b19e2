"""Writes an engine directory, complete or not at all."""

from __future__ import annotations

__all__ = ["Summary", "export"]

import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import onnx
from torch._subclasses.fake_tensor import FakeTensorMode

from dbcache_export import families
from dbcache_export.bind import bind, refuse_unused
from dbcache_export.check import Report, bytes_needed, check
from dbcache_export.content import ContentHashes
from dbcache_export.loads import read_by_engine
from dbcache_export.lora import merged
from dbcache_export.manifest import Written, manifest, write_file
from dbcache_export.place import place
from dbcache_export.ports import refuse_misfits
from dbcache_export.spec import Graph, Options, Plan, Template
from dbcache_export.template import Traced, trace
from dbcache_export.variant import plain
from dbcache_export.whole import new_directory


@dataclass(frozen=True)
class Summary:
    """What was written.

    Attributes:
        graphs: How many.
        graph_bytes: Their length together.
        weight_bytes: That of the weight files.
        report: The check's, if it ran.
        unchecked: Why it did not run although nobody said so.
        unread: Why the engine's own command did not read the directory.
    """

    graphs: int
    graph_bytes: int
    weight_bytes: int
    report: Report | None
    unchecked: str | None
    unread: str | None


#: From a template to its graph.
Tracer = Callable[[Template, int, FakeTensorMode], Traced]


def export(
    model: Path, engine: Path, options: Options, progress: Callable[[str], None], tracer: Tracer = trace
) -> Summary:
    """Exports the model folder `model` to the engine directory `engine`.

    Args:
        model: A pipeline in diffusers' layout, or its transformer.
        engine: Where to write.
        options: What is wanted.
        progress: Is told what is being done.
        tracer: Makes the graphs; a check of plans alone puts outlines in their place.

    Raises:
        ExportError: For whatever the user can act on; nothing is left at `engine` then.
    """
    with new_directory(engine, overwrite=options.overwrite) as partial, ExitStack() as undo:
        progress("reading headers")
        fake = FakeTensorMode()
        model = undo.enter_context(plain(model, options.variant, partial.parent, progress))
        own = None
        if options.lora:
            own = model = undo.enter_context(merged(model, options.lora, partial.parent, progress))
        plan = families.plan(model, options, fake)
        refuse_misfits(plan)
        shards = [shard for checkpoint in plan.checkpoints.values() for shard in checkpoint.shards]
        with ContentHashes([shard.path for shard in shards] if options.content_hash else []) as hashes:
            graphs = _write_graphs(plan, options, fake, partial, progress, tracer)
            tokenizers = _write_tokenizers(plan, partial)
            progress("placing weights")
            weights = [
                fields
                | {
                    "bytes": shard.bytes,
                    "header_sha256": shard.header_sha256,
                    "sha256": hashes[shard.path] if options.content_hash else None,
                }
                for shard, fields in place(plan.checkpoints.values(), partial, pack=options.pack, own=own)
            ]
        write_file(partial, "manifest.json", manifest(plan, options, graphs, tokenizers, weights))
        for document in plan.documents:
            shutil.copyfile(document, partial / document.name)
        unread = read_by_engine(partial)
        report, unchecked = _checked(plan, options, partial, progress)
    size = sum(written.bytes for written in graphs.values())
    return Summary(len(graphs), size, sum(shard.bytes for shard in shards), report, unchecked, unread)


def _write_graphs(
    plan: Plan,
    options: Options,
    fake: FakeTensorMode,
    engine: Path,
    progress: Callable[[str], None],
    tracer: Tracer,
) -> dict[Graph, Written]:
    """Traces each template once, binds and writes every graph."""
    traced: dict[Template, Traced] = {}
    used: dict[str, set[str]] = {component: set() for component in plan.checkpoints}
    models: dict[Graph, onnx.ModelProto] = {}
    for graph in plan.graphs():
        if graph.template not in traced:
            progress(f"tracing {graph.template.name}")
            traced[graph.template] = tracer(graph.template, options.opset, fake)
        checkpoint = plan.checkpoints[graph.component] if graph.component else None
        models[graph], parameters = bind(graph, traced[graph.template], checkpoint)
        if graph.component:
            used[graph.component] |= parameters
    refuse_unused(plan.checkpoints, plan.ignored, used)
    return {
        graph: write_file(engine, graph.file, model.SerializeToString(deterministic=True))
        for graph, model in models.items()
    }


def _write_tokenizers(plan: Plan, engine: Path) -> dict[str, Written]:
    tokenizers = plan.text.tokenizers if plan.text else {}
    return {name: write_file(engine, f"{name}.json", one.json.encode()) for name, one in tokenizers.items()}


def _checked(
    plan: Plan, options: Options, engine: Path, progress: Callable[[str], None]
) -> tuple[Report | None, str | None]:
    """Runs the check if it was asked for, or if it can and was not declined; otherwise says why not."""
    if options.check is None:
        needed, there = bytes_needed(plan), _available_bytes()
        if needed > there:
            return (
                None,
                f"not checked: it needs {needed / 1e9:.0f} GB of memory, {there / 1e9:.0f} GB are free",
            )
    if options.check is False:
        return None, None
    progress("checking against PyTorch")
    return check(engine, plan, options.compute), None


def _available_bytes() -> int:
    """Memory that can be had without swapping; 0 where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return 0
