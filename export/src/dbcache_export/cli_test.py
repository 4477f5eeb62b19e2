import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dbcache_export.cli import FAILED, USAGE, main, parse
from dbcache_export.conftest import child_environment
from dbcache_export.spec import Options


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    return int(str(end.value.code))


def test_each_option_has_its_effect(tmp_path: Path) -> None:
    def options(*given: str) -> Options:
        return parse([str(tmp_path), "out", *given])[2]

    default = Options()
    assert options() == default
    for given, field, value in (
        (["--opset", "23"], "opset", 23),
        (["--compute", "bf16"], "compute", "bf16"),
        (["--pack"], "pack", True),
        (["--check"], "check", True),
        (["--no-check"], "check", False),
        (["--no-content-hash"], "content_hash", False),
        (["--overwrite"], "overwrite", True),
        (["--name", "x"], "name", "x"),
        (["--license", "MIT"], "license", "MIT"),
        (["--attribution", "someone"], "attribution", "someone"),
        (["--size", "640x480"], "size", (640, 480)),
        (["--frames", "17"], "frames", 17),
        (["--downscale", "4"], "downscale", 4),
    ):
        assert getattr(options(*given), field) == value != getattr(default, field)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["no-such-folder", "out"],
        [".", "out", "--opset", "21"],
        [".", "out", "--size", "big"],
        [".", "out", "--downscale", "0"],
        [".", "out", "--check", "--no-check"],
        [".", "out", "--unknown"],
    ],
)
def test_misuse_ends_with_2_and_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*arguments) == USAGE
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "; " in error
    assert error.count("\n") == 1


def config(folder: Path, **fields: object) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(fields))
    return folder


def test_failures_end_with_1_and_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def failing(folder: Path, message: str, *more: object) -> None:
        assert run(folder, tmp_path / "out", *more) == FAILED
        lines = [line for line in capsys.readouterr().err.splitlines() if not line.endswith("…")]
        assert len(lines) == 1
        assert message in lines[0]
        assert lines[0].startswith("error: ")
        assert "; " in lines[0]
        assert not [path for path in tmp_path.iterdir() if "out" in path.name]

    unknown = config(tmp_path / "a", _class_name="UNet2DConditionModel")
    failing(unknown, "UNet2DConditionModel is not supported; the closest is ")
    fill = config(tmp_path / "b", _class_name="FluxTransformer2DModel", in_channels=384, out_channels=64)
    failing(fill, "variant")
    failing(config(tmp_path / "c", _class_name="FluxTransformer2DModel"), "no .safetensors file")
    (tmp_path / "empty").mkdir()
    failing(tmp_path / "empty", "neither transformer/config.json nor config.json")


def test_a_killed_run_leaves_nothing(transformer_folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dbcache_export", str(transformer_folder), str(tmp_path / "out")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=child_environment()) as child:
        assert child.stderr is not None
        assert "reading headers" in child.stderr.readline()
        assert [path.name.startswith(".dbcache-export-out.") for path in tmp_path.iterdir()] == [True]
        time.sleep(0.2)
        child.send_signal(signal.SIGTERM)
        assert child.stderr.readlines()[-1] == "error: interrupted; nothing was written\n"
        assert child.wait() == 130
    assert not list(tmp_path.iterdir())
