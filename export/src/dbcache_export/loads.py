"""Lets the engine itself read what was written: its command, where there is one, checks every file by its own rules."""

from __future__ import annotations

__all__ = ["COMMAND_VARIABLE", "read_by_engine"]

import os
import shutil
import subprocess
from pathlib import Path

from dbcache_export.errors import ExportError

#: Names the command, where it is not on the path.
COMMAND_VARIABLE = "DBCACHE_TRT"


def read_by_engine(engine: Path) -> str | None:
    """Has `dbcache-trt inspect` read an engine directory; says why not where there is no such command.

    Raises:
        ExportError: The engine refuses it, or the command that the environment names cannot be run.
    """
    named = os.environ.get(COMMAND_VARIABLE)
    command = shutil.which(named or "dbcache-trt")
    if command is None:
        if named:
            raise ExportError(f"{COMMAND_VARIABLE}={named} is no command", "name the file of dbcache-trt, or unset it")
        return f"not read by the engine: dbcache-trt is not on the path (nor does {COMMAND_VARIABLE} name it)"
    try:
        done = subprocess.run([command, "inspect", str(engine), "--json"], capture_output=True, text=True, check=False)
    except OSError as error:
        raise ExportError(f"cannot run {command} ({error.strerror})", "build it, or take it off the path") from error
    if done.returncode != 0:
        reason = done.stderr.strip().replace(str(engine), "the engine directory") or f"exit code {done.returncode}"
        raise ExportError(
            f"{command} refuses what was written: {reason}",
            "use exporter and engine of one version; if they are, report this with the model's name",
        )
    return None
