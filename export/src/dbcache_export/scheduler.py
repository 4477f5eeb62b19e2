"""Translates a diffusers scheduler_config.json into the manifest's scheduler."""

from __future__ import annotations

__all__ = ["NO_SHIFT", "scheduler"]

from pathlib import Path
from typing import Any

from dbcache_export.errors import ExportError, listed
from dbcache_export.folder import read_json

#: Sigmas as they are: linear from 1 to 0.
NO_SHIFT: dict[str, Any] = {"kind": "flow_match_euler", "shift": {"kind": "none"}, "shift_terminal": None}

#: Settings that change the sigmas or the step in ways that the format cannot say.
_UNSUPPORTED = (
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "invert_sigmas",
    "stochastic_sampling",
)


def scheduler(folder: Path) -> dict[str, Any]:
    """The scheduler of a pipeline folder; without one, sigmas are not shifted.

    Raises:
        ExportError: It is another scheduler than flow matching with Euler steps, or has an unsupported setting.
    """
    path = folder / "scheduler" / "scheduler_config.json"
    if not path.is_file():
        return NO_SHIFT
    config = read_json(path)
    if config.get("_class_name") != "FlowMatchEulerDiscreteScheduler":
        raise ExportError(
            f"{path}: {config.get('_class_name')} is not supported",
            "supported: FlowMatchEulerDiscreteScheduler",
        )
    on = [name for name in _UNSUPPORTED if config.get(name)]
    if on:
        raise ExportError(f"{path}: {listed(on)} is not supported", "switch it off")
    return NO_SHIFT | {"shift": _shift(config), "shift_terminal": config.get("shift_terminal") or None}


def _shift(config: dict[str, Any]) -> dict[str, Any]:
    """Defaults are those of diffusers' FlowMatchEulerDiscreteScheduler and of its FLUX pipeline."""
    if config.get("use_dynamic_shifting"):
        return {
            "kind": "dynamic",
            "base_tokens": config.get("base_image_seq_len", 256),
            "max_tokens": config.get("max_image_seq_len", 4096),
            "base_shift": config.get("base_shift", 0.5),
            "max_shift": config.get("max_shift", 1.15),
            "time_shift": config.get("time_shift_type", "exponential"),
        }
    shift = config.get("shift", 1.0)
    return {"kind": "none"} if shift == 1.0 else {"kind": "static", "shift": shift}
