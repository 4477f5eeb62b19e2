import json
from pathlib import Path

import pytest

from dbcache_export.choice import choose
from dbcache_export.errors import ExportError

D, T = "diffusion_pytorch_model", "model"
SHARDS = ["-00001-of-00002.safetensors", "-00002-of-00002.safetensors"]
DIFFUSERS, TRANSFORMERS = {"_class_name": "FluxTransformer2DModel"}, {"architectures": ["T5EncoderModel"]}


def folder_of(path: Path, names: list[str], config: dict | None) -> Path:
    for name in names:
        (path / name).write_text("{}")
    if config is not None:
        (path / "config.json").write_text(json.dumps(config))
    return path


def shards(stem: str) -> list[str]:
    return [stem + end for end in SHARDS]


@pytest.mark.parametrize(
    ("names", "config", "variant", "taken"),
    [
        ([f"{D}.safetensors"], DIFFUSERS, None, f"{D}.safetensors"),
        ([f"{D}.safetensors", f"{D}.fp16.safetensors"], DIFFUSERS, None, f"{D}.safetensors"),
        ([f"{D}.safetensors", f"{D}.fp16.safetensors"], DIFFUSERS, "fp16", f"{D}.fp16.safetensors"),
        ([f"{D}.safetensors", f"{D}.fp16.safetensors"], DIFFUSERS, "bf16", f"{D}.safetensors"),
        ([f"{T}.fp16.safetensors"], TRANSFORMERS, None, f"{T}.fp16.safetensors"),
        ([f"{T}.fp16.safetensors", f"{T}.non_ema.safetensors"], TRANSFORMERS, "non_ema", f"{T}.non_ema.safetensors"),
        # An index beside a single file: diffusers asks for the one first, transformers for the other.
        ([f"{D}.safetensors", f"{D}.safetensors.index.json"], DIFFUSERS, None, f"{D}.safetensors.index.json"),
        ([f"{T}.safetensors", f"{T}.safetensors.index.json"], TRANSFORMERS, None, f"{T}.safetensors"),
        # Both libraries' names in one folder.
        ([f"{D}.safetensors", f"{T}.safetensors"], DIFFUSERS, None, f"{D}.safetensors"),
        ([f"{D}.safetensors", f"{T}.safetensors"], TRANSFORMERS, None, f"{T}.safetensors"),
        ([f"{T}.safetensors"], DIFFUSERS, None, f"{T}.safetensors"),
        # Indices of variants, as both libraries write them and as diffusers once did.
        (
            [*shards(T), f"{T}.safetensors.index.json", *shards(f"{T}.fp16"), f"{T}.safetensors.index.fp16.json"],
            TRANSFORMERS,
            None,
            f"{T}.safetensors.index.json",
        ),
        (
            [*shards(D), f"{D}.safetensors.index.json", *shards(f"{D}.bf16"), f"{D}.safetensors.index.bf16.json"],
            DIFFUSERS,
            "bf16",
            f"{D}.safetensors.index.bf16.json",
        ),
        (
            [f"{D}-00001-of-00001.fp16.safetensors", f"{D}.safetensors.fp16.index.json", f"{D}.safetensors"],
            DIFFUSERS,
            "fp16",
            f"{D}.safetensors.fp16.index.json",
        ),
        # What diffusers does not look at.
        (
            [*shards(T), f"{T}.safetensors.index.json", "consolidated.safetensors"],
            None,
            None,
            f"{T}.safetensors.index.json",
        ),
        ([f"{D}.safetensors", "flux1-dev.safetensors", f"{D}.bin"], DIFFUSERS, None, f"{D}.safetensors"),
        ([f"{D}.safetensors", *shards("old")], DIFFUSERS, None, f"{D}.safetensors"),
        (["embedding.safetensors"], None, None, "embedding.safetensors"),
        (["x.safetensors.index.json", *shards("x"), "y.safetensors"], None, None, "x.safetensors.index.json"),
    ],
)
def test_the_checkpoint_is_that_of_diffusers_and_transformers(
    tmp_path: Path, names: list[str], config: dict | None, variant: str | None, taken: str
) -> None:
    choice = choose(folder_of(tmp_path, names, config), variant)
    assert choice.name == taken
    assert taken not in choice.others
    assert (choice.variant is not None) == any(f".{v}." in taken for v in ("fp16", "bf16", "non_ema"))


@pytest.mark.parametrize(
    ("names", "variant", "words"),
    [
        (shards(D), None, [SHARDS[0], SHARDS[1], "not their index", f"download {D}.safetensors.index.json"]),
        (shards(D)[:1], None, [SHARDS[0], f"download {D}.safetensors.index.json"]),
        (shards("flux"), None, ["download flux.safetensors.index.json"]),
        ([*shards(T), "consolidated.safetensors"], None, ["shards", f"download {T}.safetensors.index.json"]),
        ([*shards(T), f"{T}.fp16.safetensors"], None, [SHARDS[0], f"download {T}.safetensors.index.json"]),
        ([*shards(f"{D}.bf16"), f"{D}.safetensors"], "bf16", [f"download {D}.safetensors.index.bf16.json"]),
        ([f"{D}.fp16.safetensors", f"{D}.bf16.safetensors"], None, [f"{D}.fp16", f"{D}.bf16", "--variant bf16"]),
        ([f"{D}.fp16.safetensors"], "bf16", [f"{D}.fp16.safetensors", "no bf16", "--variant fp16"]),
        (["a.safetensors", "b.safetensors"], None, ["a.safetensors, b.safetensors", f"{D}.safetensors"]),
        (["a.safetensors.index.json", "b.safetensors.index.json"], None, ["a.", "b.", f"{D}.safetensors.index.json"]),
        ([f"{D}.bin", f"{D}.fp16.bin"], None, [f"only {D}.bin, {D}.fp16.bin", "save_pretrained"]),
        (
            ["pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json"],
            None,
            ["of-00002.bin", "save_pretrained"],
        ),
        (["README.md"], None, [r"no .safetensors file; download"]),
    ],
)
def test_what_cannot_be_chosen_is_named_with_the_remedy(
    tmp_path: Path, names: list[str], variant: str | None, words: list[str]
) -> None:
    with pytest.raises(ExportError) as raised:
        choose(folder_of(tmp_path, names, DIFFUSERS), variant)
    for word in (*words, str(tmp_path)):
        assert word in str(raised.value)
    assert "keep one" not in str(raised.value)


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="is not there; complete"):
        choose(tmp_path / "nowhere")
