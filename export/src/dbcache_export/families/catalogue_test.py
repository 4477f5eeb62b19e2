import json
from pathlib import Path

import pytest
from torch._subclasses.fake_tensor import FakeTensorMode

from dbcache_export import cli, families
from dbcache_export.errors import ExportError
from dbcache_export.families.catalogue import FAMILIES, table
from dbcache_export.spec import Options
from dbcache_export.tiny import pictures, videos


def test_what_is_listed_is_what_is_exported_and_tested() -> None:
    tested = {name for name, _ in (pictures.TRANSFORMERS | videos.TRANSFORMERS).values()} | {"FluxTransformer2DModel"}
    assert set(FAMILIES) == tested


def test_the_command_lists_families(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.parse(["--list"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == table() + "\n"
    assert "Qwen-Image               QwenImageTransformer2DModel" in table()


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("Flux3Transformer2DModel", {"num_layers": 1}, r"closest is Flux\w* .*it lacks"),
        ("QwenImageEditTransformer2DModel", {"image_tokens": 4}, r"QwenImageTransformer2DModel .*it adds image_tokens"),
        (
            "WanVACETransformer3DModel",
            {"vace_layers": [0]},
            r"WanTransformer3DModel \(Wan 2\.1, 2\.2\): it adds vace_layers",
        ),
    ],
)
def test_an_unknown_model_is_refused_with_the_closest_family(
    name: str, settings: dict[str, object], message: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": name} | settings))
    with pytest.raises(ExportError, match=message):
        families.plan(tmp_path, Options(), FakeTensorMode())
