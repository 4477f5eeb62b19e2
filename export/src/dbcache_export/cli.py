"""The command `dbcache-export`."""

from __future__ import annotations

__all__ = ["main", "parse"]

import argparse
import logging
import math
import os
import re
import signal
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from dbcache_export import __version__
from dbcache_export.errors import ExportError, ExportWarning
from dbcache_export.spec import DType, Options

_COMPUTE: dict[str, DType] = {"fp32": "f32", "fp16": "f16", "bf16": "bf16"}

FAILED, USAGE, INTERRUPTED = 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs the command and ends the process: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    code = _run(sys.argv[1:] if arguments is None else arguments)
    if code == INTERRUPTED:
        # An interrupt that met code in an `exec`, as imports run it, makes Python end itself by a signal later on.
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _run(arguments: Sequence[str]) -> int:
    model, engine, options, debug = parse(arguments)
    os.environ["HF_HUB_OFFLINE"] = "1"  # a model is a folder; nothing is ever downloaded
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # tidies up as on Ctrl-C
    if not debug:
        os.environ["TQDM_DISABLE"] = "1"
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", ExportWarning)
        warnings.formatwarning = _warning
        logging.disable(logging.ERROR)
    try:
        from dbcache_export.engine import export  # imports PyTorch: seconds

        summary = export(model, engine, options, lambda what: print(f"{what} …", file=sys.stderr))
    except ExportError as error:
        if debug:
            raise
        return _fail(str(error))
    except KeyboardInterrupt:
        print("error: interrupted; nothing was written", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:  # PyTorch's exporter raises many types, with long texts
        if debug:
            raise
        first = next(iter(str(error).strip().splitlines()), "")
        return _fail(f"{type(error).__name__}: {first}; rerun with --debug and report it")
    print(f"{engine}: {summary.graphs} graphs, {summary.graph_bytes / 1e3:.0f} kB", end="")
    print(f" over {summary.weight_bytes / 1e6:.1f} MB of weights")
    if summary.report:
        print(f"largest differences from PyTorch in {summary.report.comparisons} comparisons: {summary.report}")
    for left_out in (summary.unchecked, summary.unread):
        if left_out:
            print(left_out)
    return 0


def parse(arguments: Sequence[str]) -> tuple[Path, Path, Options, bool]:
    """The model folder, the engine directory, the options, and whether to show tracebacks; exits with 2 on misuse."""
    parser = _parser()
    given = parser.parse_args(arguments)
    if given.downscale is not None and given.downscale < 1:
        parser.error(f"--downscale {given.downscale}; give 1 or more")
    if not given.model.is_dir():
        parser.error(f"{given.model} is not a folder; give the folder of a model in diffusers' layout")
    options = Options(
        opset=given.opset,
        compute=_COMPUTE[given.compute],
        pack=given.pack,
        check=given.check,
        content_hash=not given.no_content_hash,
        overwrite=given.overwrite,
        name=given.name,
        license=given.license,
        attribution=given.attribution,
        size=given.size,
        frames=given.frames,
        downscale=given.downscale,
        lora=tuple(given.lora),
        variant=given.variant,
    )
    return given.model, given.engine, options, given.debug


def _parser() -> _Parser:
    parser = _Parser(
        prog="dbcache-export",
        description="Writes an engine directory for dbcache-trt from a diffusers model folder.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "model", metavar="MODEL_DIR", type=Path, help="a diffusers pipeline folder, or its transformer folder"
    )
    parser.add_argument("engine", metavar="OUT_DIR", type=Path, help="the engine directory to write")
    _add_graphs(parser)
    _add_manifest(parser)
    _add_weights(parser)
    add = parser.add_argument
    add("--overwrite", action="store_true", help="replace an engine directory; documents in it are kept")
    add("--debug", action="store_true", help="show warnings and tracebacks")
    add("--list", action=_List, nargs=0, help="show the families of models that can be exported, and what was checked")
    add("--version", action="version", version=f"dbcache-export {__version__}")
    return parser


def _add_graphs(parser: _Parser) -> None:
    """Options of how graphs are written and checked."""
    add = parser.add_argument
    add(
        "--opset",
        type=int,
        choices=(20, 23),
        default=20,
        help="of the graphs (default: 20, which every provider takes)",
    )
    add("--compute", choices=list(_COMPUTE), default="fp32", help="type in which the blocks compute (default: fp32)")
    add("--pack", action="store_true", help="put the weights into OUT_DIR (hard links, else copies)")
    check = parser.add_mutually_exclusive_group()
    check.add_argument(
        "--check", action="store_true", default=None, help="compare with PyTorch (default: if memory allows)"
    )
    check.add_argument("--no-check", action="store_false", dest="check", help="do not compare")
    add("--no-content-hash", action="store_true", help="do not hash whole weight files, only their headers")


def _add_manifest(parser: _Parser) -> None:
    """Options of what the manifest says."""
    add = parser.add_argument
    add("--name", help="the model's name (default: that of MODEL_DIR)")
    add("--license", metavar="NAME", default="unknown", help="SPDX identifier of the weights' licence")
    add("--attribution", metavar="TEXT", default="", help="whom the licence wants named")
    add("--size", metavar="WxH", type=_size, help="default picture size in pixels")
    add("--frames", metavar="N", type=int, help="default length of videos (default: that of the model's pipeline)")
    add("--downscale", metavar="N", type=int, help="pixels per latent cell, for folders without a VAE (default: 8)")


def _add_weights(parser: _Parser) -> None:
    """Options of which weights are taken."""
    parser.add_argument(
        "--lora",
        metavar="FILE:WEIGHT",
        type=_lora,
        action="append",
        default=[],
        help="merge an adapter into the transformer, this strongly (repeatable)",
    )
    parser.add_argument(
        "--variant",
        metavar="NAME",
        type=_variant,
        help="take the files of this variant, such as fp16, where a component has them (default: those without one)",
    )


class _Parser(argparse.ArgumentParser):
    """Reports misuse in one line, as every other error."""

    def error(self, message: str) -> NoReturn:
        """Ends the process with 2."""
        remedy = "" if ";" in message else "; see dbcache-export --help"
        print(f"error: {message}{remedy}", file=sys.stderr)
        sys.exit(USAGE)


class _List(argparse.Action):
    """Prints the families and ends the process."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        """Imports diffusers: seconds."""
        from dbcache_export.families.catalogue import table

        print(table())
        parser.exit()


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)x(\d+)", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is no size such as 1024x1024")
    return int(found[1]), int(found[2])


def _variant(text: str) -> str:
    if not re.fullmatch(r"[^./\\]+", text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no variant such as fp16: the part of a file's name between two dots"
        )
    return text


def _lora(text: str) -> tuple[Path, float]:
    file, _, weight = text.rpartition(":")
    try:
        strength = float(weight)
    except ValueError:
        strength = math.nan
    if not file or not math.isfinite(strength) or strength == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no file with a weight other than 0, as a.safetensors:0.8")
    if not Path(file).is_file():
        raise argparse.ArgumentTypeError(f"{file} is not a file")
    return Path(file), strength


def _warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """For `warnings.formatwarning`: without the line of code that warns."""
    return f"warning: {message}\n"


def _fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return FAILED
