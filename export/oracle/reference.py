"""How reference files are written: in one step, and with lists of plain values on one line.

Does not compute anything: `noise.py`, `sigmas.py` and `record.py` do.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["REFERENCE_DIR", "float32_text", "to_text", "write_bytes", "write_records", "write_text"]

REFERENCE_DIR = Path(__file__).resolve().parents[2] / "tests" / "data" / "reference"
"""Where the committed reference files live."""


def write_bytes(path: Path, data: bytes) -> None:
    """Replaces `path` in one step, so that a reader never meets half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(data)
    partial.replace(path)


def write_text(path: Path, text: str) -> None:
    """Replaces `path` with UTF-8 text in one step."""
    write_bytes(path, text.encode("utf-8"))


def write_records(path: Path, header: dict[str, Any], key: str, records: list[dict[str, Any]]) -> None:
    """Writes `{header…, key: [records…]}` with one record a line."""
    lines = [f"  {json.dumps(name)}: {json.dumps(value)}," for name, value in header.items()]
    rows = ",\n".join(f"    {json.dumps(record)}" for record in records)
    write_text(path, "{\n" + "\n".join(lines) + f"\n  {json.dumps(key)}: [\n{rows}\n  ]\n}}\n")


def to_text(value: Any, depth: int = 0) -> str:
    """JSON with one line for each field; a list stays on one line unless it holds objects."""
    if isinstance(value, dict) and value:
        fields = [f"{json.dumps(name)}: {to_text(field, depth + 1)}" for name, field in value.items()]
        return _enclose("{", fields, "}", depth)
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        return _enclose("[", [to_text(item, depth + 1) for item in value], "]", depth)
    return json.dumps(value)


def float32_text(value: float) -> float:
    """The number with the fewest digits that reads back as the same float32.

    Args:
        value: A value that float32 can represent.

    Returns:
        A float whose shortest decimal form is also the shortest one for the float32.
    """
    return float(str(np.float32(value)))


def _enclose(opening: str, items: list[str], closing: str, depth: int) -> str:
    """Puts each item on a line of its own, indented by one space a level."""
    inner = " " * (depth + 1)
    return f"{opening}\n{inner}" + f",\n{inner}".join(items) + f"\n{' ' * depth}{closing}"
