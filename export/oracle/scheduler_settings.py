"""Writes `scheduler_settings.json`: the scheduler objects that the exporter makes of all kinds of settings.

The settings are generated: classes of schedulers, as models were published with them, times each parameter of the
class's constructor, times valid, extreme and wrong values. Beside each object stands what diffusers makes of known
predictions at several numbers of steps, up to 1000: the last latents, and of the timesteps the first, the last and the
sum; null where diffusers raises, or gives numbers that are not finite.
"""

from __future__ import annotations

import argparse
import inspect
import json
import math
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from dbcache_export.errors import ExportError
from dbcache_export.pipeline_calls import CALLS, Calls, Run
from dbcache_export.scheduler import prediction, scheduler

import schedulers
from reference import REFERENCE_DIR, float32_text, write_records

__all__ = ["BASES", "MANY_STEPS", "OTHERS", "STEPS", "VALUES", "Case", "Outcome", "cases", "outcome", "records", "run"]

STEPS = (1, 2, 5, 20)
#: The settings from which others are varied have a long run as well.
MANY_STEPS = 1000
#: f32 rounds noise levels of 0 and 1.
ROUNDING = 1e-6

FLOW, UNIPC, DPM = "FlowMatchEulerDiscreteScheduler", "UniPCMultistepScheduler", "DPMSolverMultistepScheduler"
DDIM, COG_DDIM, COG_DPM = "DDIMScheduler", "CogVideoXDDIMScheduler", "CogVideoXDPMScheduler"
WAN = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
COGVIDEOX = {
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
    "clip_sample": False,
}

#: A family, a class that its pipeline takes, and settings; every parameter is varied from there.
BASES: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("sd3", FLOW, {"shift": 3.0}),
    ("flux", FLOW, {"use_dynamic_shifting": True}),
    ("wan", UNIPC, WAN),
    ("pixart", UNIPC, {}),
    ("pixart", DPM, {}),
    ("wan", DPM, WAN),
    ("dit", DDIM, {"clip_sample": False}),
    ("cogvideox", COG_DDIM, COGVIDEOX),
    ("cogvideox", COG_DPM, COGVIDEOX),
)

SWITCH = (True, False, None, "yes")
SHIFT = (1e-3, 0.5, 1, 3.5, 1000, True, 0, -1, None, "3", math.nan, math.inf)
BETA = (0, 1e-5, 0.5, 1, -0.1, 2, None, "x", math.nan)
SIGMA = (None, 1e-3, 0.5, 80, 0, -1, "x", math.nan)

#: Valid, extreme and wrong values of each parameter, in whichever class it is.
VALUES: Mapping[str, tuple[Any, ...]] = {
    "num_train_timesteps": (1, 2, 10, 500, 1001, 0, -5, 1000.5, 10**6, None, "1000"),
    "shift": SHIFT,
    "flow_shift": SHIFT,
    "snr_shift_scale": SHIFT,
    "shift_terminal": (None, 0, 0.1, 1, 2, -0.5, "x", math.nan),
    "use_dynamic_shifting": SWITCH,
    "base_shift": (0, -0.5, 3, 1000, None, "x", math.nan),
    "max_shift": (0, -0.5, 0.5, 3, 1000, None, "x"),
    "base_image_seq_len": (0, 1, 255.5, 4096, 8192, -256, None, "x"),
    "max_image_seq_len": (256, 1, 8192, 10**7, None, "x"),
    "time_shift_type": ("linear", "exponential", "odd", None),
    "invert_sigmas": SWITCH,
    "stochastic_sampling": SWITCH,
    "use_karras_sigmas": SWITCH,
    "use_exponential_sigmas": SWITCH,
    "use_beta_sigmas": SWITCH,
    "use_lu_lambdas": SWITCH,
    "use_flow_sigmas": SWITCH,
    "sigma_min": SIGMA,
    "sigma_max": SIGMA,
    "beta_start": BETA,
    "beta_end": BETA,
    "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2", "odd", None),
    "trained_betas": (
        None,
        [1e-4 + 2e-5 * t for t in range(1000)],
        [0.01] * 30,
        [0.1, -0.5],
        [],
        "x",
    ),
    "solver_order": (1, 2, 3, 4, 5, 7, 8, 0, -1, 2.5, None, "2"),
    "solver_type": ("midpoint", "heun", "logrho", "bh1", "bh2", "odd", None),
    "algorithm_type": ("dpmsolver++", "dpmsolver", "sde-dpmsolver++", "sde-dpmsolver", "deis", "odd", None),
    "prediction_type": ("epsilon", "sample", "v_prediction", "flow_prediction", "odd", None),
    "predict_x0": SWITCH,
    "lower_order_final": SWITCH,
    "euler_at_final": SWITCH,
    "disable_corrector": ([], [0], [1, 3, 3, -1, 10**4], [0.5, "x"], None, 5, "x"),
    "solver_p": (None, {}, "x", {"_class_name": DDIM}),
    "thresholding": SWITCH,
    "dynamic_thresholding_ratio": (0.5, None, "x"),
    "sample_max_value": (2.0, None, "x"),
    "clip_sample": SWITCH,
    "clip_sample_range": (2.0, None, "x"),
    "final_sigmas_type": ("zero", "sigma_min", "odd", None),
    "timestep_spacing": ("linspace", "leading", "trailing", "odd", None),
    "steps_offset": (0, 1, 20, 500, -1, 1.5, None, "x"),
    "rescale_betas_zero_snr": SWITCH,
    "set_alpha_to_one": SWITCH,
    "lambda_min_clipped": (-5.1, -math.inf, 0.0, 100.0, None, "x"),
    "variance_type": (None, "fixed_small", "learned", "learned_range"),
}

