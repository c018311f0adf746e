"""Stage 4: a student of few steps and no guidance learns what its teacher makes of noise.

In rolling sampling the first frames of a window are held to those of the window before: `vexpress.diffusion.rolling`.
In part of the samples they are here, too, so that the student learns to go on from them.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from diffusers.training_utils import EMAModel
from torch import Tensor

from vexpress.diffusion.guidance import Carried
from vexpress.diffusion.losses import weighted_loss
from vexpress.diffusion.rolling import fade
from vexpress.diffusion.schedule import build_scheduler
from vexpress.training.config import TrainConfig
from vexpress.training.objectives import Batch, Predict, StepLoss, step_loss
from vexpress.training.randomness import RandomParts, random_parts
from vexpress.training.stages import TrainingNetworks
from vexpress.training.sync_loss import SyncLoss
from vexpress.training.teacher import Teacher, attention_weights, teacher_options

HISTORY_STREAM = 4  # of random numbers


@dataclass(frozen=True)
class StudentParts(RandomParts):
    """The random parts of a batch.

    Attributes:
        has_history: (b,) float32, 1 where the first frames are held to the window before, else 0.
    """

    has_history: Tensor


class Distillation:
    """What the objectives have in common: noise of the teacher's kind, held frames, and how errors are weighed.

    Args:
        config: of the stage.
        device: of the networks.
        sync_loss: of predicted frames, where `sync_loss_weight` is not 0.
    """

    def __init__(self, config: TrainConfig, device: torch.device | str = "cpu", sync_loss: SyncLoss | None = None):
        self.config, self.device, self.sync_loss = config, device, sync_loss
        self.attention_weights = attention_weights(config)
        self._noise_config = replace(config, shared_noise=teacher_options(config).shared_noise)
        self._num_timesteps = build_scheduler().config.num_train_timesteps
        overlap = config.distill.context_overlap
        self._held = 1 - fade(overlap, overlap).to(device)  # (overlap 1 1), of a frame's latents

    def random_parts(self, sample_numbers: list[int], latent_shape: tuple[int, ...], drop: bool) -> StudentParts:
        """Samples the random parts of a batch; noise is as the teacher's sampling has it."""
        parts = random_parts(self._noise_config, sample_numbers, latent_shape, self._num_timesteps, drop=drop)
        chances = [np.random.default_rng((self.config.seed, HISTORY_STREAM, n)).random() for n in sample_numbers]
        has_history = torch.tensor(chances) < self.config.distill.history_rate
        return StudentParts(**vars(parts), has_history=has_history.float())

    def hold(self, latents: Tensor, history: Tensor, parts: StudentParts) -> Tensor:
        """Brings the first frames to `history`, both (b c f h w) of one noise level, as rolling sampling does."""
        num = len(self._held)
        weights = self._held * parts.has_history.reshape(-1, 1, 1, 1, 1)
        return torch.cat([latents[:, :, :num].lerp(history[:, :, :num], weights), latents[:, :, num:]], dim=2)

    def weighted(self, prediction: Tensor, target: Tensor, batch: Batch) -> Tensor:
        """The error of clean latents (b c f h w) that counts more on the mouth, perhaps on the eyes, and on motion."""
        data = self.config.data
        weights = data.lip_loss_weight, self.config.motion_loss_weight, batch.eye_masks, data.eye_loss_weight
        return weighted_loss(prediction, target, prediction.new_ones(len(prediction)), batch.lip_masks, *weights)

    def step_loss(self, loss: Tensor, prediction: Tensor, target: Tensor, timesteps: Tensor, batch: Batch) -> StepLoss:
        """The loss with that of sync, of predictions at timesteps (b,), and the plain error of mouths for the log."""
        sync_error = loss.new_zeros(())
        if self.sync_loss is not None:
            sync_error = self.sync_loss(prediction, timesteps, batch.sync_windows)
        return step_loss(loss, self.config.sync_loss_weight, sync_error, prediction, target, batch)


