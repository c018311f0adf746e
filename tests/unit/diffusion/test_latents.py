"""Scale of latents."""

import pytest
import torch
from diffusers import AutoencoderKL

from tests import tiny
from vexpress.diffusion.latents import scale_latents, unscale_latents, vae_downsampling


@pytest.mark.parametrize(
    "statistics",
    [{"scaling_factor": 0.25}, {"latents_mean": (1.0, 2.0, 3.0, 4.0), "latents_std": (0.5, 1.0, 2.0, 4.0)}],
)
def test_scaling_comes_from_the_configuration_and_inverts(statistics):
    vae = AutoencoderKL(**{**tiny.CASES["vae_config"], **statistics})
    latents = torch.randn(2, 4, 3, 3)
    scaled = scale_latents(vae, latents)
    torch.testing.assert_close(unscale_latents(vae, scaled), latents)
    if "scaling_factor" in statistics:
        torch.testing.assert_close(scaled, latents * 0.25)
    else:
        torch.testing.assert_close(scaled[:, 2], (latents[:, 2] - 3) / 2)


def test_downsampling_comes_from_the_configuration():
    assert vae_downsampling(tiny.vae()) == 8
