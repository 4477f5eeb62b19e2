import json
import shutil
from pathlib import Path

import pytest
from torch._subclasses.fake_tensor import FakeTensorMode

from dbcache_export.errors import ExportError
from dbcache_export.spec import Options
from dbcache_export.vae import decoder


def test_float16_decodes_in_float32_where_the_model_asks_for_it(pipeline_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(pipeline_folder / "vae", tmp_path / "vae")
    config = json.loads((tmp_path / "vae" / "config.json").read_text())

    def dtype(**settings: object) -> str:
        (tmp_path / "vae" / "config.json").write_text(json.dumps(config | settings))
        module = decoder(tmp_path / "vae", Options(compute="f16"), FakeTensorMode()).graph.template.module
        return str(next(module.parameters()).dtype)

    assert dtype(force_upcast=True) == "torch.float32"
    assert dtype(force_upcast=False) == "torch.float16"
    with pytest.raises(ExportError, match="AutoencoderTiny is not supported"):
        dtype(_class_name="AutoencoderTiny")
