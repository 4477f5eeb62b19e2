"""Translates a diffusers scheduler_config.json into the manifest's scheduler and prediction.

diffusers is asked first: a configuration is taken if its scheduler, called as the pipeline calls it, gives finite
numbers. What diffusers can and the manifest cannot say, or would read otherwise, is refused by the setting's name.
"""

from __future__ import annotations

__all__ = ["NO_SHIFT", "prediction", "scheduler", "train_steps"]

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from dbcache_export.errors import listed
from dbcache_export.pipeline_calls import PER_STEP, Calls
from dbcache_export.scheduler_trial import Source

#: Sigmas as they are: linear from 1 to 0.
NO_SHIFT: dict[str, Any] = {
    "kind": "flow_match_euler",
    "sigmas": PER_STEP,
    "shift": {"kind": "none"},
    "shift_terminal": None,
    "inverted": False,
}

#: What the manifest's numbers may be (rules/sampling.rs), by diffusers' names.
_RANGES: Mapping[str, tuple[float, float]] = {
    "num_train_timesteps": (1, 100_000),
    "steps_offset": (0, 100_000),
    "solver_order": (1, 7),
    "beta_start": (0, 1),
    "beta_end": (0, 1),
    "snr_shift_scale": (1e-300, 1e6),
    "shift": (1e-300, 1e6),
    "flow_shift": (1e-300, 1e6),
    "shift_terminal": (0, 1),
    "base_shift": (-1e6, 1e6),
    "max_shift": (-1e6, 1e6),
    "base_image_seq_len": (-(1 << 24), 1 << 24),
    "max_image_seq_len": (-(1 << 24), 1 << 24),
    "sigma_min": (1e-300, 1e12),
    "sigma_max": (1e-300, 1e12),
}


