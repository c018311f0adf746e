"""Guidance: predictions with and without conditions, and what is made of them."""

from collections.abc import Callable

from torch import Tensor

Denoise = Callable[[Tensor, Tensor, list[list[int]]], Tensor]
"""(latents (k c f h w) of k windows, timestep, the windows' frames) -> prediction (k c f h w)."""


def guided(predict: Callable[..., Tensor], guidance_scale: float) -> Denoise:
    """Classifier-free guidance as a denoiser.

    Args:
        predict: a `Denoise` with a keyword `conditional`; False predicts with all conditions dropped.
        guidance_scale: 1 is the conditional prediction alone, and saves the other.
    """

    def denoise(latents: Tensor, timestep: Tensor, windows: list[list[int]]) -> Tensor:
        conditional = predict(latents, timestep, windows, conditional=True)
        if guidance_scale == 1:
            return conditional
        unconditional = predict(latents, timestep, windows, conditional=False)
        return unconditional + guidance_scale * (conditional - unconditional)

    return denoise
