"""Translates a diffusers scheduler_config.json into the manifest's scheduler and prediction."""

from __future__ import annotations

__all__ = ["NO_SHIFT", "flow_sigmas", "prediction", "scheduler"]

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dbcache_export.errors import ExportError, listed
from dbcache_export.folder import read_json

#: Evenly from 1 to 1 / steps, as pipelines that pass sigmas of their own do.
PER_STEP: Mapping[str, Any] = {"kind": "linear", "last": None}

#: Sigmas as they are: linear from 1 to 0.
NO_SHIFT: dict[str, Any] = {
    "kind": "flow_match_euler",
    "sigmas": PER_STEP,
    "shift": {"kind": "none"},
    "shift_terminal": None,
    "inverted": False,
}

#: Flow matching and timesteps of diffusers count so many steps.
_TRAIN_STEPS = 1000

#: Settings that change the sigmas or the step in ways that the format cannot say.
_UNSUPPORTED = {
    "use_exponential_sigmas": (None, False),
    "use_beta_sigmas": (None, False),
    "use_lu_lambdas": (None, False),
    "stochastic_sampling": (None, False),
    "trained_betas": (None,),
    "thresholding": (None, False),
    "solver_p": (None,),
    "variance_type": (None,),
    "predict_x0": (None, True),
    "lambda_min_clipped": (None, "-Infinity", float("-inf")),
}


