import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from dbcache_export.engine import export
from dbcache_export.errors import ExportError
from dbcache_export.spec import Options
from dbcache_export.variant import plain

D, T = "diffusion_pytorch_model", "model"


def quiet(_: str) -> None:
    """Says nothing."""


@pytest.fixture
def model(pipeline_folder: Path, tmp_path: Path) -> Path:
    shutil.copytree(pipeline_folder, tmp_path / "model")
    return tmp_path / "model"


def add_variant(folder: Path, stem: str, variant: str) -> Path:
    """Other values of the same layout."""
    file = folder / f"{stem}.{variant}.safetensors"
    tensors = load_file(folder / f"{stem}.safetensors")
    save_file({name: value / 2 if value.is_floating_point() else value for name, value in tensors.items()}, file)
    return file


def files(engine: Path) -> dict[str, str]:
    return {
        w["name"]: str(Path(w["folder"]) / w["file"])
        for w in json.loads((engine / "manifest.json").read_text())["weights"]
    }


def test_the_files_without_a_variant_are_taken_and_told(model: Path, tmp_path: Path) -> None:
    add_variant(model / "transformer", D, "fp16")
    add_variant(model / "text_encoder_2", T, "fp16")
    said: list[str] = []
    with plain(model, None, tmp_path, said.append) as folder:
        assert folder == model
    assert said == [
        f"taking text_encoder_2/{T}.safetensors, not {T}.fp16.safetensors",
        f"taking transformer/{D}.safetensors, not {D}.fp16.safetensors",
    ]


def test_a_variant_is_exported_and_checked(model: Path, tmp_path: Path) -> None:
    variant = add_variant(model / "transformer", D, "fp16")
    only = (model / "text_encoder_2" / f"{T}.safetensors").rename(model / "text_encoder_2" / f"{T}.bf16.safetensors")
    with pytest.raises(ExportError, match=r"text_encoder_2 holds model\.bf16\.safetensors.*no fp16"):
        export(model, tmp_path / "engine", Options(variant="fp16"), quiet)
    only = only.rename(model / "text_encoder_2" / f"{T}.fp16.safetensors")
    summary = export(model, tmp_path / "engine", Options(variant="fp16", check=True), quiet)
    assert summary.report is not None
    assert files(tmp_path / "engine") == {
        "transformer.safetensors": str(variant),
        "clip.safetensors": str(model / "text_encoder" / "model.safetensors"),
        "t5.safetensors": str(only),
        "vae.safetensors": str(model / "vae" / f"{D}.safetensors"),
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == ["engine", "model"]
    assert json.loads((tmp_path / "engine" / "manifest.json").read_text())["name"] == "model"


def test_shards_of_a_variant_in_a_transformer_folder(transformer_folder: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(transformer_folder, model)
    tensors = load_file(model / f"{D}.safetensors")
    names, index = [f"{D}.bf16-0000{k}-of-00002.safetensors" for k in (1, 2)], {}
    for k, name in enumerate(names):
        part = {key: value for i, (key, value) in enumerate(sorted(tensors.items())) if i % 2 == k}
        save_file(part, model / name)
        index |= dict.fromkeys(part, name)
    (model / f"{D}.safetensors.index.bf16.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    summary = export(model, tmp_path / "engine", Options(variant="bf16", check=True), quiet)
    assert summary.report is not None
    assert [Path(path).name for path in files(tmp_path / "engine").values()] == names
    # The only checkpoint: it is taken although its name is unusual, and the check takes it as well.
    (model / f"{D}.safetensors").unlink()
    (model / names[1]).unlink()
    with pytest.raises(ExportError, match=f"lacks {names[1]}, which {D}.safetensors.index.bf16.json names; download"):
        export(model, tmp_path / "other", Options(), quiet)


def test_unusual_names_pass_the_check(transformer_folder: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(transformer_folder, model)
    (model / f"{D}.safetensors").rename(model / "my-flux.safetensors")
    assert export(model, tmp_path / "engine", Options(check=True), quiet).report is not None
    assert files(tmp_path / "engine") == {"transformer.safetensors": str(model / "my-flux.safetensors")}


def test_a_variant_that_nothing_has_is_refused(model: Path, tmp_path: Path) -> None:
    add_variant(model / "vae", D, "fp16")
    with pytest.raises(ExportError, match=r"no files of the variant bf16, only .*fp16.*; leave out --variant"):
        export(model, tmp_path / "engine", Options(variant="bf16"), quiet)
