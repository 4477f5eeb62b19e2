"""What text encoders of a pipeline give to a plan."""

from __future__ import annotations

__all__ = ["Texts", "of_one_encoder", "refuse_left_padding", "whole"]

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dbcache_export import spec
from dbcache_export.encoders import Encoder
from dbcache_export.errors import ExportError
from dbcache_export.prompts import Rule
from dbcache_export.spec import Tensor


@dataclass(frozen=True)
class Texts:
    """The text encoders' share of a Plan.

    Attributes:
        text: As in the Plan.
        encoders: Whose parameters the graphs use.
        tensors: What graphs hand to later graphs.
    """

    text: spec.Text
    encoders: Sequence[Encoder]
    tensors: Mapping[str, Tensor] = field(default_factory=dict)


def whole(folder: Path, names: Sequence[str]) -> list[Path] | None:
    """The folders of a pipeline's text parts; None where it has none of them.

    Raises:
        ExportError: Some are missing.
    """
    parts = [folder / name for name in names]
    missing = [part.name for part in parts if not part.is_dir()]
    if len(missing) == len(parts):
        return None
    if missing:
        raise ExportError(
            f"{folder} lacks {', '.join(missing)}", "complete the pipeline, or give its transformer folder"
        )
    return parts


def of_one_encoder(
    encoder: Encoder, tokenizer: spec.Tokenizer, name: str, *, unconditional: str = "", clean: Sequence[Rule] = ()
) -> Texts:
    """An encoder that takes the ids and the mask of a tokenizer of this name."""
    graph = (encoder.graph, {"input_ids": (name, "ids"), "attention_mask": (name, "mask")})
    return Texts(spec.Text({name: tokenizer}, [graph], unconditional, clean), [encoder])


def refuse_left_padding(tokenizer: spec.Tokenizer, folder: Path, pipeline: str) -> None:
    """For encoders whose graphs leave out what is behind the text.

    Raises:
        ExportError: The tokenizer pads in front of it.
    """
    if tokenizer.pad_side != "right":
        raise ExportError(f"{folder} pads on the left", f"set padding_side to right, as {pipeline} has it")
