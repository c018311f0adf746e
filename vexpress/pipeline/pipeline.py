"""The pipeline: checks what it is given, makes conditions of it, denoises, decodes."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.utils import BaseOutput
from PIL import Image
from torch import Tensor

from vexpress.audio_encoders import step_samples
from vexpress.audio_features import FrameAudio
from vexpress.diffusion.sampling import group_rank
from vexpress.errors import InputError
from vexpress.options import SamplingOptions
from vexpress.pipeline import inputs, streaming
from vexpress.pipeline.denoising import PipelineDenoising


@dataclass
class VExpressPipelineOutput(BaseOutput):
    """What the pipeline returns.

    Attributes:
        frames: by output type: list of PIL images; array (f H W 3) float32 in 0..1; tensor (f 3 H W) in 0..1;
            latents (1 c f h w); iterator of uint8 arrays (H W 3), decoded as they are asked for.
    """

    frames: list[Image.Image] | np.ndarray | Tensor | Iterator[np.ndarray]


class VExpressPipeline(PipelineDenoising):
    """Audio-driven portrait video.

    Source: paper section 3.
    """

    @torch.no_grad()
    def __call__(
        self,
        reference_image: Image.Image | np.ndarray,
        audio_waveform: Tensor | np.ndarray | Sequence[float] | None,
        kps_sequence: Tensor | np.ndarray | Sequence,
        *,
        attributes: Tensor | np.ndarray | Sequence | None = None,
        audio_tokens: Tensor | None = None,
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
        shares_windows: bool = False,
        **sampling: Any,
    ) -> VExpressPipelineOutput | tuple:
        """Makes a video with as many frames as `kps_sequence`, lasting as long as the audio.

        Args:
            reference_image: portrait, also as an array (H W 3) uint8; resized to (height, width). As a viewer shows it:
                transparent parts are white.
            audio_waveform: (n,) float, mono, at the audio processor's sampling rate (16 kHz).
            kps_sequence: (f 3 2), px of (height, width): left eye, right eye, nose.
            attributes: (f 6), or (6,) for all frames, see `vexpress.models.attributes`; where they end, the last stay.
                None: eyes that blink naturally, if the model knows attributes.
            audio_tokens: (1 f m d) from `project_audio`, in place of `audio_waveform`, which is then None: for a part
                of a longer speech.
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
            shares_windows: all processes of a `torch.distributed` group make this call, and share its work.
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
        kps = inputs.prepare_kps(kps_sequence)
        if audio_tokens is None:
            waveform = inputs.prepare_waveform(audio_waveform)
            fps = len(kps) * self.audio_processor.sampling_rate / len(waveform)
        else:
            projection = self.audio_projection
            shape = 1, len(kps), projection.config.num_queries, projection.config.output_dim
            audio_tokens = inputs.prepare_audio_tokens(audio_tokens, shape, audio_waveform)
            audio_tokens = audio_tokens.to(self._execution_device, projection.dtype)
            fps = options.fps
        attributes = self._attribute_source(attributes, options, fps)
        if latents is not None:
            latents = inputs.prepare_latents(latents, self._latent_shape(len(kps), image))
        ranks = group_rank() if shares_windows else (0, 1)
        if ranks[1] > 1 and options.sampling == "rolling":
            raise InputError("cannot be shared by several processes; use joint", "sampling", "rolling")
        scheduler = self._start(options, len(kps), device)

        on_step = callback_on_step_end and inputs.replacement_of(
            callback_on_step_end, self, callback_on_step_end_tensor_inputs
        )

        # 2. denoise: the whole clip, or window after window as frames are asked for
        generator = generator or torch.Generator("cpu").manual_seed(options.seed)
        noise = self._noise_source(image, options.shared_noise, generator, latents)
        if options.sampling == "joint":
            if audio_tokens is None:
                audio_tokens = self.encode_audio(waveform, len(kps), options.num_pad_audio_frames)
            how = noise, options, scheduler, generator, on_step, ranks
            latents = [self._sample_joint(image, audio_tokens, kps, attributes, *how)]
        else:
            has_tokens = audio_tokens is not None
            frames = zip(kps, audio_tokens[0]) if has_tokens else self._known_frames(waveform, kps, options)
            frames = self._with_attributes(frames, attributes)
            latents = self._roll(image, frames, len(kps), noise, options, scheduler, generator, on_step)

        # 3. decode
        if output_type == "latent":
            latents = list(latents)
            frames = latents[0] if len(latents) == 1 else torch.cat(latents, dim=2)
            self.maybe_free_model_hooks()
        else:
            decoded = self.decode(latents, options.median_filter, options.denoise_threshold)
            frames = _collect(self._with_progress(decoded, "decoding frames", len(kps)), output_type)
        return VExpressPipelineOutput(frames=frames) if return_dict else (frames,)

    @torch.no_grad()
    def stream(
        self,
        reference_image: Image.Image | np.ndarray,
        audio_chunks: Iterable | Tensor | np.ndarray,
        kps: Tensor | np.ndarray | Callable[[int], Any] | Iterator,
        *,
        fps: float | None = None,
        attributes: Tensor | np.ndarray | Sequence | Callable[[int], Any] | Iterator | None = None,
        look_ahead_seconds: float = 0.3,
        context_seconds: float = 4.0,
        piece_seconds: float = 0.2,
        options: SamplingOptions | None = None,
        height: int | None = None,
        width: int | None = None,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        **sampling: Any,
    ) -> Iterator[tuple[np.ndarray, float]]:
        """Makes a video while its speech still comes: window after window, in constant memory.

        Args:
            reference_image: portrait, see `__call__`.
            audio_chunks: speech at the audio processor's sampling rate, an iterable of pieces (n,) of any length; or
                all of it. The same speech gives the same frames, whatever its pieces.
            kps: px of (height, width): (3 2) for a still head; (f 3 2); a callable that takes a frame's number; or an
                iterator. Where they end before the speech, the head stays as it is.
            fps: frames per second; None: that of `options`.
            attributes: (6,), (f 6), a callable or an iterator, as `kps`; None as in `__call__`.
            look_ahead_seconds: speech that must follow a frame before it is made; less is sooner and less exact.
            context_seconds: speech before a frame that is heard with it.
            piece_seconds: speech encoded at once; more costs less and is later.
            options: how to sample, see `__call__`; `sampling` is rolling, whatever they say. Likewise the others.

        Yields:
            (H W 3) uint8, and the time in seconds at which the frame is shown.

        Raises:
            InputError: at once for arguments; as they come for pieces of speech and keypoints.
        """
        options = inputs.sampling_options(options, {**sampling, "sampling": "rolling"})
        fps = options.fps if fps is None else fps
        for name, value, bounds in (
            ("fps", fps, (1, 240)),
            ("look_ahead_seconds", look_ahead_seconds, (0, 60)),
            ("context_seconds", context_seconds, (0, 60)),
            ("piece_seconds", piece_seconds, (0.02, 60)),
        ):
            inputs.check_number(name, value, *bounds)
        inputs.check_generator(generator)
        image = inputs.prepare_image(reference_image, height, width, self.downsampling)
        chunks, source = streaming.waveform_chunks(audio_chunks), streaming.kps_source(kps)
        attributes = self._attribute_source(attributes, options, fps)
        scheduler = self._start(options, options.context_frames, device)
        audio = self._audio_stream(piece_seconds, context_seconds, look_ahead_seconds)
        rate = self.audio_processor.sampling_rate
        per_step = streaming.states_per_step(step_samples(self.audio_encoder.config)[1], rate, fps)
        frames = streaming.stream_frames(
            chunks,
            audio,
            FrameAudio(per_step, options.num_pad_audio_frames),
            self.project_audio,
            source,
            lambda num_samples: max(1, round(num_samples / rate * fps)),
        )
        generator = generator or torch.Generator("cpu").manual_seed(options.seed)
        noise = self._noise_source(image, options.shared_noise, generator)
        frames = self._with_attributes(frames, attributes)
        latents = self._roll(image, frames, None, noise, options, scheduler, generator)
        pixels = _collect(self.decode(latents, options.median_filter, options.denoise_threshold), "generator")
        return ((frame, float(number / fps)) for number, frame in enumerate(pixels))

    def _with_progress(self, frames: Iterator[Tensor], what: str, total: int | None) -> Iterator[Tensor]:
        with self.progress_bar(total=total) as bar:
            bar.set_description(what)
            for frame in frames:
                bar.update()
                yield frame


def _collect(frames: Iterator[Tensor], output_type: str) -> list[Image.Image] | np.ndarray | Tensor | Iterator:
    """Frames (3 H W) in 0..1 as one of `OUTPUT_TYPES`, but latents."""
    if output_type == "pt":
        return torch.stack(list(frames))
    if output_type == "np":
        return np.stack([frame.permute(1, 2, 0).numpy() for frame in frames])
    pixels = (frame.mul(255).round().byte().permute(1, 2, 0).numpy() for frame in frames)
    return pixels if output_type == "generator" else [Image.fromarray(frame) for frame in pixels]