LEADING = {"timestep_spacing": "leading"}
DYNAMIC = {"use_dynamic_shifting": True}
MIN = {"final_sigmas_type": "sigma_min"}
ENDS = {"sigma_min": 0.02, "sigma_max": 0.98}
#: What matters in company only; and pipelines that pass what no base's does.
OTHERS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    *((family, FLOW, {}) for family in ("flux", "sd3", "wan", "dit", "pixart", "cogvideox", "mochi")),
    *((family, FLOW, DYNAMIC) for family in ("flux2", "sd3", "wan", "mochi", "hunyuan_video", "z_image")),
    *((family, DDIM, {"clip_sample": False}) for family in ("flux", "sd3", "wan", "pixart", "cogvideox", "qwen_image")),
    *((family, UNIPC, WAN) for family in ("flux", "flux2", "sd3", "qwen_image", "mochi", "hunyuan_video", "dit")),
    *((family, UNIPC, {}) for family in ("flux", "sd3", "wan", "dit", "cogvideox")),
    *((family, DPM, WAN) for family in ("flux", "sd3", "qwen_image", "hunyuan_video", "pixart")),
    *((family, UNIPC, WAN | DYNAMIC | more) for family in ("flux", "flux2", "ltx", "sd3") for more in ({}, ENDS)),
    *((family, DPM, WAN | DYNAMIC) for family in ("flux", "flux2", "sd3", "wan", "qwen_image")),
    *((family, COG_DPM, COGVIDEOX) for family in ("pixart", "dit", "wan")),
    ("pixart", COG_DDIM, COGVIDEOX),
    ("flux", DPM, WAN | DYNAMIC | {"time_shift_type": "linear"}),
    ("flux", UNIPC, WAN | DYNAMIC | {"time_shift_type": "linear"}),
    ("flux", UNIPC, WAN | DYNAMIC | {"shift_terminal": 0.1}),
    ("mochi", FLOW, {"invert_sigmas": True}),
    ("hunyuan_video", FLOW, {"shift": 7.0}),
    ("hunyuan_video", UNIPC, WAN | {"use_karras_sigmas": True}),
    ("ltx", FLOW, DYNAMIC | {"shift_terminal": 0.1}),
    ("flux", FLOW, DYNAMIC | {"time_shift_type": "linear", "shift_terminal": 0.02}),
    ("flux", FLOW, DYNAMIC | {"time_shift_type": "linear", "base_shift": -0.5, "max_shift": -0.1}),
    ("flux", FLOW, {"num_train_timesteps": 500}),
    ("flux", FLOW, {"use_karras_sigmas": True} | ENDS),
    ("flux", FLOW, {"use_exponential_sigmas": True, "shift": 3.0}),
    ("flux", FLOW, {"use_exponential_sigmas": True, "use_karras_sigmas": True}),
    ("sd3", FLOW, {"shift": 1000, "num_train_timesteps": 2}),
    ("sd3", FLOW, {"odd_setting": 3, "prediction_type": "epsilon"}),
    ("wan", FLOW, {"stochastic_sampling": True, "shift": 3.0}),
    ("wan", UNIPC, WAN | {"use_karras_sigmas": True} | ENDS),
    ("wan", UNIPC, WAN | {"use_karras_sigmas": True} | MIN),
    ("wan", UNIPC, WAN | {"use_exponential_sigmas": True} | ENDS),
    ("wan", UNIPC, WAN | {"use_exponential_sigmas": True, "solver_order": 3} | ENDS | MIN),
    ("wan", UNIPC, WAN | {"solver_type": "bh1"} | MIN),
    ("wan", UNIPC, WAN | {"lower_order_final": False} | MIN),
    ("wan", UNIPC, WAN | {"lower_order_final": False, "solver_order": 1}),
    ("wan", UNIPC, WAN | {"prediction_type": "epsilon"} | MIN),
    ("wan", UNIPC, {"prediction_type": "flow_prediction"}),
    ("wan", DPM, WAN | MIN),
    ("wan", DPM, WAN | {"use_karras_sigmas": True} | ENDS),
    ("wan", DPM, WAN | {"use_exponential_sigmas": True} | ENDS),
    ("wan", DPM, WAN | {"solver_order": 3}),
    ("wan", DPM, WAN | {"algorithm_type": "sde-dpmsolver++"}),
    *(("pixart", UNIPC, {"use_karras_sigmas": True} | more) for more in (MIN, {"sigma_min": 0.1}, {"sigma_max": 10.0})),
    *(("pixart", UNIPC, {"use_exponential_sigmas": True} | more) for more in (MIN, {"sigma_min": 0.1})),
    *(("pixart", UNIPC, {"predict_x0": False, "solver_order": order} | MIN) for order in (1, 2, 3)),
    *(("pixart", UNIPC, {"predict_x0": False, "prediction_type": kind} | MIN) for kind in ("sample", "v_prediction")),
    ("pixart", UNIPC, LEADING | {"steps_offset": 1}),
    ("pixart", UNIPC, {"solver_type": "bh1", "solver_order": 3} | MIN),
    ("pixart", UNIPC, {"use_dynamic_shifting": True}),
    ("pixart", UNIPC, {"trained_betas": [0.01] * 1000, "beta_schedule": "odd"}),
    *(("pixart", DPM, LEADING | {"steps_offset": offset}) for offset in (1, -1, None)),
    *(("pixart", DPM, {"lambda_min_clipped": -5.1, "timestep_spacing": how}) for how in ("leading", "trailing")),
    *(
        ("pixart", DPM, {"beta_schedule": "squaredcos_cap_v2", name: True})
        for name in ("use_karras_sigmas", "use_lu_lambdas")
    ),
    *(("pixart", DPM, {"use_karras_sigmas": True} | more) for more in (MIN, ENDS, {"use_lu_lambdas": True})),
    *(
        ("pixart", DPM, {"algorithm_type": kind, "solver_order": order, "solver_type": solver} | MIN)
        for kind in ("dpmsolver", "sde-dpmsolver", "sde-dpmsolver++")
        for order in (1, 2, 3)
        for solver in ("midpoint", "heun")
    ),
    ("pixart", DPM, {"algorithm_type": "dpmsolver", "prediction_type": "sample"} | MIN),
    ("pixart", DPM, {"algorithm_type": "sde-dpmsolver++", "solver_order": 3, "euler_at_final": True}),
    ("pixart", DPM, {"prediction_type": "sample", "variance_type": "learned"}),
    ("pixart", DPM, {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}),
    *(
        ("dit", DDIM, {"clip_sample": False, "timestep_spacing": how, "rescale_betas_zero_snr": True})
        for how in ("leading", "trailing")
    ),
    ("dit", DDIM, {}),
    ("dit", "LCMScheduler", {}),
    ("dit", "DDPMScheduler", {}),
)


