"""Latents: of pixels, and their scale, between the image autoencoder's and that which diffusion works on."""

import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderTiny,
)
from torch import Tensor

Autoencoder = AutoencoderKL | AutoencoderDC | AutoencoderTiny
"""Image autoencoders. Those of deep compression (DC) and tiny ones have no posterior. A tiny one's decoder squeezes
latents into -3..3; that for Stable Diffusion, TAESD, has them at diffusion's scale as they are, which its
`scaling_factor` of 1 says."""


def vae_downsampling(vae: Autoencoder) -> int:
    """Pixels per latent, along each side."""
    is_kl = isinstance(vae, AutoencoderKL)
    return 2 ** (len(vae.config.block_out_channels if is_kl else vae.config.encoder_block_out_channels) - 1)


def compute_latents(vae: Autoencoder, pixels: Tensor) -> Tensor:
    """Pixels (b 3 H W) in -1..1 -> the VAE's latents (b c h w): the posterior's mean, where there is one."""
    encoded = vae.encode(pixels)
    if isinstance(vae, AutoencoderKL):
        return encoded.latent_dist.mean
    return encoded.latent if isinstance(vae, AutoencoderDC) else encoded.latents


def _latent_statistics(vae: Autoencoder, like: Tensor) -> tuple[Tensor | float, Tensor | float]:
    """(shift, factor) that bring the VAE's latents to unit scale: per channel where its configuration says so."""
    if getattr(vae.config, "latents_std", None) is None:
        return vae.config.get("shift_factor") or 0.0, vae.config.scaling_factor
    shape = (1, -1, 1, 1)
    mean = torch.as_tensor(vae.config.latents_mean, dtype=like.dtype, device=like.device).reshape(shape)
    std = torch.as_tensor(vae.config.latents_std, dtype=like.dtype, device=like.device).reshape(shape)
    return mean, 1 / std


def scale_latents(vae: Autoencoder, latents: Tensor) -> Tensor:
    """From the VAE's latents (b c h w) to those that diffusion works on."""
    shift, factor = _latent_statistics(vae, latents)
    return (latents - shift) * factor


def unscale_latents(vae: Autoencoder, latents: Tensor) -> Tensor:
    """The inverse of `scale_latents`."""
    shift, factor = _latent_statistics(vae, latents)
    return latents / factor + shift
