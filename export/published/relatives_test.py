"""What is refused of the models that people have, by which name: nothing of this needs a weight."""

import json
from pathlib import Path
from typing import Any

import pytest
from dbcache_export import families
from dbcache_export.errors import ExportError
from dbcache_export.spec import Options
from torch._subclasses.fake_tensor import FakeTensorMode

from holes import published
from relatives import REFUSED, REFUSED_TRANSFORMERS, UNKNOWN


def write(folder: Path, pipeline: str | None, transformer: dict[str, Any], scheduler: dict[str, Any]) -> Path:
    for part, name, config in (
        ("transformer", "config.json", transformer),
        ("scheduler", "scheduler_config.json", scheduler),
    ):
        (folder / part).mkdir()
        (folder / part / name).write_text(json.dumps(config))
    if pipeline:
        (folder / "model_index.json").write_text(json.dumps({"_class_name": pipeline}))
    return folder


def refusal(folder: Path) -> str:
    with pytest.raises(ExportError) as raised:
        families.plan(folder, Options(), FakeTensorMode())
    return str(raised.value)


@pytest.mark.parametrize("name", REFUSED)
def test_a_pipeline_that_does_more_is_refused_by_its_class(name: str, tmp_path: Path) -> None:
    like, pipeline, settings, alone = REFUSED[name]
    model = published(like)
    write(tmp_path, pipeline, model["transformer"] | settings, model["scheduler"])
    assert f"a {pipeline} is not supported" in refusal(tmp_path)
    (tmp_path / "model_index.json").unlink()
    # A transformer like those that are taken is one of them without its pipeline: what it lacks here is weights.
    assert (f"({alone})" if alone else "has no .safetensors file") in refusal(tmp_path)


@pytest.mark.parametrize("name", REFUSED_TRANSFORMERS)
def test_a_variant_with_a_known_pipeline_is_refused_by_its_setting(name: str, tmp_path: Path) -> None:
    like, settings, message = REFUSED_TRANSFORMERS[name]
    model = published(like)
    write(tmp_path, model["pipeline"], model["transformer"] | settings, model["scheduler"])
    assert message in refusal(tmp_path)


@pytest.mark.parametrize("name", UNKNOWN)
def test_a_transformer_of_no_family_is_refused_by_its_class(name: str, tmp_path: Path) -> None:
    write(tmp_path, None, {"_class_name": name, "num_layers": 2}, {})
    assert f"the model class {name} is not supported; the closest is" in refusal(tmp_path)


@pytest.mark.parametrize(
    "pipeline", ["FluxPriorReduxPipeline", "LTXLatentUpsamplePipeline", "StableDiffusionXLPipeline"]
)
def test_a_pipeline_without_a_transformer_is_refused_by_its_class(pipeline: str, tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": pipeline}))
    assert f"a {pipeline}, has neither transformer/config.json nor config.json" in refusal(tmp_path)
