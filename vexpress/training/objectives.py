"""What a training step asks of the network: noise, target and loss. The trainer knows none of them.

An objective with a teacher (`vexpress.training.distillation`) holds the teacher's networks itself, and calls them with
the conditions of the batch.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from vexpress.diffusion.losses import min_snr_weights, weighted_loss
from vexpress.diffusion.schedule import build_scheduler
from vexpress.training.config import TrainConfig
from vexpress.training.randomness import RandomParts, random_parts
from vexpress.training.sync_loss import SyncLoss

Predict = Callable[..., Tensor]
"""The network in training: (noisy latents (b c f h w), timesteps (b,), conditions by name) -> (b c f h w) float32.
The conditions are those of `TrainingNetworks.forward`."""


@dataclass(frozen=True)
class Batch:
    """Clean samples on the device of the network.

    Attributes:
        latents: (b c f h w) float32, the true ones, or what a teacher makes of `noise`.
        conditions: reference_latents (b c h w), kps_images (b 3 f H W) and audio_windows (b f n d), and
            attributes (b f 6), which are read where they are learned.
        lip_masks: (b 1 f h w), 1 on the mouth, 0 elsewhere.
        noise: (b c f h w) float32; None for true latents.
        eye_masks: (b 1 f h w), likewise on eyes and brows.
        sync_windows: of `vexpress.data.sync_windows.sync_window`, where there is a loss on them.
    """

    latents: Tensor
    conditions: Mapping[str, Tensor]
    lip_masks: Tensor
    noise: Tensor | None = None
    eye_masks: Tensor | None = None
    sync_windows: Mapping[str, Tensor] = field(default_factory=dict)


class StepLoss(NamedTuple):
    """Results of a step.

    Attributes:
        loss: scalar, with gradients.
        mouth_error: sum of squared errors on mouths, without weights.
        mouth_size: number of elements in that sum.
        sync_error: mean of `SyncLoss`, without weight; 0 without it.
    """

    loss: Tensor
    mouth_error: Tensor
    mouth_size: Tensor
    sync_error: Tensor


def step_loss(
    loss: Tensor, sync_weight: float, sync_error: Tensor, prediction: Tensor, target: Tensor, batch: Batch
) -> StepLoss:
    """The loss with its part of sync; what is logged has no weights, so that runs with others can be compared."""
    mouth_error = ((prediction.detach() - target).square() * batch.lip_masks).sum()
    mouth_size = batch.lip_masks.sum() * target.shape[1]
    return StepLoss(loss + sync_weight * sync_error, mouth_error, mouth_size, sync_error)


class Objective(Protocol):
    """What is random in a step, and its loss given that: two functions, so that a step can be repeated exactly."""

    def random_parts(self, sample_numbers: list[int], latent_shape: tuple[int, ...], drop: bool) -> RandomParts:
        """Samples noise, timesteps and dropped conditions.

        Args:
            sample_numbers: the dataset's number of each sample, all that randomness may depend on beside the seed.
            latent_shape: (c f h w) of one sample.
            drop: False keeps all conditions, for validation.
        """

    def loss(self, predict: Predict, batch: Batch, parts: RandomParts) -> StepLoss:
        """Computes the loss of a batch.

        Args:
            predict: the network in training.
            batch: clean samples.
            parts: of `random_parts`, on the same device.
        """


class Denoising:
    """Velocity prediction at a random timestep, weighted by timestep (Min-SNR), mouth and motion.

    Args:
        config: noise schedule, rates and weights.
        device: of the networks.
        sync_loss: of predicted frames, where `sync_loss_weight` is not 0.

    Source: paper section 3.3; v-prediction, arXiv 2202.00512.
    """

    def __init__(self, config: TrainConfig, device: torch.device | str = "cpu", sync_loss: SyncLoss | None = None):
        self.config, self.sync_loss = config, sync_loss
        self.scheduler = build_scheduler("ddim", config.enable_zero_snr)
        self.alphas_cumprod = self.scheduler.alphas_cumprod.to(device)

    def random_parts(self, sample_numbers: list[int], latent_shape: tuple[int, ...], drop: bool) -> RandomParts:
        """Samples the random parts of a batch, see `vexpress.training.randomness`."""
        return random_parts(self.config, sample_numbers, latent_shape, len(self.alphas_cumprod), drop=drop)

    def loss(self, predict: Predict, batch: Batch, parts: RandomParts) -> StepLoss:
        """Computes the weighted squared error of the predicted velocity."""
        noisy = self.scheduler.add_noise(batch.latents, parts.noise, parts.timesteps)
        target = self.scheduler.get_velocity(batch.latents, parts.noise, parts.timesteps)
        prediction = predict(noisy, parts.timesteps, **batch.conditions, **parts.keep_masks())
        if self.config.snr_gamma is None:
            weights = torch.ones_like(parts.timesteps, dtype=torch.float32)
        else:
            weights = min_snr_weights(self.alphas_cumprod, parts.timesteps, self.config.snr_gamma)
        data = self.config.data
        loss_weights = data.lip_loss_weight, self.config.motion_loss_weight, batch.eye_masks, data.eye_loss_weight
        loss = weighted_loss(prediction, target, weights, batch.lip_masks, *loss_weights)
        sync_error = loss.new_zeros(())
        if self.sync_loss is not None:
            clean = self.scheduler.get_velocity(prediction, noisy, parts.timesteps)  # which is the inverse, too
            sync_error = self.sync_loss(clean, parts.timesteps, batch.sync_windows)
        return step_loss(loss, self.config.sync_loss_weight, sync_error, prediction, target, batch)
