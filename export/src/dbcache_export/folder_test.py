import json
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
from diffusers import AutoencoderKL, QwenImageTransformer2DModel

from dbcache_export.errors import ExportError, ExportWarning
from dbcache_export.folder import arguments, configuration, read_json


def folder(path: Path, **config: Any) -> Path:
    (path / "config.json").write_text(json.dumps(config))
    return path


def test_a_configuration_is_read_as_diffusers_reads_it(tmp_path: Path) -> None:
    published = {"_class_name": "AutoencoderKL", "_name_or_path": "x", "latent_channels": 16, "scaling_factor": 1.5}
    model = folder(tmp_path, **published, _use_default_values=["scaling_factor"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours = arguments(model, AutoencoderKL)
    theirs = dict(AutoencoderKL.from_config(AutoencoderKL.load_config(model)).config)
    assert ours == {name: value for name, value in theirs.items() if not name.startswith("_")}
    assert (ours["scaling_factor"], ours["latent_channels"]) == (0.18215, 16)


def test_a_key_that_diffusers_ignores_is_named(tmp_path: Path) -> None:
    model = folder(tmp_path, pooled_projection_dim=768, num_layers=2)
    told = r"config\.json: pooled_projection_dim = 768 ignored, as by diffusers' QwenImageTransformer2DModel"
    with pytest.warns(ExportWarning, match=told):
        ours = arguments(model, QwenImageTransformer2DModel)
    assert ours["num_layers"] == 2
    assert "pooled_projection_dim" not in ours


def test_a_value_that_is_not_understood_is_refused_by_its_key(tmp_path: Path) -> None:
    model = folder(tmp_path, zero_cond_t=True, axes_dims_rope=[16, 56, 56])
    axes = {"axes_dims_rope": ((16, 56, 56),)}
    assert configuration(model, QwenImageTransformer2DModel, lambda _: axes)["zero_cond_t"] is True
    with pytest.raises(ExportError, match=r"\(zero_cond_t = true\); only plain QwenImageTransformer2DModel"):
        configuration(model, QwenImageTransformer2DModel, lambda _: axes | {"zero_cond_t": (False,)})


@pytest.mark.parametrize("text", ['"-inf"', '"-Infinity"', "-Infinity"])
def test_infinite_numbers_are_published_as_text_too(text: str, tmp_path: Path) -> None:
    (tmp_path / "scheduler_config.json").write_text(f'{{"lambda_min_clipped": {text}, "kind": "-"}}')
    assert read_json(tmp_path / "scheduler_config.json") == {"lambda_min_clipped": -math.inf, "kind": "-"}
