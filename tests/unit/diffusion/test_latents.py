"""Scale of latents."""

import pytest
import torch
from diffusers import AutoencoderKL

from tests import tiny
from vexpress.diffusion.latents import compute_latents, scale_latents, unscale_latents, vae_downsampling


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


@pytest.mark.parametrize(
    "vae", [tiny.vae(), tiny.autoencoder_dc(), tiny.autoencoder_tiny(), tiny.autoencoder_tiny(num_stages=5)]
)
def test_downsampling_comes_from_the_configuration(vae):
    latents = compute_latents(vae, torch.zeros(2, 3, 32, 64))
    factor = vae_downsampling(vae)
    assert latents.shape == (2, 4, 32 // factor, 64 // factor)
    assert vae.decode(latents).sample.shape == (2, 3, 32, 64)


def test_a_tiny_autoencoder_has_latents_of_unit_scale_unless_its_configuration_says_otherwise():
    latents = torch.randn(2, 4, 3, 3)
    torch.testing.assert_close(scale_latents(tiny.autoencoder_tiny(), latents), latents)
    vae = tiny.autoencoder_tiny(latents_mean=(1.0, 2.0, 3.0, 4.0), latents_std=(0.5, 1.0, 2.0, 4.0))
    torch.testing.assert_close(scale_latents(vae, latents)[:, 2], (latents[:, 2] - 3) / 2)
