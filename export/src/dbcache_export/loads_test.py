import os
import stat
from pathlib import Path

import pytest

from dbcache_export.errors import ExportError
from dbcache_export.loads import COMMAND_VARIABLE, read_by_engine


def command(folder: Path, script: str, name: str = "dbcache-trt") -> Path:
    file = folder / name
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(file.stat().st_mode | stat.S_IXUSR)
    return file


def test_the_command_on_the_path_or_in_the_environment_reads_the_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = tmp_path / "engine"
    reads = f'[ "$1 $2 $3" = "inspect {engine} --json" ] && echo {{}}'
    monkeypatch.delenv(COMMAND_VARIABLE, raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/usr/bin{os.pathsep}/bin")
    assert "not on the path" in str(read_by_engine(engine))
    command(tmp_path, reads)
    assert read_by_engine(engine) is None
    refuses = command(tmp_path, 'echo "error: engine $2: manifest.json: no" >&2; exit 4', "other")
    monkeypatch.setenv(COMMAND_VARIABLE, str(refuses))
    with pytest.raises(ExportError, match="refuses what was written: error: engine the engine directory: manifest"):
        read_by_engine(engine)
    monkeypatch.setenv(COMMAND_VARIABLE, str(tmp_path / "none"))
    with pytest.raises(ExportError, match="is no command; name the file"):
        read_by_engine(engine)
