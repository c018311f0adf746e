"""How the pipeline denoises: the whole clip step by step, or window after window."""

import copy
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from diffusers import SchedulerMixin
from einops import rearrange
from PIL import Image
from torch import Tensor

from vexpress.audio_encoders import count_steps
from vexpress.audio_features import CONTEXT_SECONDS, STEPS_PER_FRAME, AudioStream, FrameAudio, num_audio_steps
from vexpress.data.attribute_curves import NaturalBlinks
from vexpress.diffusion.guidance import Denoise, guided
from vexpress.diffusion.rolling import NoiseSource, roll
from vexpress.diffusion.sampling import OnStep, sample
from vexpress.diffusion.schedule import share_noise
from vexpress.diffusion.windows import context_windows
from vexpress.errors import InputError, first_line
from vexpress.models import Conditions
from vexpress.models.attributes import ATTRIBUTES
from vexpress.options import SamplingOptions
from vexpress.pipeline import streaming
from vexpress.pipeline.adapters import PipelineAdapters
from vexpress.pipeline.conditioning import KpsFeatures, WindowConditions

FRAMES_AT_ONCE = 64  # whose noise is mixed
NO_ATTRIBUTES = "the model has no v-express/attribute_projection; train it in stages 2 and 3, see docs/motion.md"
KNOWN_PIECE_SECONDS = 10.0  # speech encoded at once in rolling sampling, if it is known in advance