@dataclass(frozen=True)
class Case:
    """One scheduler_config.json, and the pipeline that it belongs to."""

    family: str
    config: Mapping[str, Any]
    #: The settings that were varied.
    varied: tuple[str, ...]

    def __str__(self) -> str:
        """For messages."""
        return f"{self.family}: {json.dumps(self.config)[:200]}"


def cases() -> Iterator[Case]:
    """All of them."""
    for family, name, settings in BASES:
        yield Case(family, {"_class_name": name} | settings, ())
        for parameter in parameters(name):
            for value in VALUES[parameter]:
                yield Case(family, {"_class_name": name} | settings | {parameter: value}, (parameter,))
    for family, name, settings in OTHERS:
        yield Case(family, {"_class_name": name} | settings, tuple(settings))


def parameters(name: str) -> list[str]:
    """Of a scheduler's constructor."""
    return [name for name in inspect.signature(getattr(diffusers, name).__init__).parameters if name != "self"]


@dataclass(frozen=True)
class Outcome:
    """What the exporter makes of a configuration."""

    fields: dict[str, Any] | None
    predicted: dict[str, Any] | None
    refusal: str


def outcome(case: Case) -> Outcome:
    """The exporter's."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scheduler" / "scheduler_config.json"
        path.parent.mkdir()
        path.write_text(json.dumps(case.config))
        try:
            return Outcome(scheduler(Path(folder), CALLS[case.family]), prediction(Path(folder)), "")
        except ExportError as error:
            return Outcome(None, None, str(error).replace(folder, ""))


def run(config: Mapping[str, Any], calls: Calls, steps: int) -> Run | None:
    """What diffusers makes of it, in float64 where it lets latents and sigmas be; None if that is nothing finite."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            built = getattr(diffusers, str(config["_class_name"])).from_config(dict(config))
            _widen(built)
            found = schedulers.run(built, calls, steps)
    except Exception:  # whatever diffusers, numpy and PyTorch raise on odd values
        return None
    levels = found.sigmas or []
    return found if found.is_finite() and all(-ROUNDING <= level <= 1 + ROUNDING for level in levels) else None