def scheduler(folder: Path, calls: Calls, published: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The scheduler of a pipeline folder; without one, flow-matching sigmas that are not shifted.

    Args:
        folder: The pipeline's.
        calls: How the pipeline calls its scheduler.
        published: Configuration of the scheduler that the model was published with, for a folder without one.

    Raises:
        ExportError: It is of another class, or has a setting that diffusers or the manifest cannot take.
    """
    source = Source.read(folder, published)
    if source is None:
        return NO_SHIFT | ({"sigmas": calls.sigmas} if calls.sigmas else {})
    source.try_out(calls)
    return _Translation(source, calls).fields()


def prediction(folder: Path, published: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What the model of a pipeline folder predicts, by its scheduler, or by the one that it was published with."""
    source = Source.read(folder, published)
    if source is None or source.name == "FlowMatchEulerDiscreteScheduler":
        return {"kind": "velocity"}
    given = source.built.config["prediction_type"]
    kinds = {"epsilon": "epsilon", "v_prediction": "v_prediction", "flow_prediction": "velocity", "sample": "sample"}
    if not isinstance(given, str) or given not in kinds:
        raise source.refusal("prediction_type", f"supported: {listed(kinds)}")
    return {"kind": kinds[given]} | ({"min_sigma": 0.001} if given == "sample" else {})


def train_steps(fields: Mapping[str, Any]) -> int:
    """How many timesteps the manifest's scheduler counts."""
    noise = fields.get("noise", fields)
    return int(noise.get("betas", noise).get("train_steps", 1000))


class _Translation:
    """From the settings of a scheduler that works in diffusers to the fields of the manifest."""

    def __init__(self, source: Source, calls: Calls) -> None:
        self.source, self.calls = source, calls
        self.config = source.built.config

    def fields(self) -> dict[str, Any]:
        """The manifest's scheduler."""
        if self.source.name == "FlowMatchEulerDiscreteScheduler":
            return self.flow_match_euler()
        if self.source.name == "DPMSolverMultistepScheduler":
            return self.dpm_solver()
        if self.source.name == "UniPCMultistepScheduler":
            return self.unipc()
        return {"kind": "dpm_sde" if self.source.name == "CogVideoXDPMScheduler" else "ddim"} | self.ddims_grid()

    def number(self, name: str) -> int | float:
        """A number that the manifest can hold; diffusers takes truth values as well.

        Raises:
            ExportError: It is beyond what the engine takes.
        """
        value = self.config.get(name)
        low, high = _RANGES[name]
        if isinstance(value, bool):
            value = int(value)
        if not isinstance(value, (int, float)) or not low <= value <= high:
            low = 0 if 0 < low < 1 else low
            raise self.source.refusal(name, f"expected a number from {low:g} to {high:g}")
        return value

    def flow_match_euler(self) -> dict[str, Any]:
        count = self.number("num_train_timesteps")
        passed = self.calls.passed_sigmas(self.config)
        shift, smallest = self.shift("shift"), 1 / count
        if shift["kind"] == "static":
            smallest = shift["shift"] * smallest / (1 + (shift["shift"] - 1) * smallest)
        return (
            {
                "kind": "flow_match_euler",
                "sigmas": dict(passed or {"kind": "linear", "last": smallest}),
                "shift": shift,
                "shift_terminal": self.terminal(),
                "inverted": bool(self.config["invert_sigmas"]),
            }
            | ({} if count == 1000 else {"train_steps": count})
            | self.spread(use_karras_sigmas="karras", use_exponential_sigmas="exponential")
            | ({"stochastic": True} if self.config["stochastic_sampling"] else {})
        )

    def shift(self, static: str) -> dict[str, Any]:
        """Of flow matching; `static` is the setting of a shift that is always the same."""
        passed = self.calls.passed_shift(self.config)
        if self.config["use_dynamic_shifting"] and passed:
            if passed["kind"] == "dynamic":
                names = {
                    "base_tokens": "base_image_seq_len",
                    "max_tokens": "max_image_seq_len",
                    "base_shift": "base_shift",
                    "max_shift": "max_shift",
                }
                passed |= {field: self.number(name) for field, name in names.items() if name in self.config}
            return passed | {"time_shift": self.config["time_shift_type"]}
        shift = self.number(static)
        return {"kind": "none"} if shift == 1 else {"kind": "static", "shift": shift}

    def terminal(self) -> int | float | None:
        """Zero and none are the same to diffusers."""
        return self.number("shift_terminal") if self.config.get("shift_terminal") else None

    def spread(self, **kinds: str) -> dict[str, Any]:
        """The first of these settings that is on."""
        found = [kind for name, kind in kinds.items() if self.config.get(name)]
        if not found:
            return {}
        # Schedulers read these two even where they have no such setting of their own.
        ends = {"smallest": "sigma_min", "largest": "sigma_max"}
        if found[0] == "lambda":
            ends = {}
        given = {end: self.number(name) for end, name in ends.items() if self.config.get(name) is not None}
        return {"spread": {"kind": found[0], "smallest": None, "largest": None} | given}

    def ddims_grid(self) -> dict[str, Any]:
        return {
            "betas": self.betas(),
            "spacing": self.config["timestep_spacing"],
            "offset": self.offset(),
            "last_alpha": "one" if self.config["set_alpha_to_one"] else "first",
        }

    def offset(self) -> int | float:
        """Matters to `leading` timesteps only."""
        return self.number("steps_offset") if self.config["timestep_spacing"] == "leading" else 0

    def dpm_solver(self) -> dict[str, Any]:
        spread = self.spread(use_karras_sigmas="karras", use_lu_lambdas="lambda", use_exponential_sigmas="exponential")
        noise = self.noise(spread, divides=False)
        last = {"zero": "zero", "sigma_min": "min"}[self.config["final_sigmas_type"]]
        alphas = self.source.built.alphas_cumprod
        fields = {"kind": "dpm_solver"} | self.multistep(noise, spread, "midpoint", last)
        if last == "min" and noise["kind"] == "flow":
            # As if the noise were that of betas, which no flow has.
            fields["last_sigma"] = {"value": float(((1 - alphas[0]) / alphas[0]) ** 0.5)}
        # Orders above the third are the third.
        fields["order"] = min(fields["order"], 3)
        fields["euler_at_final"] = bool(self.config["euler_at_final"])
        algorithm = self.config["algorithm_type"]
        if algorithm == "sde-dpmsolver" and fields["order"] > 2:
            raise self.source.refusal("solver_order", "diffusers has no third order of sde-dpmsolver; take 2")
        return fields | ({} if algorithm == "dpmsolver++" else {"algorithm": algorithm}) | self.used_timesteps(spread)

    def used_timesteps(self, spread: Mapping[str, Any]) -> dict[str, Any]:
        """Those with a larger lambda than the clipped one; spread sigmas and those of a flow do not care."""
        if spread or self.config["use_flow_sigmas"]:
            return {}
        built, count = self.source.built, self.number("num_train_timesteps")
        clipped = torch.searchsorted(torch.flip(built.lambda_t, [0]), self.config["lambda_min_clipped"])
        used = int(count - clipped.item())
        if used == count:
            return {}
        if used < 1:
            raise self.source.refusal("lambda_min_clipped", "it leaves no timesteps; take a smaller number")
        if self.config["timestep_spacing"] == "trailing":
            raise self.source.refusal(
                "lambda_min_clipped", "it leaves out steps with `trailing` timesteps; take others"
            )
        return {"used_timesteps": used}

    def unipc(self) -> dict[str, Any]:
        spread = self.spread(use_karras_sigmas="karras", use_exponential_sigmas="exponential")
        if spread and self.calls.passed_sigmas(self.config) is not None:
            name = "use_karras_sigmas" if self.config["use_karras_sigmas"] else "use_exponential_sigmas"
            raise self.source.refusal(name, "the pipeline passes sigmas of its own; switch it off")
        divides = bool(self.config["use_karras_sigmas"])
        last = {"zero": "zero", "sigma_min": "min"}[self.config["final_sigmas_type"]]
        noise = self.noise(spread, divides)
        if noise["kind"] == "flow" and (sigmas := self.calls.passed_sigmas(self.config)):
            noise["sigmas"] = dict(sigmas)
        if noise["kind"] == "flow" and (terminal := self.terminal()) is not None:
            noise["shift_terminal"] = terminal
        steps = [step for step in self.config["disable_corrector"] if isinstance(step, (int, float)) and step >= 0]
        return (
            {"kind": "unipc"}
            | self.multistep(noise, spread, "bh2", last)
            | {"disable_corrector": [int(step) for step in steps if step == math.floor(step)]}
            | ({} if self.config["predict_x0"] else {"over_noise": True})
        )

    def multistep(self, noise: dict[str, Any], spread: dict[str, Any], other: str, last: str) -> dict[str, Any]:
        """What both solvers have. The solver of another class's configuration is `other`, as in diffusers."""
        own = {"midpoint": ("midpoint", "heun"), "bh2": ("bh1", "bh2")}[other]
        solver = self.config["solver_type"]
        order = self.config["solver_order"]
        plain = spread == {"spread": {"kind": "karras", "smallest": None, "largest": None}}
        return {
            "noise": noise,
            "spacing": self.config["timestep_spacing"],
            "offset": 0 if noise["kind"] != "betas" or spread else self.offset(),
            "karras": plain,
            "order": order if order >= 3 and other == "midpoint" else self.number("solver_order"),
            "solver": solver if solver in own else other,
            "lower_order_final": bool(self.config["lower_order_final"]),
            "last_sigma": last,
        } | ({} if plain else spread)

    def noise(self, spread: Mapping[str, Any], divides: bool) -> dict[str, Any]:
        """Of a multistep solver, whose sigmas are a flow's or follow from betas."""
        if not self.config["use_flow_sigmas"]:
            return {"kind": "betas"} | self.betas()
        if spread:
            return {"kind": "flow_of_betas", "betas": self.betas(), "divided": divides}
        shift = self.shift("flow_shift")
        plain = {"none": 1.0, "static": shift.get("shift")}.get(shift["kind"], shift)
        return {"kind": "flow", "shift": plain, "train_steps": self.number("num_train_timesteps")}

    def betas(self) -> dict[str, Any]:
        trained, schedule = self.config["trained_betas"], self.config["beta_schedule"]
        known = ("linear", "scaled_linear", "squaredcos_cap_v2")
        if schedule not in known and trained is None:
            raise self.source.refusal("beta_schedule", f"supported: {listed(known)}")
        is_computed = trained is None and schedule != "squaredcos_cap_v2"
        ends = {"start": "beta_start", "end": "beta_end"}
        return (
            {"schedule": schedule if schedule in known else "linear"}
            | {end: self.number(name) if is_computed else self.source.defaults[name] for end, name in ends.items()}
            | {
                "train_steps": self.number("num_train_timesteps"),
                "snr_shift": self.number("snr_shift_scale") if "snr_shift_scale" in self.source.defaults else 1.0,
                "zero_snr": bool(self.config["rescale_betas_zero_snr"]),
            }
            | ({} if trained is None else {"trained": self.trained(trained)})
        )

    def trained(self, betas: Iterable[Any]) -> list[float]:
        values = [float(beta) for beta in torch.as_tensor(betas, dtype=torch.float32)]
        if not all(0 <= value <= 1 for value in values):
            raise self.source.refusal("trained_betas", "expected numbers from 0 to 1")
        return values
