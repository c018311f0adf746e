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

from vexpress.audio_features import audio_windows, encode_audio
from vexpress.checkpoints import ModelPaths, load_audio_encoder, load_networks, load_vae
from vexpress.diffusion import build_scheduler, scale_latents, unscale_latents, vae_downsampling
from vexpress.media.keypoints import draw_v_kps
from vexpress.media.video import stream_median_filter
from vexpress.models import AudioProjection, Conditions, DenoisingUNet, ReferenceNet, VKpsGuider
from vexpress.runtime import InputError
from vexpress.sampling import context_windows, guided, own_windows, sample

FRAMES_PER_BATCH = 8  # keypoint images encoded, and latents decoded, at once
AUDIO_WINDOWS_PER_BATCH = 1024
MEDIAN_KERNEL_SIZE = 3  # frames and pixels; as the release does against flicker
OUTPUT_TYPES = ("pil", "np", "pt", "latent", "generator")


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

    def select(self, windows: list[list[int]], device: torch.device) -> tuple[Conditions, Tensor]:
        """Conditions, and V-Kps features (k d f h w), of k windows, on the device."""
        frames = torch.tensor(windows).flatten()
        audio_kv = {
            path: tuple(_stream(part, frames, device) for part in kv) for path, kv in self.conditions.audio_kv.items()
        }
        kps_features = _stream(self.kps_features, self.kps_index[frames], device)
        return replace(self.conditions, audio_kv=audio_kv), rearrange(
            kps_features, "(k f) d h w -> k d f h w", k=len(windows)
        )