def _widen(built: Any) -> None:
    """Lets the scheduler compute with its noise levels in float64."""
    set_timesteps = built.set_timesteps

    def set_wide(**arguments: Any) -> None:
        set_timesteps(**arguments)
        for name in ("sigmas", "alphas_cumprod"):
            if hasattr(built, name):
                setattr(built, name, getattr(built, name).double())

    set_wide.__signature__ = inspect.signature(set_timesteps)  # type: ignore[attr-defined]
    built.set_timesteps = set_wide


def records() -> list[dict[str, Any]]:
    """One for each scheduler object that the exporter writes."""
    found: dict[str, dict[str, Any]] = {}
    for case in cases():
        made = outcome(case)
        key = json.dumps([made.fields, made.predicted])
        if made.fields is not None and key not in found:
            all_steps = STEPS if case.varied else (*STEPS, MANY_STEPS)
            runs = [described(steps, run(case.config, CALLS[case.family], steps)) for steps in all_steps]
            found[key] = {"of": str(case), "scheduler": made.fields, "prediction": made.predicted, "runs": runs}
    return list(found.values())


def described(steps: int, found: Run | None) -> dict[str, Any]:
    """One run, in short."""
    if found is None:
        return {"steps": steps, "timesteps": None, "latents": None}
    told = [found.timesteps[0], found.timesteps[-1], sum(found.timesteps)]
    return {
        "steps": steps,
        "timesteps": [float32_text(value) for value in told],
        "latents": [float32_text(value) for value in found.latents[-1]],
    }


def main() -> None:
    """Command line: writes the reference file."""
    parser = argparse.ArgumentParser(description="write what diffusers and the exporter make of schedulers' settings")
    parser.add_argument("--out", type=Path, default=REFERENCE_DIR / "scheduler_settings.json")
    arguments = parser.parse_args()
    diffusers.logging.set_verbosity_error()
    header = {
        "about": "scheduler objects that the exporter writes, and what diffusers makes of the same settings",
        "made_by": "export/oracle/scheduler_settings.py",
        "made_with": {"diffusers": diffusers.__version__, "torch": torch.__version__},
        "image_tokens": schedulers.TOKENS,
    }
    write_records(arguments.out, header, "cases", records())


if __name__ == "__main__":
    main()