def scheduler(
    folder: Path, sigmas: Mapping[str, Any] | None = PER_STEP, published: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The scheduler of a pipeline folder; without one, flow-matching sigmas that are not shifted.

    Args:
        folder: The pipeline's.
        sigmas: For flow matching: what the pipeline passes to the scheduler; None if it passes nothing.
        published: Configuration of the scheduler that the model was published with, for a folder without one.

    Raises:
        ExportError: It is of another class, or has an unsupported setting.
    """
    path = folder / "scheduler" / "scheduler_config.json"
    if not path.is_file() and published is None:
        return NO_SHIFT | ({"sigmas": sigmas} if sigmas else {})
    config = read_json(path) if path.is_file() else dict(published or {})
    name = config.get("_class_name")
    if name not in _CLASSES:
        raise ExportError(f"{path}: {name} is not supported", f"supported: {listed(_CLASSES)}")
    refused = [key for key, allowed in _UNSUPPORTED.items() if config.get(key) not in allowed]
    if refused:
        raise ExportError(f"{path}: {listed(refused)} is not supported", "switch it off")
    return _CLASSES[str(name)](config, path, sigmas)


def prediction(folder: Path, default: str = "epsilon", published: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What the model of a pipeline folder predicts, by its scheduler, or by the one that it was published with."""
    path = folder / "scheduler" / "scheduler_config.json"
    config = read_json(path) if path.is_file() else dict(published or {})
    if not config or config.get("_class_name") == "FlowMatchEulerDiscreteScheduler":
        return {"kind": "velocity"}
    given = config.get("prediction_type", default)
    kinds = {"epsilon": "epsilon", "v_prediction": "v_prediction", "flow_prediction": "velocity"}
    if given not in kinds:
        raise ExportError(f"{path}: the prediction_type {given} is not supported", f"supported: {listed(kinds)}")
    return {"kind": kinds[given]}


def flow_sigmas(shift: float) -> dict[str, Any]:
    """Sigmas of a FlowMatchEulerDiscreteScheduler to which the pipeline passes none."""
    smallest = 1 / _TRAIN_STEPS
    return {"kind": "linear", "last": shift * smallest / (1 + (shift - 1) * smallest)}


def _flow_match_euler(config: Mapping[str, Any], path: Path, sigmas: Mapping[str, Any] | None) -> dict[str, Any]:
    _count(config, path)
    if config.get("use_karras_sigmas"):
        raise ExportError(f"{path}: use_karras_sigmas is not supported", "switch it off")
    shift = config.get("shift", 1.0)
    own = flow_sigmas(1.0 if config.get("use_dynamic_shifting") else shift)
    return {
        "kind": "flow_match_euler",
        "sigmas": dict(sigmas or own),
        "shift": _shift(config),
        "shift_terminal": config.get("shift_terminal") or None,
        "inverted": bool(config.get("invert_sigmas")),
    }


def _shift(config: Mapping[str, Any]) -> dict[str, Any]:
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


def _ddim(config: Mapping[str, Any], path: Path, sigmas: Mapping[str, Any] | None) -> dict[str, Any]:
    _no_sigmas(path, sigmas)
    if config.get("clip_sample", True):
        raise ExportError(f"{path}: clip_sample is not supported", "switch it off")
    return {"kind": "ddim"} | _on_ddims_grid(config, 1.0, path)


def _cogvideox(kind: str) -> Callable[[Mapping[str, Any], Path, Mapping[str, Any] | None], dict[str, Any]]:
    """Both schedulers of CogVideoX shift the signal-to-noise ratio, by 3 unless told otherwise."""

    def translate(config: Mapping[str, Any], path: Path, sigmas: Mapping[str, Any] | None) -> dict[str, Any]:
        _no_sigmas(path, sigmas)
        betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
        return {"kind": kind} | _on_ddims_grid(betas | dict(config), config.get("snr_shift_scale", 3.0), path)

    return translate


def _on_ddims_grid(config: Mapping[str, Any], snr_shift: float, path: Path) -> dict[str, Any]:
    return {
        "betas": _betas(config, snr_shift, path),
        "spacing": config.get("timestep_spacing", "leading"),
        "offset": config.get("steps_offset", 0),
        "last_alpha": "one" if config.get("set_alpha_to_one", True) else "first",
    }


def _dpm_solver(config: Mapping[str, Any], path: Path, sigmas: Mapping[str, Any] | None) -> dict[str, Any]:
    _no_sigmas(path, sigmas)
    algorithm = config.get("algorithm_type", "dpmsolver++")
    if algorithm != "dpmsolver++":
        raise ExportError(f"{path}: the algorithm_type {algorithm} is not supported", "supported: dpmsolver++")
    return {"kind": "dpm_solver"} | _multistep(config, path) | {"euler_at_final": bool(config.get("euler_at_final"))}


def _unipc(config: Mapping[str, Any], path: Path, sigmas: Mapping[str, Any] | None) -> dict[str, Any]:
    _no_sigmas(path, sigmas)
    if config.get("use_dynamic_shifting") or config.get("shift_terminal"):
        raise ExportError(f"{path}: use_dynamic_shifting and shift_terminal are not supported", "switch them off")
    own = {"disable_corrector": list(config.get("disable_corrector") or [])}
    return {"kind": "unipc"} | _multistep({"solver_type": "bh2"} | dict(config), path) | own


def _multistep(config: Mapping[str, Any], path: Path) -> dict[str, Any]:
    if config.get("use_flow_sigmas"):
        noise = {"kind": "flow", "shift": config.get("flow_shift", 1.0), "train_steps": _count(config, path)}
    else:
        noise = {"kind": "betas"} | _betas(config, 1.0, path)
    return {
        "noise": noise,
        "spacing": config.get("timestep_spacing", "linspace"),
        "offset": config.get("steps_offset", 0),
        "karras": bool(config.get("use_karras_sigmas")),
        "order": config.get("solver_order", 2),
        "solver": config.get("solver_type", "midpoint"),
        "lower_order_final": config.get("lower_order_final", True),
        "last_sigma": {"zero": "zero", "sigma_min": "min"}[config.get("final_sigmas_type", "zero")],
    }


def _betas(config: Mapping[str, Any], snr_shift: float, path: Path) -> dict[str, Any]:
    schedule = config.get("beta_schedule", "linear")
    if schedule not in ("linear", "scaled_linear", "squaredcos_cap_v2"):
        raise ExportError(
            f"{path}: the beta_schedule {schedule} is not supported",
            "supported: linear, scaled_linear, squaredcos_cap_v2",
        )
    return {
        "schedule": schedule,
        "start": config.get("beta_start", 0.0001),
        "end": config.get("beta_end", 0.02),
        "train_steps": config.get("num_train_timesteps", _TRAIN_STEPS),
        "snr_shift": snr_shift,
        "zero_snr": bool(config.get("rescale_betas_zero_snr")),
    }


def _count(config: Mapping[str, Any], path: Path) -> int:
    """The number of timesteps; flow matching has 1000 in every pipeline."""
    count = config.get("num_train_timesteps", _TRAIN_STEPS)
    if count != _TRAIN_STEPS:
        raise ExportError(f"{path}: num_train_timesteps is {count}", f"only {_TRAIN_STEPS} is supported")
    return int(count)


def _no_sigmas(path: Path, sigmas: Mapping[str, Any] | None) -> None:
    if sigmas is not None and sigmas is not PER_STEP:
        raise ExportError(f"{path}: a scheduler that takes no sigmas of the pipeline", "use a flow-matching scheduler")


_CLASSES: Mapping[str, Callable[[Mapping[str, Any], Path, Mapping[str, Any] | None], dict[str, Any]]] = {
    "FlowMatchEulerDiscreteScheduler": _flow_match_euler,
    "DDIMScheduler": _ddim,
    "CogVideoXDDIMScheduler": _cogvideox("ddim"),
    "CogVideoXDPMScheduler": _cogvideox("dpm_sde"),
    "DPMSolverMultistepScheduler": _dpm_solver,
    "UniPCMultistepScheduler": _unipc,
}