class PipelineDenoising(PipelineAdapters):
    """Joint and rolling sampling with the pipeline's networks."""

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

    def _start(self, options: SamplingOptions, num_frames: int, device: Any) -> SchedulerMixin:
        """Checks what depends on the model, makes the networks ready, and gives a scheduler of this call's own.

        Frames are made as they are asked for, and until then other calls may set the pipeline's scheduler otherwise.
        """
        self._check_limits(options, num_frames)
        self._set_timesteps(options.num_inference_steps)
        self._move(device)
        self._interrupt = False
        return copy.deepcopy(self.scheduler)

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
        if options.deep_block_interval > 1 and len(self.denoising_unet.up_blocks) < 2:
            problem = "must be 1: this model's UNet has one level"
            raise InputError(problem, "deep_block_interval", options.deep_block_interval)
        if options.sampling == "rolling" and options.windows_per_batch != 1:
            problem = "goes with `sampling` joint; rolling sampling has one window at a time"
            raise InputError(problem, "windows_per_batch", options.windows_per_batch)

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

    def _noise_source(
        self, image: Image.Image, share: float, generator: torch.Generator, given: Tensor | None = None
    ) -> NoiseSource:
        """Initial noise of the next frames, to be overwritten; drawn on the generator's device, and then on the CPU."""
        shared: list[Tensor] = []

        def new_noise(num_frames: int) -> Tensor:
            nonlocal given
            if given is not None:
                noise, given = given[:, :, :num_frames].clone(), given[:, :, num_frames:]
                return noise
            shape = self._latent_shape(num_frames, image)
            noise = torch.randn(shape, generator=generator, device=generator.device)
            if share and not shared:
                shared.append(torch.randn(self._latent_shape(1, image), generator=generator, device=generator.device))
            for part in noise.split(FRAMES_AT_ONCE, dim=2) if share else ():  # in place: a clip's noise is large
                part.copy_(share_noise(part, shared[0], share))
            return noise.cpu()

        return new_noise

    def _window_conditions(
        self, image: Image.Image, options: SamplingOptions, keeps_latest: bool = False
    ) -> WindowConditions:
        """Encodes the portrait; keypoints and audio follow window by window."""
        constant = self.denoising_unet.prepare_conditions(
            self.encode_reference(image),
            reference_attention_weight=options.reference_attention_weight,
            audio_attention_weight=options.audio_attention_weight,
        )

        def encode(kps: Tensor) -> Tensor:
            return rearrange(self.encode_kps(kps, image.height, image.width), "1 d f h w -> f d h w")

        unknown = None
        if self.attribute_projection is not None:
            nothing = torch.full((1, len(ATTRIBUTES)), torch.nan, device=self._execution_device)
            unknown = self.project_attributes(nothing)[0, 0]
        features = KpsFeatures(encode, keeps_latest)
        return WindowConditions(self.denoising_unet, constant, features, options.guidance, unknown)

    def _denoiser(self, conditions_of: Callable[[list[list[int]]], Conditions], options: SamplingOptions) -> Denoise:
        """The denoising UNet with guidance."""
        device, dtype = self._execution_device, self.denoising_unet.dtype

        def predict(noisy: Tensor, timestep: Tensor, conditions: Conditions, **deep: Any) -> Any:
            return self.denoising_unet(noisy.to(device, dtype), timestep.to(device), conditions=conditions, **deep)

        return guided(
            predict,
            conditions_of,
            options.guidance_scale,
            options.guidance,
            guidance_interval=options.guidance_interval,
            deep_block_interval=options.deep_block_interval,
        )

    def _sample_joint(
        self,
        image: Image.Image,
        audio_tokens: Tensor,
        kps: Tensor,
        attributes: streaming.Source | None,
        noise: NoiseSource,
        options: SamplingOptions,
        scheduler: SchedulerMixin,
        generator: torch.Generator,
        on_step: OnStep | None,
        ranks: tuple[int, int],
    ) -> Tensor:
        """All windows step by step."""
        if attributes is not None:
            values = torch.stack([attributes(number) for number in range(len(kps))])
            attribute_tokens = self.project_attributes(values.to(self._execution_device))
            audio_tokens = torch.cat([audio_tokens, attribute_tokens], dim=2)
        conditions = self._window_conditions(image, options).of_clip(kps, audio_tokens)
        windows = context_windows(len(kps), options.context_frames, options.context_overlap)
        num_steps = len(scheduler.timesteps)
        total = num_steps * len(range(ranks[0], len(windows), ranks[1]))
        with self.progress_bar(total=total) as bar:
            bar.set_description("denoising windows")

            def watch(step: int, timestep: Tensor, current: Tensor) -> Tensor | None:
                bar.set_postfix_str(f"step {step + 1} of {num_steps}")
                return on_step(step, timestep, current) if on_step else None

            return sample(
                self._denoiser(conditions, options),
                noise(len(kps)).mul_(scheduler.init_noise_sigma),
                scheduler,
                windows,
                windows_per_batch=options.windows_per_batch,
                generator=generator,
                on_window=bar.update,
                on_step=watch,
                interrupted=lambda: self.interrupt,
                ranks=ranks,
            )

    @torch.no_grad()
    def _roll(
        self,
        image: Image.Image,
        frames: Iterator[streaming.FrameInputs],
        num_frames: int | None,
        noise: NoiseSource,
        options: SamplingOptions,
        scheduler: SchedulerMixin,
        generator: torch.Generator,
        on_step: OnStep | None = None,
    ) -> Iterator[Tensor]:
        """Latents of one window after the other; `num_frames`, where it is known, is for the progress bar."""
        conditions = self._window_conditions(image, options, keeps_latest=True)
        sizes = (options.context_frames, options.context_overlap)
        windows = streaming.RollingWindows(frames, conditions, *sizes)
        total = len(scheduler.timesteps) * len(context_windows(num_frames, *sizes)) if num_frames else None
        with self.progress_bar(None if total else itertools.repeat(None), total) as bar:
            bar.set_description("denoising windows")
            yield from roll(
                self._denoiser(windows.conditions, options),
                windows,
                noise,
                scheduler,
                options.context_overlap,
                generator=generator,
                on_window=bar.update,
                on_step=on_step,
                interrupted=lambda: self.interrupt,
            )

    def _audio_stream(
        self, piece_seconds: float, context_seconds: float, look_ahead_seconds: float, waveform: Tensor | None = None
    ) -> AudioStream:
        return AudioStream(
            self.audio_encoder,
            self.audio_processor,
            piece_seconds=piece_seconds,
            context_seconds=context_seconds,
            look_ahead_seconds=look_ahead_seconds,
            statistics=None if waveform is None else (float(waveform.mean()), float(waveform.var(unbiased=False))),
            device=self._execution_device,
        )

    def _attribute_source(self, attributes: Any, options: SamplingOptions, fps: float) -> streaming.Source | None:
        """Attributes (6,) by the number of a frame: those given, or natural blinks; None where the model knows none.

        Raises:
            InputError: they are asked for, and the model knows none.
        """
        if self.attribute_projection is None:
            if options.guidance == "attributes":
                raise InputError(NO_ATTRIBUTES, "guidance", options.guidance)
            if attributes is not None:
                raise InputError(NO_ATTRIBUTES, "attributes")
            return None
        if attributes is not None:
            return streaming.attribute_source(attributes)
        blinks = NaturalBlinks(options.seed, fps)
        return lambda number: torch.from_numpy(blinks.attributes(number))

    def _with_attributes(
        self, frames: Iterator[streaming.FrameInputs], attributes: streaming.Source | None
    ) -> Iterator[streaming.FrameInputs]:
        """Puts the attributes' tokens behind those of the audio."""
        if attributes is None:
            yield from frames
            return
        device = self._execution_device  # once: diffusers looks through all modules for it, which takes milliseconds
        for number, (kps, tokens) in enumerate(frames):
            yield kps, torch.cat([tokens, self.project_attributes(attributes(number)[None].to(device))[0, 0]])

    def _known_frames(self, waveform: Tensor, kps: Tensor, options: SamplingOptions) -> Iterator[streaming.FrameInputs]:
        """Frames of a clip that is known in advance, of which no more is encoded than is asked for."""
        num_states = count_steps(self.audio_encoder.config, len(waveform))
        return streaming.stream_frames(
            [waveform],
            self._audio_stream(KNOWN_PIECE_SECONDS, CONTEXT_SECONDS, CONTEXT_SECONDS, waveform),
            FrameAudio(num_states / (STEPS_PER_FRAME * len(kps)), options.num_pad_audio_frames),
            self.project_audio,
            lambda number: kps[number],
            lambda num_samples: len(kps),
        )
