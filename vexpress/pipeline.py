"""Portrait, speech and keypoints in, video out: prepare once, sample, decode."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, SchedulerMixin
from diffusers.utils import BaseOutput
from einops import rearrange
from PIL import Image
from torch import Tensor, nn
from transformers import Wav2Vec2FeatureExtractor, Wav2Vec2Model

from vexpress.audio_features import audio_windows, encode_audio, num_audio_steps
from vexpress.diffusion.guidance import guided
from vexpress.diffusion.latents import scale_latents, unscale_latents, vae_downsampling
from vexpress.diffusion.sampling import sample
from vexpress.diffusion.schedule import build_scheduler, share_noise
from vexpress.diffusion.windows import context_windows, own_windows
from vexpress.errors import InputError
from vexpress.media.keypoints import render_v_kps
from vexpress.media.smoothing import stream_denoise, stream_median_filter
from vexpress.model_folder import ModelPaths
from vexpress.models import AudioProjection, Conditions, DenoisingUNet, ReferenceNet, VKpsGuider
from vexpress.weights import load_audio_encoder, load_networks, load_vae

FRAMES_PER_BATCH = 8  # keypoint images encoded, and latents decoded, at once
AUDIO_BATCH = 1024  # frames whose audio is projected at once
MEDIAN_KERNEL_SIZE = 3  # frames and pixels; as the release does against flicker
OUTPUT_TYPES = ("pil", "np", "pt", "latent", "generator")
GUIDANCE = ("all", "audio")


Working = Callable[..., contextlib.AbstractContextManager]
"""`with working(network, ...)`: the networks are where they work."""


@contextlib.contextmanager
def _working(device: torch.device, save_gpu_memory: bool, *networks: nn.Module) -> Iterator[None]:
    for network in networks:
        network.to(device)
    try:
        yield
    finally:
        if save_gpu_memory:
            for network in networks:
                network.to("cpu")
            if device.type == "cuda":
                torch.cuda.empty_cache()


@dataclass
class VExpressPipelineOutput(BaseOutput):
    """What the pipeline returns.

    Attributes:
        frames: by output type: list of PIL images; array (f H W 3) float32 in 0..1; tensor (f 3 H W) in 0..1;
            latents (1 c f h w); iterator of uint8 arrays (H W 3), decoded as they are asked for.
    """

    frames: list[Image.Image] | np.ndarray | Tensor | Iterator[np.ndarray]


@dataclass(frozen=True)
class PreparedClip:
    """All that denoising needs of a clip, computed once. What grows with its length is in host memory.

    Attributes:
        conditions: reference keys and values on the device; audio keys and values, one per frame, on the host.
        kps_features: (u d h w) on the host, for the u different keypoint images of the clip.
        kps_index: (f,) int64, which of them each frame has.
    """

    conditions: Conditions
    kps_features: Tensor
    kps_index: Tensor

    def without_audio(self) -> "PreparedClip":
        """The clip with its audio dropped."""
        return replace(self, conditions=replace(self.conditions, audio_kv=None))

    def with_audio(self, unet: DenoisingUNet, audio_tokens: Tensor) -> "PreparedClip":
        """Adds keys and values of audio tokens (1 f m d), which go to the host part by part."""
        parts = []
        for part in audio_tokens.split(AUDIO_BATCH, dim=1):
            audio_kv = unet.prepare_conditions(audio_tokens=part).audio_kv
            parts.append({path: (keys.cpu(), values.cpu()) for path, (keys, values) in audio_kv.items()})
        audio_kv = {
            path: tuple(torch.cat(tensors) for tensors in zip(*(part[path] for part in parts))) for path in parts[0]
        }
        return replace(self, conditions=replace(self.conditions, audio_kv=audio_kv))

    def select(self, windows: list[list[int]], device: torch.device) -> tuple[Conditions, Tensor]:
        """Conditions, and V-Kps features (k d f h w), of k windows, on the device."""
        frames = torch.tensor(windows).flatten()
        audio_kv = self.conditions.audio_kv and {
            path: tuple(_stream(part, frames, device) for part in kv) for path, kv in self.conditions.audio_kv.items()
        }
        different, index = self.kps_index[frames].unique(return_inverse=True)  # a still head has but one
        kps_features = _stream(self.kps_features, different, device)[index.to(device)]
        return replace(self.conditions, audio_kv=audio_kv), rearrange(
            kps_features, "(k f) d h w -> k d f h w", k=len(windows)
        )


def _stream(host: Tensor, index: Tensor, device: torch.device) -> Tensor:
    """Rows of a host tensor, to the device through pinned memory."""
    staged = torch.empty(len(index), *host.shape[1:], dtype=host.dtype, pin_memory=device.type == "cuda")
    torch.index_select(host, 0, index, out=staged)
    return staged.to(device, non_blocking=device.type == "cuda")


class VExpressPipeline(DiffusionPipeline):
    """Audio-driven portrait video.

    Args:
        vae: image autoencoder.
        reference_net: portrait latents -> features.
        denoising_unet: predicts a window of frames.
        v_kps_guider: keypoint images -> features.
        audio_projection: audio steps around a frame -> tokens.
        audio_encoder: speech -> hidden states.
        audio_processor: normalises speech for `audio_encoder`.
        scheduler: any of `vexpress.diffusion.SCHEDULERS`.

    Raises:
        ValueError: VAE and guider do not downsample alike.

    Source: paper section 3.
    """

    def __init__(
        self,
        vae: AutoencoderKL,
        reference_net: ReferenceNet,
        denoising_unet: DenoisingUNet,
        v_kps_guider: VKpsGuider,
        audio_projection: AudioProjection,
        audio_encoder: Wav2Vec2Model,
        audio_processor: Wav2Vec2FeatureExtractor,
        scheduler: SchedulerMixin,
    ):
        super().__init__()
        self.register_modules(
            vae=vae,
            reference_net=reference_net,
            denoising_unet=denoising_unet,
            v_kps_guider=v_kps_guider,
            audio_projection=audio_projection,
            audio_encoder=audio_encoder,
            audio_processor=audio_processor,
            scheduler=scheduler,
        )
        self.downsampling = vae_downsampling(vae)
        guider_downsampling = 2 ** (len(v_kps_guider.config.block_out_channels) - 1)
        if guider_downsampling != self.downsampling:
            raise ValueError(f"the V-Kps guider downsamples by {guider_downsampling}, the VAE by {self.downsampling}")

    @classmethod
    def from_pretrained(cls, folder: str | PathLike, **kwargs) -> "VExpressPipeline":
        """Loads a folder in the released layout, or one that `save_pretrained` wrote.

        Args:
            folder: the folder; nothing is ever downloaded.
            kwargs: `torch_dtype`; with a folder of `save_pretrained` all of `DiffusionPipeline.from_pretrained`.

        Raises:
            InputError: a file is missing or does not fit.
        """
        if (Path(folder) / "model_index.json").is_file():
            return super().from_pretrained(folder, **{**kwargs, "local_files_only": True})
        dtype = kwargs.pop("torch_dtype", torch.float32)
        if kwargs:
            raise TypeError(f"a folder in the released layout takes torch_dtype alone, not {', '.join(kwargs)}")
        return cls.from_released(ModelPaths.from_model_dir(folder), dtype)

    @classmethod
    def from_released(
        cls,
        paths: ModelPaths,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        test_stage: str = "stage_3",
        scheduler: str = "ddim",
    ) -> "VExpressPipeline":
        """Loads files in the released layout.

        Args:
            paths: where each file is.
            dtype: of all networks.
            device: where weights are read to; "cpu" if `__call__` is to save GPU memory.
            test_stage: "stage_1" silences audio attention and motion modules, which that stage has not trained.
            scheduler: name of a sampler.

        Raises:
            InputError: a file is missing or does not fit.
        """
        encoder, processor = load_audio_encoder(paths.audio_encoder_path, dtype, device)
        return cls(
            vae=load_vae(paths.vae_path, dtype, device),
            **load_networks(paths, dtype, device, test_stage),
            audio_encoder=encoder,
            audio_processor=processor,
            scheduler=build_scheduler(scheduler),
        )

    @torch.no_grad()
    def __call__(
        self,
        reference_image: Image.Image,
        audio_waveform: Tensor,
        kps_sequence: Tensor,
        *,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 25,
        guidance_scale: float = 3.5,
        guidance: str = "all",
        shared_noise: float = 0.0,
        context_frames: int = 24,
        context_overlap: int = 4,
        windows_per_batch: int = 1,
        num_pad_audio_frames: int = 2,
        reference_attention_weight: float = 0.95,
        audio_attention_weight: float = 3.0,
        seed: int = 42,
        latents: Tensor | None = None,
        output_type: str = "pil",
        median_filter: bool = True,
        denoise_threshold: float = 0.0,
        device: torch.device | str | None = None,
        save_gpu_memory: bool = False,
        callback: Callable[[int, Tensor, Tensor], Tensor | None] | None = None,
    ) -> VExpressPipelineOutput:
        """Makes a video with as many frames as `kps_sequence`, lasting as long as the audio.

        Args:
            reference_image: portrait; resized to (height, width).
            audio_waveform: (n,) float, mono, at the audio processor's sampling rate (16 kHz).
            kps_sequence: (f 3 2) float, px of (height, width): left eye, right eye, nose.
            height: px, a multiple of the VAE's downsampling (8); None takes the image's.
            width: px, likewise.
            num_inference_steps: denoising steps, 1 to 1000.
            guidance_scale: 1 switches guidance off and halves the time.
            guidance: what the prediction is guided away from, one of `GUIDANCE`: "all" is one without any condition, as
                released; "audio" one without audio alone, which strengthens the mouth and leaves colours as they are.
            shared_noise: share of the initial noise's variance that all frames have in common, 0 (as released) to 1;
                more holds flicker down.
            context_frames: frames of a window.
            context_overlap: frames that neighbouring windows share.
            windows_per_batch: windows predicted at once; more is faster where memory allows.
            num_pad_audio_frames: frames of audio context on each side of a frame.
            reference_attention_weight: factor on what reference attention adds.
            audio_attention_weight: factor on what audio attention adds.
            seed: of the initial noise, which is drawn on the CPU and so is the same for every device.
            latents: initial noise (1 c f h w), in place of that of `seed` and `shared_noise`.
            output_type: one of `OUTPUT_TYPES`.
            median_filter: smooths decoded frames over 3x3x3 pixels, against flicker.
            denoise_threshold: of 255; pixels that differ by less than this are averaged over five frames, which stills
                what hardly changes. 0 switches it off.
            device: where to work; None is where the pipeline is.
            save_gpu_memory: parts are on `device`, which must be given, only while they work, and else on the CPU.
            callback: called with step, timestep and latents after each step; may return other latents.

        Raises:
            InputError: an argument is out of range, or inputs do not fit each other.
        """
        # 1. check what was given
        if save_gpu_memory and device is None:
            raise InputError("save_gpu_memory needs device: the pipeline is on the CPU before and after")
        device = torch.device(device or self.device)
        num_frames = len(kps_sequence)
        height, width = height or reference_image.height, width or reference_image.width
        windows = self._check_inputs(
            audio_waveform,
            kps_sequence,
            (height, width),
            num_inference_steps,
            (context_frames, context_overlap),
            num_pad_audio_frames,
            latents,
            output_type,
            guidance,
            shared_noise,
            denoise_threshold,
        )
        working = partial(_working, device, save_gpu_memory)

        # 2. inputs to tokens and features, each once
        audio_tokens = self.encode_audio(working, audio_waveform, num_frames, num_pad_audio_frames)
        image = reference_image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
        reference_features = self.encode_reference(working, image)
        kps_features, kps_index = self.encode_kps(working, kps_sequence, height, width)

        # 3. noise, drawn on the CPU to be the same on every device
        generator = torch.Generator("cpu").manual_seed(seed)
        try:
            self.scheduler.set_timesteps(num_inference_steps)
        except ValueError as error:  # LCM, say, takes at most 50
            raise InputError(f"num_inference_steps {num_inference_steps} with this scheduler: {error}") from error
        if latents is None:
            shape = (1, self.denoising_unet.config.in_channels, num_frames, *kps_features.shape[-2:])
            latents = torch.randn(shape, generator=generator)
            if shared_noise:
                shared = torch.randn(*shape[:2], 1, *shape[3:], generator=generator)
                latents = share_noise(latents, shared, shared_noise)
        latents = latents.float().cpu() * self.scheduler.init_noise_sigma

        # 4. denoise
        total = num_inference_steps * len(own_windows(windows))
        with working(self.denoising_unet), self.progress_bar(total=total) as bar:
            bar.set_description("denoising windows")
            clip = PreparedClip(
                self.denoising_unet.prepare_conditions(
                    reference_features,
                    reference_attention_weight=reference_attention_weight,
                    audio_attention_weight=audio_attention_weight,
                ),
                kps_features,
                kps_index,
            ).with_audio(self.denoising_unet, audio_tokens)

            def on_step(step: int, timestep: Tensor, current: Tensor) -> Tensor | None:
                bar.set_postfix_str(f"step {step + 1} of {num_inference_steps}")
                return callback(step, timestep, current) if callback else None

            latents = sample(
                guided(partial(self._predict, clip, device, guidance), guidance_scale),
                latents,
                self.scheduler,
                windows,
                windows_per_batch=windows_per_batch,
                generator=generator,
                on_window=bar.update,
                on_step=on_step,
            )
        if output_type == "latent":
            return VExpressPipelineOutput(frames=latents)

        # 5. decode
        frames = self.decode(working, latents, median_filter, denoise_threshold)
        if output_type == "pt":
            return VExpressPipelineOutput(frames=torch.stack(list(frames)))
        if output_type == "np":
            return VExpressPipelineOutput(frames=np.stack([frame.permute(1, 2, 0).numpy() for frame in frames]))
        pixels = (frame.mul(255).round().byte().permute(1, 2, 0).numpy() for frame in frames)
        if output_type == "generator":
            return VExpressPipelineOutput(frames=pixels)
        return VExpressPipelineOutput(frames=[Image.fromarray(frame) for frame in pixels])

    def _check_inputs(
        self,
        waveform: Tensor,
        kps: Tensor,
        size: tuple[int, int],
        num_inference_steps: int,
        context: tuple[int, int],
        num_pad_audio_frames: int,
        latents: Tensor | None,
        output_type: str,
        guidance: str,
        shared_noise: float,
        denoise_threshold: float,
    ) -> list[list[int]]:
        """Raises InputError for what cannot work, and gives the clip's windows."""
        if guidance not in GUIDANCE:
            raise InputError(f"guidance {guidance!r}: allowed are {', '.join(GUIDANCE)}")
        if not 0 <= shared_noise <= 1:
            raise InputError(f"shared_noise {shared_noise}: must be 0 to 1")
        if not 0 <= denoise_threshold <= 255:
            raise InputError(f"denoise_threshold {denoise_threshold}: must be 0 to 255")
        if output_type not in OUTPUT_TYPES:
            raise InputError(f"output_type {output_type!r}: allowed are {', '.join(OUTPUT_TYPES)}")
        if waveform.ndim != 1 or not len(waveform) or not waveform.isfinite().all():
            raise InputError(f"audio_waveform of shape {tuple(waveform.shape)}: must be (n,), n > 0, and finite")
        if kps.shape[1:] != (3, 2) or not len(kps) or not kps.isfinite().all():
            raise InputError(f"kps_sequence of shape {tuple(kps.shape)}: must be (f, 3, 2), f > 0, and finite")
        if size[0] % self.downsampling or size[1] % self.downsampling:
            raise InputError(f"size {size[1]}x{size[0]}: width and height must be multiples of {self.downsampling}")
        if not 1 <= num_inference_steps <= self.scheduler.config.num_train_timesteps:
            raise InputError(f"num_inference_steps {num_inference_steps}: must be 1 to 1000")
        num_steps, most_steps = num_audio_steps(num_pad_audio_frames), self.audio_projection.config.max_seq_len
        if num_steps > most_steps:
            raise InputError(
                f"num_pad_audio_frames {num_pad_audio_frames}: makes {num_steps} audio steps around a frame, and this "
                f"model's audio projection takes {most_steps}"
            )
        shape = (1, self.denoising_unet.config.in_channels, len(kps), *(side // self.downsampling for side in size))
        if latents is not None and latents.shape != shape:
            raise InputError(f"latents of shape {tuple(latents.shape)}: must be {shape}")
        try:
            windows = context_windows(len(kps), *context)
        except ValueError as error:
            raise InputError(str(error)) from error
        if len(windows[0]) > self.denoising_unet.config.motion_max_seq_length:
            raise InputError(
                f"context_frames {context[0]}: this model's motion modules take windows of up to "
                f"{self.denoising_unet.config.motion_max_seq_length} frames"
            )
        return windows

    def encode_audio(self, working: Working, waveform: Tensor, num_frames: int, num_pad_audio_frames: int) -> Tensor:
        """Speech (n,) -> audio tokens (1 num_frames m d)."""
        with working(self.audio_encoder):
            hidden_states = encode_audio(self.audio_encoder, self.audio_processor, waveform)
        with working(self.audio_projection):
            windows = audio_windows(hidden_states, num_frames, num_pad_audio_frames)
            return torch.cat([self.audio_projection(part) for part in windows.split(AUDIO_BATCH)])[None]

    def encode_reference(self, working: Working, image: Image.Image) -> dict[str, Tensor]:
        """Portrait -> features of the ReferenceNet."""
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 127.5 - 1
        with working(self.vae):
            posterior = self.vae.encode(pixels.to(self.vae.device, self.vae.dtype)).latent_dist
            latents = scale_latents(self.vae, posterior.mean)
        with working(self.reference_net):
            return self.reference_net(latents)

    def encode_kps(self, working: Working, kps: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Keypoints (f 3 2) -> features (u d h w) of the different ones among them, and each frame's index (f,)."""
        different, index = torch.unique(kps, dim=0, return_inverse=True)
        features: Tensor | None = None
        with working(self.v_kps_guider):
            for start in range(0, len(different), FRAMES_PER_BATCH):
                part = different[start : start + FRAMES_PER_BATCH]
                images = torch.from_numpy(np.stack([render_v_kps(points, height, width) for points in part]))
                images = rearrange(images, "f h w c -> 1 c f h w").to(self.v_kps_guider.device) / 255
                encoded = rearrange(self.v_kps_guider(images.to(self.v_kps_guider.dtype)), "1 d f h w -> f d h w")
                if features is None:  # all at once: joined parts would be in memory twice
                    features = torch.empty(len(different), *encoded.shape[1:], dtype=encoded.dtype)
                features[start : start + len(part)] = encoded.cpu()
        return features, index

    def _predict(
        self,
        clip: PreparedClip,
        device: torch.device,
        guidance: str,
        noisy: Tensor,
        timestep: Tensor,
        windows: list[list[int]],
        conditional: bool,
    ) -> Tensor:
        """One forward pass over windows (k c f h w); unconditional means without what `guidance` says."""
        noisy, timestep = noisy.to(device, self.denoising_unet.dtype), timestep.to(device)
        if conditional or guidance == "audio":
            conditions, kps_features = (clip if conditional else clip.without_audio()).select(windows, device)
        else:
            conditions, kps_features = replace(clip.conditions, reference_kv=None, audio_kv=None), None
        return self.denoising_unet(noisy, timestep, conditions=conditions, kps_features=kps_features)

    @torch.no_grad()
    def decode(
        self, working: Working, latents: Tensor, median_filter: bool = True, denoise_threshold: float = 0.0
    ) -> Iterator[Tensor]:
        """Decodes (1 c f h w) batch by batch, and gives frame after frame: (3 H W) float32 in 0..1 on the host."""
        with working(self.vae), self.progress_bar(total=latents.shape[2]) as bar:
            bar.set_description("decoding frames")

            def decoded() -> Iterator[Tensor]:
                for part in rearrange(latents, "1 c f h w -> f c h w").split(FRAMES_PER_BATCH):
                    part = unscale_latents(self.vae, part.to(self.vae.device, self.vae.dtype))
                    yield from (self.vae.decode(part).sample.float() / 2 + 0.5).clamp(0, 1)

            frames = decoded()
            if median_filter:
                frames = stream_median_filter(frames, MEDIAN_KERNEL_SIZE)
            if denoise_threshold:
                frames = stream_denoise(frames, denoise_threshold / 255)
            for frame in frames:
                bar.update()
                yield frame.cpu()
