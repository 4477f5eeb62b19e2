"""Whether the exporter takes models as they are published: the plan of each, or its whole export with `--export`.

A plan is all of an export but the tracing: configurations, parts, the name and shape of every weight, and a manifest,
which the engine reads with all rules of the format. Run by `cargo xtask check-published`, which builds the engine's
command and names it in DBCACHE_TRT.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import diffusers
import transformers
from dbcache_export.engine import export
from dbcache_export.errors import ExportError, ExportWarning
from dbcache_export.spec import Options

from holes import MODELS, published, write_pipeline
from outline import outline
from relatives import TAKEN, relative

#: Models that the engine cannot run, and what the refusal has to name.
REFUSED = {
    "FLUX.1-Kontext-dev": "FluxKontextPipeline",
    "Qwen-Image-Edit-2509": "QwenImageEditPlusPipeline",
    "LTX-Video-0.9.1": "timestep_conditioning = true",
}
#: Models that are taken without a part, as their refusal says.
WITHOUT = {"LTX-Video-0.9.1": "vae"}


def main() -> int:
    """Prints a line for each model; 1 if one of them did not go as expected."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--export", action="store_true", help="trace as well: minutes for each model")
    parser.add_argument("models", nargs="*", metavar="MODEL", help="names in models/ and relatives.py (default: all)")
    given = parser.parse_args()
    there = sorted([*(path.stem for path in MODELS.glob("*.json")), *TAKEN])
    unknown = sorted(set(given.models) - set(there))
    if unknown:
        parser.error(f"there is no {', '.join(unknown)} here, but {', '.join(there)}")
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    failed = [name for name in given.models or there if not _goes_well(name, whole=given.export)]
    print(f"failed: {', '.join(failed)}" if failed else "all as expected")
    return bool(failed)


def _goes_well(name: str, *, whole: bool) -> bool:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / name
        write_pipeline(relative(name) if name in TAKEN else published(name), folder)
        run = _exported if whole else _planned
        done, said = run(folder)
        if name not in REFUSED:
            print(f"{name:<24} {said}", flush=True)
            return done
        refused = not done and REFUSED[name] in said
        print(f"{name:<24} {'refused' if refused else 'NOT REFUSED by name'}: {said}", flush=True)
        if name not in WITHOUT:
            return refused
        shutil.rmtree(folder / WITHOUT[name])
        done, said = run(folder)
        print(f"{'':<24} without {WITHOUT[name]}: {said}", flush=True)
        return refused and done


def _planned(folder: Path) -> tuple[bool, str]:
    """Whether the plan can be made, and what there is to say about it."""
    engine = folder.parent / "engine"
    begin = time.monotonic()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", ExportWarning)
        try:
            summary = export(folder, engine, Options(check=False, content_hash=False), lambda _: None, outline)
        except ExportError as error:
            return False, str(error).replace(f"{folder.parent}/", "")
    shutil.rmtree(engine)
    if summary.unread:
        return False, summary.unread
    notes = [str(warning.message).replace(f"{folder}/", "") for warning in caught]
    said = f"{summary.graphs} graphs, {summary.weight_bytes / 1e9:.1f} GB, {time.monotonic() - begin:.1f} s"
    return True, "; ".join([said, *notes])


def _exported(folder: Path) -> tuple[bool, str]:
    """Whether the command exports it, with its time and memory."""
    engine = folder.parent / "engine"
    options: Sequence[str] = ("--no-check", "--no-content-hash", "--overwrite")
    begin = time.monotonic()
    child = subprocess.Popen(
        [sys.executable, "-m", "dbcache_export", str(folder), str(engine), *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stderr is not None
    last = [line for line in child.stderr.read().splitlines() if not line.endswith("…")]
    _, status, usage = os.wait4(child.pid, 0)
    if os.waitstatus_to_exitcode(status):
        return False, " ".join(last).replace(f"{folder.parent}/", "")
    graphs = len(list(engine.glob("*.onnx")))
    computing, wall = usage.ru_utime + usage.ru_stime, time.monotonic() - begin
    return True, f"{graphs} graphs, {wall:.0f} s, of them {computing:.0f} computing, {usage.ru_maxrss / 1e6:.2f} GB"


if __name__ == "__main__":
    sys.exit(main())
