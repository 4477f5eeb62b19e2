"""The recorder on a tiny random transformer: every limit of cache-dit leaves its pattern."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel

from generate import Generation, Subject, generate
from observe import CacheOptions
from traces import NO_MARGIN, record, rel_l1, replay_with_noise, without_cache

STEPS = 8
ALWAYS = {
    "Fn_compute_blocks": 1,
    "Bn_compute_blocks": 1,
    "max_warmup_steps": 2,
    "residual_diff_threshold": 0.99,
}


@pytest.fixture(scope="module")
def subject() -> Subject:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    transformer: Any = FluxTransformer2DModel(
        patch_size=1,
        in_channels=12,
        num_layers=2,
        num_single_layers=3,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        guidance_embeds=False,
        axes_dims_rope=(4, 6, 6),
    ).eval()
    text = {"encoder_hidden_states": torch.randn(2, 1, 4, 16), "pooled_projections": torch.randn(2, 1, 16)}
    return Subject(
        transformer=transformer,
        latents=torch.randn(1, 9, 12),
        sigmas=torch.linspace(1, 0, STEPS + 1),
        shared={"img_ids": torch.zeros(9, 3), "txt_ids": torch.zeros(4, 3)},
        cond={name: values[0] for name, values in text.items()},
        uncond={name: values[1] for name, values in text.items()},
    )


@pytest.fixture(scope="module")
def uncached(subject: Subject) -> Generation:
    return generate(subject, subject.transformer)


def test_without_cache_counts_every_block(subject: Subject, uncached: Generation) -> None:
    trace, generation = without_cache(subject, None)
    assert trace["branches"]["cond"]["blocks_run"] == [5] * STEPS
    assert torch.equal(generation.latents, uncached.latents)


@pytest.mark.parametrize(
    ("given", "decisions", "last_reason"),
    [
        ({}, "CCSSSSSS", "below"),
        ({"max_continuous_cached_steps": 1}, "CCSCSCSC", "max_continuous"),
        ({"max_cached_steps": 3}, "CCSSSCCC", "max_cached"),
        ({"max_warmup_steps": 6, "warmup_interval": 3}, "CSSCSSSS", "below"),
        ({"residual_diff_threshold": 0.0}, "CCCCCCCC", "threshold_off"),
        (
            {"steps_computation_mask": [1, 0] * 4, "steps_computation_policy": "static"},
            "CSCSCSCS",
            "mask_static",
        ),
    ],
)
def test_limits(
    subject: Subject, uncached: Generation, given: dict[str, Any], decisions: str, last_reason: str
) -> None:
    trace, _ = record(subject, CacheOptions("DBCache", ALWAYS | given), uncached)
    branch = trace["branches"]["cond"]
    assert branch["decisions"] == decisions
    assert branch["reasons"][-1] == last_reason
    assert branch["blocks_run"] == [5 if letter == "C" else 2 for letter in decisions]
    assert trace["stats"]["accumulated_cached_steps"] == decisions.count("S")


def test_no_hits_leave_the_latents_alone(subject: Subject, uncached: Generation) -> None:
    trace, generation = record(subject, CacheOptions("DBCache", ALWAYS | {"max_cached_steps": 0}), uncached)
    assert rel_l1(generation.latents, uncached.latents) < 1e-6
    assert trace["margin"] == NO_MARGIN


def test_branches_of_guidance_are_kept_apart(subject: Subject) -> None:
    _, uncached = without_cache(subject, 2.0)
    trace, _ = record(subject, CacheOptions("DBCache", ALWAYS, cfg_scale=2.0), uncached)
    assert list(trace["branches"]) == ["cond", "uncond"]
    assert trace["branches"]["cond"]["diffs"] != trace["branches"]["uncond"]["diffs"]


def test_pruning_is_recorded_by_block(subject: Subject, uncached: Generation) -> None:
    trace, _ = record(subject, CacheOptions("DBPrune", ALWAYS), uncached)
    branch = trace["branches"]["cond"]
    assert branch["decisions"] == "CCPPPPPP"
    assert branch["pruned_blocks"][-1] == [1, 2, 3]
    assert [diff[0] for diff in branch["diffs"][-1]] == [1, 2, 3]


def test_replay_with_noise(subject: Subject, uncached: Generation) -> None:
    options = CacheOptions("DBCache", ALWAYS)
    trace, generation = record(subject, options, uncached)
    replay = replay_with_noise(subject, options, trace, generation, 1e-5)
    assert replay["same_decisions"]
    assert 0 < replay["latent_rel_l1"] < 1e-3
