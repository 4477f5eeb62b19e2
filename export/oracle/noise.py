"""Writes `noise.json`: what torch's CPU generator gives for `randn`, to check a generator that imitates it.

torch takes three ways, and the sizes below meet all of them:

* fewer than 16 values: one at a time, in double precision, from 53 random bits each, in Box-Muller pairs;
* 16 or more: blocks of 16 from 24-bit uniforms, in single precision;
* when 16 does not divide the size: the last 16 values are drawn anew, over the ones already there.

The generator is seeded with the low 32 bits only, so seed 2**40 + 7 must give what 7 gives.

For 16 or more values torch has two implementations: vector code for x86 (with its own approximations of log,
sin and cos) and scalar code (with the C library's). They differ in the last bits; `max_abs_difference_scalar`
of each draw says by how much, and is thereby the tolerance that a third implementation may claim.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from reference import REFERENCE_DIR, float32_text, write_records

__all__ = ["SEEDS", "SIZES", "draw", "draws"]

SEEDS = (0, 1, 7, 42, 2**31, 2**32 - 1, 2**40 + 7)
SIZES = (1, 5, 15, 16, 17, 40, 12288)
EDGE = 24
"""How many values are recorded from each end of a draw."""


def draw(seed: int, size: int) -> torch.Tensor:
    """Draws `size` standard normal values: `[size]`, float32."""
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn((size,), generator=generator, dtype=torch.float32)


def draws() -> list[dict[str, Any]]:
    """Describes every draw; values are the shortest decimals for their float32, sums are float64."""
    records: list[dict[str, Any]] = []
    for seed in SEEDS:
        for size in SIZES:
            values = draw(seed, size)
            wide = values.double()
            records.append(
                {
                    "seed": seed,
                    "size": size,
                    "first": [float32_text(value) for value in values[:EDGE].tolist()],
                    "last": [float32_text(value) for value in values[-EDGE:].tolist()],
                    "sum": wide.sum().item(),
                    "sum_of_squares": wide.square().sum().item(),
                }
            )
    return records


def scalar_draws() -> list[torch.Tensor]:
    """Draws the same values in a process where torch may not use its vector code."""
    environment = os.environ | {"ATEN_CPU_CAPABILITY": "default"}
    command = [sys.executable, __file__, "--print-values"]
    output = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    return [torch.tensor(values, dtype=torch.float32) for values in json.loads(output)]


def main() -> None:
    """Command line: writes the reference file, or (for the process above) prints all values."""
    parser = argparse.ArgumentParser(description="write torch's randn as reference values")
    parser.add_argument("--out", type=Path, default=REFERENCE_DIR / "noise.json")
    parser.add_argument("--print-values", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.print_values:
        print(json.dumps([draw(seed, size).tolist() for seed in SEEDS for size in SIZES]))
        return

    records = draws()
    for record, scalar in zip(records, scalar_draws(), strict=True):
        difference = (draw(record["seed"], record["size"]) - scalar).abs().max().item()
        record["max_abs_difference_scalar"] = float(f"{difference:.3g}")
    header = {
        "about": "torch.randn((size,), generator=torch.Generator('cpu').manual_seed(seed), "
        "dtype=torch.float32); "
        f"first and last are the first and last {EDGE} values (all of a smaller draw), "
        "sum and sum_of_squares are float64 sums over all of them, max_abs_difference_scalar is the distance "
        "to the same draw by torch without vector code",
        "made_by": "export/oracle/noise.py",
        "made_with": {"torch": torch.__version__, "cpu_capability": torch.backends.cpu.get_cpu_capability()},
    }
    write_records(arguments.out, header, "draws", records)


if __name__ == "__main__":
    main()