def _stream(host: Tensor, index: Tensor, device: torch.device) -> Tensor:
    """Rows of a host tensor, to the device through pinned memory."""
    staged = torch.empty(len(index), *host.shape[1:], dtype=host.dtype, pin_memory=device.type == "cuda")
    torch.index_select(host, 0, index, out=staged)
    return staged.to(device, non_blocking=True)


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
            kwargs: `torch_dtype`; others as of `DiffusionPipeline.from_pretrained`.

        Raises:
            InputError: a file is missing or does not fit.
        """
        if (Path(folder) / "model_index.json").is_file():
            return super().from_pretrained(folder, local_files_only=True, **kwargs)
        return cls.from_released(ModelPaths.from_model_dir(folder), kwargs.get("torch_dtype", torch.float32))

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
            context_frames: frames of a window.
            context_overlap: frames that neighbouring windows share.
            windows_per_batch: windows predicted at once; more is faster where memory allows.
            num_pad_audio_frames: frames of audio context on each side of a frame.
            reference_attention_weight: factor on what reference attention adds.
            audio_attention_weight: factor on what audio attention adds.
            seed: of the initial noise, which is drawn on the CPU and so is the same for every device.
            latents: initial noise (1 c f h w) instead.
            output_type: one of `OUTPUT_TYPES`.
            median_filter: smooths decoded frames over 3x3x3 pixels, against flicker.
            device: where to work; None is where the pipeline is.
            save_gpu_memory: parts are on `device` only while they work, and on the CPU before and after.
            callback: called with step, timestep and latents after each step; may return other latents.

        Raises:
            InputError: an argument is out of range, or inputs do not fit each other.
        """
        # 1. check what was given
        device = torch.device(device or self.device)
        num_frames = len(kps_sequence)
        height, width = height or reference_image.height, width or reference_image.width
        if output_type not in OUTPUT_TYPES:
            raise InputError(f"output_type {output_type!r}: allowed are {', '.join(OUTPUT_TYPES)}")
        if height % self.downsampling or width % self.downsampling:
            raise InputError(f"size {width}x{height}: width and height must be multiples of {self.downsampling}")
        if not 1 <= num_inference_steps <= self.scheduler.config.num_train_timesteps:
            raise InputError(f"num_inference_steps {num_inference_steps}: must be 1 to 1000")
        windows = context_windows(num_frames, context_frames, context_overlap)
        if len(windows[0]) > self.denoising_unet.config.motion_max_seq_length:
            raise InputError(
                f"context_frames {context_frames}: this model's motion modules take windows of up to "
                f"{self.denoising_unet.config.motion_max_seq_length} frames"
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
        latents = latents.float().cpu() * self.scheduler.init_noise_sigma

        # 4. denoise
        total = num_inference_steps * len(own_windows(windows))
        with working(self.denoising_unet), self.progress_bar(total=total) as bar:
            bar.set_description("denoising windows")
            conditions = self.denoising_unet.prepare_conditions(
                reference_features,
                audio_tokens,
                reference_attention_weight=reference_attention_weight,
                audio_attention_weight=audio_attention_weight,
            )
            audio_kv = {path: tuple(part.cpu() for part in kv) for path, kv in conditions.audio_kv.items()}
            clip = PreparedClip(replace(conditions, audio_kv=audio_kv), kps_features, kps_index)

            def on_step(step: int, timestep: Tensor, current: Tensor) -> Tensor | None:
                bar.set_postfix_str(f"step {step + 1} of {num_inference_steps}")
                return callback(step, timestep, current) if callback else None

            latents = sample(
                guided(partial(self._predict, clip, device), guidance_scale),
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
        frames = self.decode(working, latents, median_filter)
        if output_type == "pt":
            return VExpressPipelineOutput(frames=torch.stack(list(frames)))
        if output_type == "np":
            return VExpressPipelineOutput(frames=np.stack([frame.permute(1, 2, 0).numpy() for frame in frames]))
        pixels = (frame.mul(255).round().byte().permute(1, 2, 0).numpy() for frame in frames)
        if output_type == "generator":
            return VExpressPipelineOutput(frames=pixels)
        return VExpressPipelineOutput(frames=[Image.fromarray(frame) for frame in pixels])

    def encode_audio(self, working: Working, waveform: Tensor, num_frames: int, num_pad_audio_frames: int) -> Tensor:
        """Speech (n,) -> audio tokens (1 num_frames m d)."""
        with working(self.audio_encoder):
            hidden_states = encode_audio(self.audio_encoder, self.audio_processor, waveform)
        with working(self.audio_projection):
            windows = audio_windows(hidden_states, num_frames, num_pad_audio_frames)
            return torch.cat([self.audio_projection(part) for part in windows.split(AUDIO_WINDOWS_PER_BATCH)])[None]

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
        features = []
        with working(self.v_kps_guider):
            for part in different.split(FRAMES_PER_BATCH):
                images = torch.from_numpy(np.stack([draw_v_kps(points, height, width) for points in part]))
                images = rearrange(images, "f h w c -> 1 c f h w").to(self.v_kps_guider.device) / 255
                encoded = self.v_kps_guider(images.to(self.v_kps_guider.dtype))
                features.append(rearrange(encoded, "1 d f h w -> f d h w").cpu())
        return torch.cat(features), index

    def _predict(
        self,
        clip: PreparedClip,
        device: torch.device,
        noisy: Tensor,
        timestep: Tensor,
        windows: list[list[int]],
        conditional: bool,
    ) -> Tensor:
        """One forward pass over windows (k c f h w); unconditional means without reference, audio and keypoints."""
        noisy, timestep = noisy.to(device, self.denoising_unet.dtype), timestep.to(device)
        if conditional:
            conditions, kps_features = clip.select(windows, device)
        else:
            conditions, kps_features = replace(clip.conditions, reference_kv=None, audio_kv=None), None
        return self.denoising_unet(noisy, timestep, conditions=conditions, kps_features=kps_features)

    @torch.no_grad()
    def decode(self, working: Working, latents: Tensor, median_filter: bool = True) -> Iterator[Tensor]:
        """Decodes (1 c f h w) batch by batch, and gives frame after frame: (3 H W) float32 in 0..1 on the host."""
        with working(self.vae), self.progress_bar(total=latents.shape[2]) as bar:
            bar.set_description("decoding frames")

            def decoded() -> Iterator[Tensor]:
                for part in rearrange(latents, "1 c f h w -> f c h w").split(FRAMES_PER_BATCH):
                    part = unscale_latents(self.vae, part.to(self.vae.device, self.vae.dtype))
                    yield from (self.vae.decode(part).sample.float() / 2 + 0.5).clamp(0, 1)

            for frame in stream_median_filter(decoded(), MEDIAN_KERNEL_SIZE) if median_filter else decoded():
                bar.update()
                yield frame.cpu()
