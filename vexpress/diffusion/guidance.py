"""Guidance: predictions with and without conditions, and what is made of them. Closures that know no network.

What changes little from step to step need not be computed at each: the direction of guidance, and the network's deep
blocks. The sampler holds what a window's steps leave for later ones, and hands it over with each prediction.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor


@dataclass
class Carried:
    """What the steps of one window leave for later ones: made by the sampler, one per window, filled by `guided`.

    Attributes:
        step: number of the step that is made now.
        direction: (c f h w), that of guidance.
        deep: which prediction -> the step at which its deep blocks were computed, and their output (f d h w).
    """

    step: int = 0
    direction: Tensor | None = None
    deep: dict[str, tuple[int, Tensor]] = field(default_factory=dict)


Denoise = Callable[[Tensor, Tensor, list[list[int]], list[Carried]], Tensor]
"""(latents (k c f h w) of k windows, timestep, the windows' frames, what each carries) -> prediction (k c f h w)."""


class Predict(Protocol):
    """The network."""

    def __call__(
        self, latents: Tensor, timestep: Tensor, conditions: Any, deep: Tensor | None = None, returns_deep: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Latents (k c f h w) -> prediction (k c f h w).

        Args:
            latents, timestep, conditions: of k windows.
            deep: output ((k f) d h w) of the deep blocks, which then are not run.
            returns_deep: that output is returned, too.
        """


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
    *,
    guidance_interval: int = 1,
    deep_block_interval: int = 1,
) -> Denoise:
    """Classifier-free guidance as a denoiser.

    Args:
        predict: the network.
        conditions_of: windows' frames -> their conditions, which have a method `without(*names)`.
        guidance_scale: 1 is the conditional prediction alone, and saves the other.
        guidance: key of `DROPPED`.
        guidance_interval: steps for which the direction from the other prediction to the conditional one serves; 1
            computes it at each, as released.
        deep_block_interval: likewise, of what the network's deep blocks give.

    Source: deep blocks as in DeepCache, arXiv 2312.00858; directions as in adaptive guidance, arXiv 2312.12487.
    """

    def run(name: str, inputs: tuple[Tensor, Tensor, Any], carried: list[Carried]) -> Tensor:
        if deep_block_interval <= (1 if name == "conditional" else guidance_interval):  # none is reused
            return predict(*inputs)
        known = [window.deep.get(name) for window in carried]  # windows that are predicted together are as far
        if known[0] and carried[0].step - known[0][0] < deep_block_interval:
            return predict(*inputs, deep=torch.cat([deep for _, deep in known]))
        prediction, deep = predict(*inputs, returns_deep=True)
        for window, part in zip(carried, deep.chunk(len(carried))):
            window.deep[name] = (window.step, part)
        return prediction

    def denoise(latents: Tensor, timestep: Tensor, windows: list[list[int]], carried: list[Carried]) -> Tensor:
        conditions = conditions_of(windows)
        conditional = run("conditional", (latents, timestep, conditions), carried)
        if guidance_scale == 1:
            return conditional
        if carried[0].step % guidance_interval:
            direction = torch.stack([window.direction for window in carried])
            return conditional + (guidance_scale - 1) * direction
        dropped = conditions.without(*DROPPED[guidance])
        unconditional = run("unconditional", (latents, timestep, dropped), carried)
        direction = conditional - unconditional
        if guidance_interval > 1:
            for window, part in zip(carried, direction):
                window.direction = part
        return unconditional + guidance_scale * direction

    return denoise
