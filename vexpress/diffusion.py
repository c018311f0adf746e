"""The diffusion process: noise schedule, samplers on it, and the scale of latents."""

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    SchedulerMixin,
    UniPCMultistepScheduler,
)
from torch import Tensor

SCHEDULER_CONFIG = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "steps_offset": 1,
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
}
"""The released noise schedule: Stable Diffusion's, rescaled to zero terminal SNR (arXiv 2305.08891)."""

SCHEDULERS = {
    "ddim": DDIMScheduler,
    "dpmsolver++": DPMSolverMultistepScheduler,
    "unipc": UniPCMultistepScheduler,
    "lcm": LCMScheduler,
    "euler": EulerDiscreteScheduler,
}


def build_scheduler(name: str = "ddim") -> SchedulerMixin:
    """Builds one of `SCHEDULERS` on the released noise schedule.

    Raises:
        ValueError: unknown name.
    """
    if name not in SCHEDULERS:
        raise ValueError(f"scheduler {name!r}: allowed are {', '.join(SCHEDULERS)}")
    return SCHEDULERS[name].from_config(DDIMScheduler(**SCHEDULER_CONFIG).config)


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