class Regression(Distillation):
    """Each step of the student's own sampler, from the teacher's noise, predicts the teacher's result, or the truth.

    A step's input is what the steps before it have made, without their gradient: so it is as it will be in sampling,
    and steps are learned in one go. At zero terminal SNR and with few steps this is all that decides a result, since
    the sampler adds to each prediction the same noise again.

    The true clips (objective `truth`) say nothing of the noise, so what is learned from them is their mean given the
    conditions: exact where these say all that is seen, blurred where they do not.

    Source: knowledge distillation of samplers, arXiv 2101.02388; on the student's own inputs, as in arXiv 2404.13686.
    """

    def loss(self, predict: Predict, batch: Batch, parts: StudentParts) -> StepLoss:
        """Computes the mean error of the steps."""
        scheduler = build_scheduler("ddim", self.config.enable_zero_snr)
        scheduler.set_timesteps(self.config.distill.num_steps)
        noise, masks = parts.noise, parts.keep_masks()
        if batch.noise is not None:  # the teacher's, and attributes that were dropped for it are not known here
            noise, masks["attribute_keep"] = batch.noise, None
        latents, losses = noise, []
        for step, timestep in enumerate(scheduler.timesteps.to(latents.device)):
            velocity = predict(
                latents,
                timestep.expand(len(latents)),
                **batch.conditions,
                **masks,
                **self.attention_weights,
            )
            after = scheduler.step(velocity, timestep, latents)
            losses.append(self.weighted(after.pred_original_sample, batch.latents, batch))
            if step + 1 < len(scheduler.timesteps):
                history = scheduler.add_noise(batch.latents, noise, scheduler.timesteps[step + 1])
                latents = self.hold(after.prev_sample.detach(), history, parts)
        made, timesteps = after.pred_original_sample, timestep.expand(len(latents))
        return self.step_loss(torch.stack(losses).mean(), made, batch.latents, timesteps, batch)


class Consistency(Distillation):
    """At each noise level the student predicts what its moving average does one guided step of the teacher later.

    Args:
        config: of the stage.
        device: of the networks.
        teacher: whose steps are the distance between levels.
        networks: the student's.
        ema: its moving average, of the parameters that are trained.
        autocast: context for the moving average's prediction.
        sync_loss: as of `Distillation`.

    Source: latent consistency models, arXiv 2310.04378, without the embedding of the guidance scale, which is fixed.
    """

    def __init__(
        self,
        config: TrainConfig,
        device: torch.device | str,
        teacher: Teacher,
        networks: TrainingNetworks,
        ema: EMAModel,
        autocast: Callable,
        sync_loss: SyncLoss | None = None,
    ):
        super().__init__(config, device, sync_loss)
        self.teacher, self.ema, self.autocast = teacher, ema, autocast
        self.scheduler = build_scheduler("ddim", config.enable_zero_snr)
        self.scheduler.set_timesteps(teacher.options.num_inference_steps, device=device)
        self.average = copy.deepcopy(networks).requires_grad_(False)
        names = [name for name, parameter in networks.named_parameters() if parameter.requires_grad]
        own = dict(self.average.named_parameters())
        self._averaged = [own[name] for name in names]

    def loss(self, predict: Predict, batch: Batch, parts: StudentParts) -> StepLoss:
        """Computes the error at a random level of each sample."""
        scheduler, conditions = self.scheduler, {**batch.conditions, **parts.keep_masks(), **self.attention_weights}
        levels = parts.timesteps * len(scheduler.timesteps) // self._num_timesteps  # 0 is noise
        now = scheduler.timesteps[levels]
        is_last = levels + 1 == len(scheduler.timesteps)
        later = scheduler.timesteps[(levels + 1).clamp(max=len(scheduler.timesteps) - 1)]

        # 1. the student
        noisy = scheduler.add_noise(batch.latents, parts.noise, now)
        prediction = self.clean(predict(noisy, now, **conditions), noisy, now)

        # 2. its moving average, after a step of the teacher, from where the frames before it are held to the true ones
        with torch.no_grad():
            told = {**batch.conditions, "attribute_keep": parts.attribute_keep}
            guided = self.teacher.denoiser(told)(noisy, now, [], [Carried()])
            stepped = self.clean(guided, noisy, now)
            noise = self.noise_of(guided, noisy, now)
            after = scheduler.add_noise(stepped, noise, later)
            after = self.hold(after, scheduler.add_noise(batch.latents, parts.noise, later), parts)
            for parameter, averaged in zip(self._averaged, self.ema.shadow_params, strict=True):
                parameter.data = averaged.data  # again and again: resuming replaces them
            with self.autocast():
                velocity = self.average(after.to(batch.conditions["reference_latents"].dtype), later, **conditions)
            target = self.clean(velocity.float(), after, later)
            target = torch.where(is_last.reshape(-1, 1, 1, 1, 1), stepped, target)
        return self.step_loss(self.weighted(prediction, target, batch), prediction, target, now, batch)

    def clean(self, velocity: Tensor, noisy: Tensor, timesteps: Tensor) -> Tensor:
        """The clean latents that a velocity says, (b c f h w)."""
        return self.scheduler.get_velocity(velocity, noisy, timesteps)

    def noise_of(self, velocity: Tensor, noisy: Tensor, timesteps: Tensor) -> Tensor:
        """The noise that a velocity says, (b c f h w)."""
        return self.scheduler.add_noise(velocity, noisy, timesteps)
