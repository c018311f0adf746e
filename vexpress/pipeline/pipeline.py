"""The pipeline: checks what it is given, makes conditions of it, denoises, decodes."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.utils import BaseOutput
from PIL import Image
from torch import Tensor

from vexpress.audio_features import num_audio_steps
from vexpress.diffusion.guidance import Denoise, guided
from vexpress.diffusion.sampling import OnStep, group_rank, sample
from vexpress.diffusion.schedule import share_noise
from vexpress.diffusion.windows import context_windows
from vexpress.errors import InputError, first_line
from vexpress.models import Conditions
from vexpress.options import SamplingOptions
from vexpress.pipeline import inputs
from vexpress.pipeline.conditioning import KpsFeatures, WindowConditions
from vexpress.pipeline.parts import PipelineParts


@dataclass
class VExpressPipelineOutput(BaseOutput):
    """What the pipeline returns.

    Attributes:
        frames: by output type: list of PIL images; array (f H W 3) float32 in 0..1; tensor (f 3 H W) in 0..1;
            latents (1 c f h w); iterator of uint8 arrays (H W 3), decoded as they are asked for.
    """

    frames: list[Image.Image] | np.ndarray | Tensor | Iterator[np.ndarray]


class VExpressPipeline(PipelineParts):
    """Audio-driven portrait video.

    Source: paper section 3.
    """

    _interrupt = False
    _num_timesteps = 0

    @property
    def interrupt(self) -> bool:
        """Set `_interrupt` in a callback to end denoising after that step; what there is then is decoded."""
        return self._interrupt

    @property
    def num_timesteps(self) -> int:
        """Denoising steps of the present call."""
        return self._num_timesteps

    @torch.no_grad()
    def __call__(
        self,
        reference_image: Image.Image | np.ndarray,
        audio_waveform: Tensor | np.ndarray | Sequence[float],
        kps_sequence: Tensor | np.ndarray | Sequence,
        *,
        options: SamplingOptions | None = None,
        height: int | None = None,
        width: int | None = None,
        latents: Tensor | None = None,
        generator: torch.Generator | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[..., dict[str, Tensor] | None] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = inputs.TENSOR_INPUTS,
        device: torch.device | str | None = None,
        **sampling: Any,
    ) -> VExpressPipelineOutput | tuple:
        """Makes a video with as many frames as `kps_sequence`, lasting as long as the audio.

        Args:
            reference_image: portrait, also as an array (H W 3) uint8; resized to (height, width).
            audio_waveform: (n,) float, mono, at the audio processor's sampling rate (16 kHz).
            kps_sequence: (f 3 2), px of (height, width): left eye, right eye, nose.
            options: how to sample; None: as released. See `vexpress.options`.
            height: px, a multiple of the VAE's downsampling (8); None takes the image's.
            width: px, likewise.
            latents: initial noise (1 c f h w), in place of that of `generator` and `shared_noise`.
            generator: of all noise; None: one with the seed of `options`, on the CPU, so that every device has the same
                noise.
            output_type: one of `OUTPUT_TYPES`.
            return_dict: False returns a tuple.
            callback_on_step_end: called after each step with the pipeline, the step, the timestep and a dictionary of
                `callback_on_step_end_tensor_inputs`; may return a dictionary with other latents.
            callback_on_step_end_tensor_inputs: what the callback gets: "latents", or nothing.
            device: where to work; the pipeline is moved there. None is where it is.
            sampling: values in place of those of `options`, by name: `num_inference_steps=10`.

        Raises:
            InputError: an argument is out of range, or inputs do not fit each other.
        """
        # 1. check what was given
        options = inputs.sampling_options(options, sampling)
        inputs.check_choice("output_type", output_type, inputs.OUTPUT_TYPES)
        inputs.check_generator(generator)
        if isinstance(callback_on_step_end, PipelineCallback | MultiPipelineCallbacks):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs
        inputs.check_callback(callback_on_step_end, callback_on_step_end_tensor_inputs)
        image = inputs.prepare_image(reference_image, height, width, self.downsampling)
        waveform = inputs.prepare_waveform(audio_waveform)
        kps = inputs.prepare_kps(kps_sequence)
        self._check_limits(options, len(kps))
        shape = self._latent_shape(len(kps), image)
        if latents is not None:
            latents = inputs.prepare_latents(latents, shape)
        self._set_timesteps(options.num_inference_steps)
        self._move(device)
        self._interrupt = False

        # 2. inputs to tokens and features, each once
        audio_tokens = self.encode_audio(waveform, len(kps), options.num_pad_audio_frames)
        conditions = self._window_conditions(image, options)

        # 3. noise
        generator = generator or torch.Generator("cpu").manual_seed(options.seed)
        if latents is None:
            latents = torch.randn(shape, generator=generator, device=generator.device)
            if options.shared_noise:
                shared = torch.randn(self._latent_shape(1, image), generator=generator, device=generator.device)
                latents = share_noise(latents, shared, options.shared_noise)
        latents = latents.cpu() * self.scheduler.init_noise_sigma

        # 4. denoise
        on_step = callback_on_step_end and inputs.replacement_of(
            callback_on_step_end, self, callback_on_step_end_tensor_inputs
        )
        denoise = self._denoiser(conditions.of_clip(kps, audio_tokens), options)
        latents = self._sample_joint(denoise, latents, options, generator, on_step)

        # 5. decode
        if output_type == "latent":
            self.maybe_free_model_hooks()
            frames = latents
        else:
            decoded = self.decode(latents, options.median_filter, options.denoise_threshold)
            frames = _collect(self._with_progress(decoded, "decoding frames", len(kps)), output_type)
        return VExpressPipelineOutput(frames=frames) if return_dict else (frames,)

    def _with_progress(self, frames: Iterator[Tensor], what: str, total: int | None) -> Iterator[Tensor]:
        with self.progress_bar(total=total) as bar:
            bar.set_description(what)
            for frame in frames:
                bar.update()
                yield frame

    def _check_limits(self, options: SamplingOptions, num_frames: int) -> None:
        """Raises an InputError for options that are beyond what this model's networks take."""
        num_steps, most_steps = num_audio_steps(options.num_pad_audio_frames), self.audio_projection.config.max_seq_len
        if num_steps > most_steps:
            problem = (
                f"makes {num_steps} audio steps around a frame, and this model's audio projection takes {most_steps}"
            )
            raise InputError(problem, "num_pad_audio_frames", options.num_pad_audio_frames)
        most_frames = self.denoising_unet.config.motion_max_seq_length
        if min(num_frames, options.context_frames) > most_frames:
            problem = f"this model's motion modules take windows of up to {most_frames} frames"
            raise InputError(problem, "context_frames", options.context_frames)

    def _set_timesteps(self, num_inference_steps: int) -> None:
        try:
            self.scheduler.set_timesteps(num_inference_steps)
        except ValueError as error:  # LCM, say, takes at most 50
            problem = f"does not go with this scheduler: {first_line(error)}"
            raise InputError(problem, "num_inference_steps", num_inference_steps) from error
        self._num_timesteps = len(self.scheduler.timesteps)

    def _latent_shape(self, num_frames: int, image: Image.Image) -> tuple[int, ...]:
        sides = (image.height // self.downsampling, image.width // self.downsampling)
        return 1, self.denoising_unet.config.in_channels, num_frames, *sides

    def _window_conditions(self, image: Image.Image, options: SamplingOptions) -> WindowConditions:
        """Encodes the portrait; keypoints and audio follow window by window."""
        constant = self.denoising_unet.prepare_conditions(
            self.encode_reference(image),
            reference_attention_weight=options.reference_attention_weight,
            audio_attention_weight=options.audio_attention_weight,
        )
        features = KpsFeatures(lambda kps: self.encode_kps(kps, image.height, image.width)[0].transpose(0, 1))
        return WindowConditions(self.denoising_unet, constant, features)

    def _denoiser(self, conditions_of: Callable[[list[list[int]]], Conditions], options: SamplingOptions) -> Denoise:
        """The denoising UNet with guidance."""

        def predict(noisy: Tensor, timestep: Tensor, conditions: Conditions) -> Tensor:
            device = self._execution_device
            return self.denoising_unet(
                noisy.to(device, self.denoising_unet.dtype), timestep.to(device), conditions=conditions
            )

        return guided(predict, conditions_of, options.guidance_scale, options.guidance)

    def _sample_joint(
        self,
        denoise: Denoise,
        latents: Tensor,
        options: SamplingOptions,
        generator: torch.Generator,
        on_step: OnStep | None,
    ) -> Tensor:
        """All windows step by step, with a progress bar."""
        windows = context_windows(latents.shape[2], options.context_frames, options.context_overlap)
        rank, num_processes = group_rank()
        num_own = len(range(rank, len(windows), num_processes))
        with self.progress_bar(total=self.num_timesteps * num_own) as bar:
            bar.set_description("denoising windows")

            def watch(step: int, timestep: Tensor, current: Tensor) -> Tensor | None:
                bar.set_postfix_str(f"step {step + 1} of {self.num_timesteps}")
                return on_step(step, timestep, current) if on_step else None

            return sample(
                denoise,
                latents,
                self.scheduler,
                windows,
                windows_per_batch=options.windows_per_batch,
                generator=generator,
                on_window=bar.update,
                on_step=watch,
                interrupted=lambda: self.interrupt,
            )


def _collect(frames: Iterator[Tensor], output_type: str) -> list[Image.Image] | np.ndarray | Tensor | Iterator:
    """Frames (3 H W) in 0..1 as one of `OUTPUT_TYPES`, but latents."""
    if output_type == "pt":
        return torch.stack(list(frames))
    if output_type == "np":
        return np.stack([frame.permute(1, 2, 0).numpy() for frame in frames])
    pixels = (frame.mul(255).round().byte().permute(1, 2, 0).numpy() for frame in frames)
    return pixels if output_type == "generator" else [Image.fromarray(frame) for frame in pixels]
