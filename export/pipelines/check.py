"""Checks whole pipelines of every family: exporter and command against diffusers and cache-dit.

    check.py [--write] [--brief | FAMILY or PIPELINE …]

For each, a folder as a user has it, tiny and with random weights, goes through `dbcache-export`, and then through the
command that DBCACHE_TRT names, with a prompt and settings alone. `cargo xtask check-families` runs this.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything is imported that may look

import logging
import warnings

import torch

import table
from compare import Figures, check
from variants import VARIANTS

#: Pipelines at a time.
_PROCESSES = 2


def main() -> int:
    """Command line: 0 if all agree."""
    parser = argparse.ArgumentParser(description="check whole pipelines of every family")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"a family, or one of {', '.join(VARIANTS)}")
    parser.add_argument("--write", action="store_true", help="renew their rows of the table in docs/families.md")
    parser.add_argument("--brief", action="store_true", help="only the first pipeline of each family")
    given = parser.parse_args()
    if given.brief and given.names:
        parser.error("--brief chooses by itself; leave out the names")
    if "DBCACHE_TRT" not in os.environ:
        parser.error("DBCACHE_TRT does not name the command; `cargo xtask check-families` builds it and sets that")
    chosen = [name for name in VARIANTS if not given.names or {name, VARIANTS[name].family} & {*given.names}]
    if given.brief:
        families = [variant.family for variant in VARIANTS.values()]
        chosen = [name for place, name in enumerate(VARIANTS) if families.index(families[place]) == place]
    unknown = {*given.names} - {*VARIANTS} - {variant.family for variant in VARIANTS.values()}
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known are {', '.join(VARIANTS)}")
    print(table.HEADER)
    found: dict[str, Figures] = {}
    with ProcessPoolExecutor(_PROCESSES) as pool:
        for name, figures in zip(chosen, pool.map(_check, chosen), strict=True):
            print(table.row(name, figures), flush=True)
            for failure in figures.failures:
                print(f"  {name}: {failure}", file=sys.stderr, flush=True)
            found[name] = figures
    failed = [name for name, figures in found.items() if figures.failures]
    if failed:
        print(f"\n{len(failed)} of {len(found)} pipelines differ: {', '.join(failed)}", file=sys.stderr)
        return 1
    if given.write:
        table.write(found)
    return 0


def _check(name: str) -> Figures:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as scratch:
        return check(VARIANTS[name], Path(scratch))


if __name__ == "__main__":
    sys.exit(main())
