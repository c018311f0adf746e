"""What is random in a training step, per sample: noise, timestep, and which conditions are dropped.

Each sample has its own generator, seeded by the run's seed and the sample's number. A step therefore does not depend on
how samples are distributed over micro-batches and processes, and a resumed run gets the values of an uninterrupted one.
"""

from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from vexpress.diffusion.schedule import share_noise
from vexpress.models.attributes import ATTRIBUTES
from vexpress.training.config import TrainConfig


@dataclass(frozen=True)
class RandomParts:
    """The random parts of a batch.

    Attributes:
        noise: (b c f h w) float32.
        timesteps: (b,) int64.
        reference_keep: (b f) float32, 0 where the reference is dropped, 1 elsewhere. Likewise the others.
        kps_keep: (b f).
        audio_keep: (b f); as released with all else alone, or by itself at `data.audio_drop_rate`.
        attribute_keep: (b f 6), of attributes.
        any_keep: (b f), 0 where all conditions together are dropped.
    """

    noise: Tensor
    timesteps: Tensor
    reference_keep: Tensor
    kps_keep: Tensor
    audio_keep: Tensor
    attribute_keep: Tensor
    any_keep: Tensor

    def to(self, device: torch.device) -> "RandomParts":
        """The same on another device."""
        return type(self)(*(getattr(self, entry.name).to(device) for entry in fields(self)))

    def keep_masks(self) -> dict[str, Tensor]:
        """The conditions' masks, as arguments of `TrainingNetworks.forward`."""
        return {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name.endswith("_keep")}


def random_parts(
    config: TrainConfig, sample_numbers: list[int], latent_shape: tuple[int, ...], num_timesteps: int, drop: bool = True
) -> RandomParts:
    """Samples the random parts of a batch.

    Args:
        config: rates and noise offset.
        sample_numbers: the dataset's number of each sample of the batch.
        latent_shape: (c f h w) of one sample.
        num_timesteps: of the noise schedule.
        drop: False keeps all conditions, for validation.

    Source: conditional dropout, paper section 3.3; all conditions together, arXiv 2207.12598.
    """
    samples = [_random_sample(config, number, latent_shape, num_timesteps, drop) for number in sample_numbers]
    return RandomParts(*(torch.stack(parts) for parts in zip(*samples)))


def _random_sample(
    config: TrainConfig, number: int, latent_shape: tuple[int, ...], num_timesteps: int, drop: bool
) -> tuple[Tensor, ...]:
    seed = int(np.random.SeedSequence([config.seed, number]).generate_state(1, np.uint64)[0] >> 1)
    generator = torch.Generator().manual_seed(seed)
    channels, num_frames = latent_shape[:2]
    noise = torch.randn(latent_shape, generator=generator)
    offset = config.noise_offset * torch.randn(channels, 1, 1, 1, generator=generator)
    timestep = torch.randint(num_timesteps, (), generator=generator)
    keep_any = torch.rand((), generator=generator) >= config.uncond_ratio

    def keep(rate: float) -> Tensor:
        size = num_frames if config.data.drop_granularity == "frame" else 1
        return (torch.rand(size, generator=generator) >= rate).expand(num_frames)

    masks = [keep(config.data.reference_drop_rate), keep(config.data.kps_drop_rate)]
    # Options that the release does not have come last, so that the values above are the same with and without them.
    masks.append((torch.rand((), generator=generator) >= config.data.audio_drop_rate).expand(num_frames))
    if config.shared_noise:
        shared = torch.randn(channels, 1, *latent_shape[2:], generator=generator)
        noise = share_noise(noise, shared, config.shared_noise)
    # All attributes of a frame are dropped, and each over a whole sample, which is how inference leaves some out.
    rate = config.data.attribute_drop_rate
    each = torch.rand(len(ATTRIBUTES), generator=generator) >= rate
    masks += [keep(rate)[:, None] & each, torch.ones(num_frames, dtype=torch.bool)]
    keep_all = keep_any if drop else torch.ones_like(keep_any)
    return noise + offset, timestep, *(((mask if drop else torch.ones_like(mask)) & keep_all).float() for mask in masks)
