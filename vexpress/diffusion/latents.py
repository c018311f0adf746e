"""The scale of latents: between the image autoencoder's and those that diffusion works on."""

import torch
from diffusers import (
    AutoencoderKL,
)
from torch import Tensor


def vae_downsampling(vae: AutoencoderKL) -> int:
    """Pixels per latent, along each side."""
    return 2 ** (len(vae.config.block_out_channels) - 1)


def _latent_statistics(vae: AutoencoderKL, like: Tensor) -> tuple[Tensor | float, Tensor | float]:
    """(shift, factor) that bring the VAE's latents to unit scale: per channel where its configuration says so."""
    if vae.config.latents_std is None:
        return vae.config.shift_factor or 0.0, vae.config.scaling_factor
    shape = (1, -1, 1, 1)
    mean = torch.as_tensor(vae.config.latents_mean, dtype=like.dtype, device=like.device).reshape(shape)
    std = torch.as_tensor(vae.config.latents_std, dtype=like.dtype, device=like.device).reshape(shape)
    return mean, 1 / std


def scale_latents(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """From the VAE's latents (b c h w) to those that diffusion works on."""
    shift, factor = _latent_statistics(vae, latents)
    return (latents - shift) * factor


def unscale_latents(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """The inverse of `scale_latents`."""
    shift, factor = _latent_statistics(vae, latents)
    return latents / factor + shift
