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


def build_scheduler(name: str = "ddim", enable_zero_snr: bool = True) -> SchedulerMixin:
    """Builds one of `SCHEDULERS` on the released noise schedule.

    Args:
        name: of the sampler.
        enable_zero_snr: the last timestep is pure noise; False for networks trained without that.

    Raises:
        ValueError: unknown name.
    """
    if name not in SCHEDULERS:
        raise ValueError(f"scheduler {name!r}: allowed are {', '.join(SCHEDULERS)}")
    return SCHEDULERS[name].from_config(
        DDIMScheduler(**{**SCHEDULER_CONFIG, "rescale_betas_zero_snr": enable_zero_snr}).config
    )


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


def share_noise(noise: Tensor, shared: Tensor, share: float) -> Tensor:
    """Mixes noise of each frame with noise that all frames share; each frame's variance stays 1.

    Frames that start from much the same noise come out alike, which is what holds flicker down.

    Args:
        noise: (... c f h w), unit normal.
        shared: (... c 1 h w), unit normal.
        share: of the variance that is shared, 0 (as released) to 1.
    """
    return share**0.5 * shared + (1 - share) ** 0.5 * noise


def min_snr_weights(alphas_cumprod: Tensor, timesteps: Tensor, gamma: float) -> Tensor:
    """Loss weight of each timestep, in (0, 1]: min(SNR + 1, gamma) / (SNR + 1).

    Args:
        alphas_cumprod: (T,), the noise schedule.
        timesteps: (b,) int64.
        gamma: 1 and up; 5 as released.

    Source: Min-SNR, arXiv 2303.09556, with SNR + 1 in place of SNR for v-prediction, as released.
    """
    inverse = 1 - alphas_cumprod[timesteps]  # SNR + 1 = 1 / (1 - alpha), without an infinity or a division by zero
    return (gamma * inverse).clamp(max=1.0)


def weighted_loss(
    prediction: Tensor,
    target: Tensor,
    timestep_weights: Tensor,
    lip_masks: Tensor,
    lip_loss_weight: float,
    motion_loss_weight: float = 0.0,
) -> Tensor:
    """Mean squared error that counts more on the mouth and less at easy timesteps.

    Args:
        prediction: (b c f h w).
        target: (b c f h w).
        timestep_weights: (b,).
        lip_masks: (b 1 f h w), 1 on the mouth, 0 elsewhere.
        lip_loss_weight: weight on the mouth; elsewhere it is 1.
        motion_loss_weight: of the same error of differences between neighbouring frames; an error that all frames have
            in common, such as a colour, is none there. 0 as released.

    Returns:
        Scalar; means are over all elements, so a higher weight raises the loss, as released.

    Source: paper section 3.3; the motion part is ours.
    """
    error = prediction.float() - target.float()
    weights = (1 + (lip_loss_weight - 1) * lip_masks) * timestep_weights.reshape(-1, 1, 1, 1, 1)
    loss = (error.square() * weights).mean()
    if motion_loss_weight and error.shape[2] > 1:
        loss = loss + motion_loss_weight * (error.diff(dim=2).square() * weights[:, :, 1:]).mean()
    return loss
