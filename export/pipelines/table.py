"""The figures as a table: one line a pipeline, on the screen and in docs/families.md."""

from __future__ import annotations

__all__ = ["HEADER", "row", "write"]

import datetime
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from compare import Figures
from variants import VARIANTS

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "families.md"
BEGIN, END = "<!-- pipelines: begin -->", "<!-- pipelines: end -->"

HEADER = """\
| pipeline | of | latents | pixels off by one | decisions | diffs | smallest margin | seconds |
| --- | --- | --- | --- | --- | --- | --- | --- |"""


def row(name: str, figures: Figures) -> str:
    """One line."""
    cells = [
        name,
        VARIANTS[name].pipeline,
        f"{figures.latents:.0e}",
        f"{figures.pixels:.2f} ‰",
        f"{figures.decisions} equal",
        f"{figures.diffs:.0e}",
        f"{100 * figures.margin:.1f} %",
        f"{figures.seconds:.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def write(found: Mapping[str, Figures]) -> None:
    """Puts rows into the table between its marks in docs/families.md; those of other pipelines stay."""
    tools = ", ".join(f"{tool} {version(tool)}" for tool in ("torch", "diffusers", "transformers", "cache-dit"))
    about = f"Renewed last on {datetime.date.today()}: {_machine()}, {tools}."
    text = DOCUMENT.read_text("utf-8")
    rows = _rows(text) | {name: row(name, figures) for name, figures in found.items()}
    table = "\n".join(rows[name] for name in VARIANTS if name in rows)
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    DOCUMENT.write_text(f"{before}{BEGIN}\n{about}\n\n{HEADER}\n{table}\n{END}{after}", "utf-8")


def _rows(text: str) -> dict[str, str]:
    """Those that the document has, by pipeline."""
    _, _, rest = text.partition(BEGIN)
    lines = [line for line in rest.partition(END)[0].splitlines() if line.startswith("| ")]
    return {line.split(" | ")[0].removeprefix("| "): line for line in lines[2:]}


def _machine() -> str:
    """The processor's name, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
