"""The transformer that is timed in PyTorch is FLUX.1's, and a machine without a GPU is told so."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel

from torch_steps import GUIDANCE, Flux, positions_of


def test_the_transformer_is_that_of_diffusers() -> None:
    torch.manual_seed(0)
    model = FluxTransformer2DModel(
        num_layers=2, num_single_layers=3, num_attention_heads=2, joint_attention_dim=24, guidance_embeds=True
    )
    latents, prompt, pooled = torch.randn(1, 16, 64), torch.randn(1, 5, 24), torch.randn(1, 768)
    positions, timestep = positions_of(8, 5, "cpu"), torch.tensor([0.5])
    with torch.inference_mode():
        theirs = model(
            hidden_states=latents,
            encoder_hidden_states=prompt,
            pooled_projections=pooled,
            timestep=timestep,
            guidance=torch.tensor([GUIDANCE]),
            img_ids=positions[5:],
            txt_ids=positions[:5],
            return_dict=False,
        )[0]
        ours = Flux(model.state_dict(), 2, 2, 3)(latents, prompt, pooled, positions, timestep)
    assert ((ours - theirs).abs().sum() / theirs.abs().sum()).item() < 1e-5


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_machine_without_a_gpu_is_left_out(tmp_path: Path) -> None:
    script = Path(__file__).with_name("torch_steps.py")
    child = subprocess.run([sys.executable, script, tmp_path], capture_output=True, text=True, check=False)
    assert child.returncode == 1
    assert "sees no CUDA device" in child.stderr
    assert child.stderr.startswith("left out: ")
