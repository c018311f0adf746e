"""Stage 4's teacher: a model folder as it samples with guidance, and what its student's folder says of sampling."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vexpress.diffusion.guidance import Denoise, guided
from vexpress.diffusion.rolling import roll
from vexpress.diffusion.schedule import DETERMINISTIC, build_scheduler
from vexpress.errors import InputError
from vexpress.models import Conditions
from vexpress.models.attributes import ATTRIBUTES
from vexpress.options import SamplingOptions, load_model_defaults
from vexpress.training.config import TrainConfig
from vexpress.training.initialize import model_folder_of
from vexpress.training.stages import TrainingNetworks
from vexpress.weights import load_networks

WEIGHTS = ("reference_attention_weight", "audio_attention_weight")


def teacher_folder(config: TrainConfig) -> Path:
    """The teacher's model folder."""
    return Path(config.distill.teacher_path or config.init.path)


def teacher_values(config: TrainConfig) -> dict[str, Any]:
    """Sampling options of the teacher that differ from the released ones.

    Raises:
        InputError: the folder's file or the configuration says what is no option, or out of bounds.
    """
    values = load_model_defaults(teacher_folder(config)) | config.distill.teacher_sampling
    try:
        options = SamplingOptions().changed(**values)
    except InputError as error:
        raise InputError(error.problem, f"distill.teacher_sampling.{error.field}", error.value) from error
    if not isinstance(build_scheduler(options.scheduler), DETERMINISTIC):
        raise InputError(
            "makes other results each time: the teacher needs ddim, dpmsolver++, unipc or euler",
            "distill.teacher_sampling.scheduler",
            options.scheduler,
        )
    if options.num_pad_audio_frames != config.data.num_padding_audio_frames:
        problem = f"the teacher has num_pad_audio_frames={options.num_pad_audio_frames}"
        raise InputError(problem, "data.num_padding_audio_frames", config.data.num_padding_audio_frames)
    return values


def teacher_options(config: TrainConfig) -> SamplingOptions:
    """How the teacher samples; raises as `teacher_values`."""
    return SamplingOptions(**teacher_values(config))


def attention_weights(config: TrainConfig) -> dict[str, float]:
    """How strongly reference and audio count, as the teacher is sampled and so the student, too."""
    options = teacher_options(config)
    return {name: getattr(options, name) for name in WEIGHTS}


def student_values(config: TrainConfig) -> dict[str, Any]:
    """Sampling options of the student's model folder: the teacher's, but few steps, no guidance, rolling."""
    return teacher_values(config) | {
        "scheduler": "ddim",
        "num_inference_steps": config.distill.num_steps,
        "guidance_scale": 1.0,
        "guidance_interval": 1,
        "deep_block_interval": 1,
        "shared_noise": teacher_options(config).shared_noise,
        "sampling": "rolling",
        "context_frames": config.data.num_frames,
        "context_overlap": config.distill.context_overlap,
    }


@dataclass(frozen=True)
class Teacher:
    """Frozen networks, and how they sample.

    Attributes:
        networks: in evaluation mode.
        options: number of steps, guidance and attention weights count here.
        enable_zero_snr: of the noise schedule.
    """

    networks: TrainingNetworks
    options: SamplingOptions
    enable_zero_snr: bool = True

    @classmethod
    def load(cls, config: TrainConfig, dtype: torch.dtype, device: torch.device | str) -> "Teacher":
        """Loads the teacher of a configuration.

        Raises:
            InputError: a file is missing or does not fit, or see `teacher_values`.
        """
        field = "distill.teacher_path" if config.distill.teacher_path else "init.path"
        paths = model_folder_of(teacher_folder(config), field)
        networks = TrainingNetworks(**load_networks(paths, dtype, device)).requires_grad_(False).eval()
        return cls(networks, teacher_options(config), config.enable_zero_snr)

    def denoiser(self, conditions: Mapping[str, Tensor]) -> Denoise:
        """Its prediction with guidance, float32; `conditions` are those of `TrainingNetworks.prepare_conditions`."""
        options, unet = self.options, self.networks.denoising_unet
        weights = {name: getattr(options, name) for name in WEIGHTS}
        told = self.networks.prepare_conditions(**conditions, **weights)
        if options.guidance != "all" and self.networks.attribute_projection is not None:  # one of two kinds of tokens
            keep = torch.ones(conditions["audio_windows"].shape[:2], device=unet.device)
            masks = {"audio_keep": keep, "any_keep": keep, "attribute_keep": conditions.get("attribute_keep")}
            none = keep.new_zeros(*keep.shape, len(ATTRIBUTES))
            masks |= {"audio_keep": 0 * keep} if options.guidance == "audio" else {"attribute_keep": none}
            untold = self.networks.prepare_conditions(**{**conditions, **weights, **masks})
            told = replace(told, partial_kv={options.guidance: untold.audio_kv})

        def predict(noisy: Tensor, timestep: Tensor, told: Conditions) -> Tensor:
            return unet(noisy.to(unet.dtype), timestep.to(noisy.device), told).float()

        return guided(predict, lambda windows: told, options.guidance_scale, options.guidance)

    @torch.no_grad()
    def sample(self, noise: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
        """Denoises one window of each clip to the end, as the pipeline does.

        Args:
            noise: (b c f h w) float32.
            conditions: of the batch.

        Returns:
            (b c f h w) float32.
        """
        scheduler = build_scheduler(self.options.scheduler, self.enable_zero_snr)
        scheduler.set_timesteps(self.options.num_inference_steps)
        window = list(range(noise.shape[2]))
        (result,) = roll(self.denoiser(conditions), [window], lambda count: noise, scheduler, context_overlap=0)
        return result
