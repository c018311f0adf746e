"""Guidance: predictions with and without conditions, and what is made of them. Closures that know no network."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

Denoise = Callable[[Tensor, Tensor, list[list[int]]], Tensor]
"""(latents (k c f h w) of k windows, timestep, the windows' frames) -> prediction (k c f h w)."""

Predict = Callable[[Tensor, Tensor, Any], Tensor]
"""(latents (k c f h w), timestep, their conditions) -> prediction (k c f h w)."""

DROPPED = {
    "all": ("kps_features", "reference_kv", "audio_kv"),
    "audio": ("audio",),
    "attributes": ("attributes",),
}
"""Kind of guidance -> the conditions that the prediction guided away from has not.

"all" is as released; "audio" strengthens the mouth and leaves colours as they are; "attributes" strengthens lids, gaze,
brows and smile, and takes a model that knows them.
"""


def guided(
    predict: Predict,
    conditions_of: Callable[[list[list[int]]], Any],
    guidance_scale: float,
    guidance: str = "all",
) -> Denoise:
    """Classifier-free guidance as a denoiser.

    Args:
        predict: the network.
        conditions_of: windows' frames -> their conditions, which have a method `without(*names)`.
        guidance_scale: 1 is the conditional prediction alone, and saves the other.
        guidance: key of `DROPPED`.
    """

    def denoise(latents: Tensor, timestep: Tensor, windows: list[list[int]]) -> Tensor:
        conditions = conditions_of(windows)
        conditional = predict(latents, timestep, conditions)
        if guidance_scale == 1:
            return conditional
        unconditional = predict(latents, timestep, conditions.without(*DROPPED[guidance]))
        return unconditional + guidance_scale * (conditional - unconditional)

    return denoise
