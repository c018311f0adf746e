"""The noise schedule, and the samplers on it."""

from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    SchedulerMixin,
    UniPCMultistepScheduler,
)
from torch import Tensor

from vexpress.errors import InputError

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

SCHEDULER_CLASSES = {
    "ddim": DDIMScheduler,
    "dpmsolver++": DPMSolverMultistepScheduler,
    "unipc": UniPCMultistepScheduler,
    "lcm": LCMScheduler,
    "euler": EulerDiscreteScheduler,
}
"""What stands for the names in `vexpress.options.SCHEDULERS`."""

DETERMINISTIC = (DDIMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler, EulerDiscreteScheduler)


def build_scheduler(name: str = "ddim", enable_zero_snr: bool = True) -> SchedulerMixin:
    """Builds a sampler on the released noise schedule.

    Args:
        name: key of `SCHEDULER_CLASSES`.
        enable_zero_snr: the last timestep is pure noise; False for networks trained without that.

    Raises:
        InputError: unknown name.
    """
    if name not in SCHEDULER_CLASSES:
        raise InputError(f"must be one of {', '.join(SCHEDULER_CLASSES)}", "scheduler", repr(name))
    return SCHEDULER_CLASSES[name].from_config(
        DDIMScheduler(**{**SCHEDULER_CONFIG, "rescale_betas_zero_snr": enable_zero_snr}).config
    )


def steps_at_random(scheduler: SchedulerMixin) -> bool:
    """Whether a step of the scheduler may add noise. If not, frames can take it apart from each other."""
    is_stochastic_solver = str(scheduler.config.get("algorithm_type", "")).startswith("sde")
    return is_stochastic_solver or not isinstance(scheduler, DETERMINISTIC)


def share_noise(noise: Tensor, shared: Tensor, share: float) -> Tensor:
    """Mixes noise of each frame with noise that all frames share; each frame's variance stays 1.

    Frames that start from much the same noise come out alike, which is what holds flicker down.

    Args:
        noise: (... c f h w), unit normal.
        shared: (... c 1 h w), unit normal.
        share: of the variance that is shared, 0 (as released) to 1.
    """
    return share**0.5 * shared + (1 - share) ** 0.5 * noise
