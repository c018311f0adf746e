"""The parts of the pipeline: how they are loaded, where they work, and what each does on its own."""

import logging
from collections.abc import Callable, Iterable, Iterator
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline, SchedulerMixin
from diffusers.utils.torch_utils import get_device
from einops import rearrange
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel
from transformers.feature_extraction_sequence_utils import SequenceFeatureExtractor

from vexpress.audio_encoders import check_width
from vexpress.audio_features import audio_windows, encode_audio
from vexpress.diffusion.latents import Autoencoder, compute_latents, scale_latents, unscale_latents, vae_downsampling
from vexpress.diffusion.schedule import build_scheduler
from vexpress.errors import InputError
from vexpress.media.keypoints import render_v_kps
from vexpress.media.smoothing import stream_denoise, stream_median_filter
from vexpress.model_folder import ModelPaths
from vexpress.models import AttributeProjection, AudioProjection, DenoisingUNet, ReferenceNet, VKpsGuider
from vexpress.pipeline import inputs
from vexpress.weights import load_audio_config, load_audio_encoder, load_networks, load_vae

logger = logging.getLogger(__name__)

FRAMES_PER_BATCH = 8  # keypoint images encoded, and latents decoded, at once
AUDIO_BATCH = 1024  # frames whose audio is projected at once
LIBRARY_ARGUMENTS = (
    "device_map",
    "disable_mmap",
    "low_cpu_mem_usage",
    "max_memory",
    "offload_folder",
    "offload_state_dict",
    "quantization_config",
    "use_safetensors",
    "variant",
)
"""What `DiffusionPipeline.from_pretrained` takes for files that are there."""
MEDIAN_KERNEL_SIZE = 3  # frames and pixels; as the release does against flicker


class PipelineParts(DiffusionPipeline):
    """The networks, and what encodes and decodes with them.

    Args:
        vae: image autoencoder.
        vae_decoder: one that decodes in its place, of latents at the same scale; None: `vae` does.
        reference_net: portrait latents -> features.
        denoising_unet: predicts a window of frames.
        v_kps_guider: keypoint images -> features.
        audio_projection: audio steps around a frame -> tokens.
        audio_encoder: speech -> hidden states, see `vexpress.audio_encoders`.
        audio_processor: normalises speech for `audio_encoder`, or makes its spectrum.
        attribute_projection: attributes of frames -> tokens; None for a model that knows none.
        scheduler: any that predicts v on the released noise schedule, see `vexpress.diffusion.schedule`.

    Raises:
        ValueError: VAE and guider do not downsample alike.
        InputError: the audio projection takes hidden states of another width.

    Source: paper section 3.
    """

    model_cpu_offload_seq = "audio_encoder->audio_projection->reference_net->denoising_unet->vae->vae_decoder"
    _exclude_from_cpu_offload = ["v_kps_guider"]  # small, and works between windows
    _optional_components = ["attribute_projection", "vae_decoder"]
    _callback_tensor_inputs = list(inputs.TENSOR_INPUTS)
    model_paths: ModelPaths | None = None  # of the files that `from_released` has read

    def __init__(
        self,
        vae: Autoencoder,
        reference_net: ReferenceNet,
        denoising_unet: DenoisingUNet,
        v_kps_guider: VKpsGuider,
        audio_projection: AudioProjection,
        audio_encoder: PreTrainedModel,
        audio_processor: SequenceFeatureExtractor,
        scheduler: SchedulerMixin,
        attribute_projection: AttributeProjection | None = None,
        vae_decoder: Autoencoder | None = None,
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
            attribute_projection=attribute_projection,
            vae_decoder=vae_decoder,
        )
        self.downsampling = vae_downsampling(vae)
        if v_kps_guider.downsampling != self.downsampling:
            factors = f"{v_kps_guider.downsampling}, the VAE by {self.downsampling}"
            raise ValueError(f"the V-Kps guider downsamples by {factors}")
        check_width(audio_encoder.config, audio_projection.config.embedding_dim, "audio_encoder_path")
        self._interrupt = False
        self._num_timesteps = 0
        self._memory_format = torch.contiguous_format  # of autoencoders, which training may own

    def _with_fast_autoencoders(self) -> "PipelineParts":
        """This pipeline, with a layout of memory in which autoencoders are faster on a CPU, see docs/speed.md."""
        self._memory_format = torch.channels_last
        self._lay_out_autoencoders(self._memory_format)
        return self

    def _lay_out_autoencoders(self, memory_format: torch.memory_format) -> None:
        for autoencoder in filter(None, (self.vae, self.vae_decoder)):
            autoencoder.to(memory_format=memory_format)

    @classmethod
    def from_pretrained(cls, folder: str | PathLike, **kwargs) -> "PipelineParts":
        """Loads a folder in the released layout, or one that `save_pretrained` wrote.

        Args:
            folder: the folder; nothing is ever downloaded.
            kwargs: `dtype` or `torch_dtype`, and parts that are used in place of the folder's: `scheduler`, also by its
                name, `vae`, ...; with a folder of `save_pretrained` also what `LIBRARY_ARGUMENTS` names.

        Raises:
            InputError: a file is missing or does not fit, or no such argument.
        """
        if (Path(folder) / "model_index.json").is_file():
            import vexpress.models.whisper_encoder  # noqa: F401 - of what is not imported, diffusers loads no class

            if "audio_encoder" not in kwargs and (Path(folder) / "audio_encoder").is_dir():
                load_audio_config(Path(folder) / "audio_encoder")  # which refuses what would run other code
            names = {*cls._get_signature_keys(cls)[0], "dtype", "torch_dtype", "local_files_only", *LIBRARY_ARGUMENTS}
            if unknown := [name for name in kwargs if name not in names]:
                raise InputError(f"is no argument; there are {', '.join(sorted(names))}", unknown[0])
            for name in {"dtype", "torch_dtype"} & set(kwargs):
                _check_dtype(name, kwargs[name])
            if isinstance(kwargs.get("scheduler"), str):
                kwargs["scheduler"] = build_scheduler(kwargs["scheduler"])
            return super().from_pretrained(folder, **{**kwargs, "local_files_only": True})._with_fast_autoencoders()
        old_name = kwargs.pop("torch_dtype", torch.float32)
        dtype = kwargs.pop("dtype", old_name)
        _check_dtype("dtype", dtype)
        kwargs.pop("local_files_only", None)  # which is so anyway
        return cls.from_released(ModelPaths.from_model_dir(folder, networks_only=bool(kwargs)), dtype, **kwargs)

    @classmethod
    def from_released(
        cls,
        paths: ModelPaths,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        test_stage: str = "stage_3",
        scheduler: str | SchedulerMixin = "ddim",
        vae_decoder_path: str | PathLike | None = None,
        **parts: Any,
    ) -> "PipelineParts":
        """Loads files in the released layout.

        Args:
            paths: where each file is.
            dtype: of all networks.
            device: where weights are read to; "cpu" if model offloading will be enabled.
            test_stage: "stage_1" silences audio attention and motion modules, which that stage has not trained.
            scheduler: a sampler, or its name.
            vae_decoder_path: folder of the image autoencoder that decodes; None: the one that encodes.
            parts: what is used in place of files, by the names of `__init__`'s arguments.

        Raises:
            InputError: a file is missing or does not fit, the decoder has other latents, or there is no such part.
        """
        names = cls._get_signature_keys(cls)[0]
        if unknown := [name for name in parts if name not in names]:
            raise InputError(f"is no part of the pipeline; there are {', '.join(sorted(names))}", unknown[0])
        if isinstance(scheduler, str):
            scheduler = build_scheduler(scheduler)
        loaded = {"scheduler": scheduler, **load_networks(paths, dtype, device, test_stage)}
        if "vae" not in parts:
            loaded["vae"] = load_vae(paths.vae_path, dtype, device)
        if vae_decoder_path is not None:
            loaded["vae_decoder"] = load_vae(vae_decoder_path, dtype, device, "vae_decoder_path")
            kinds = [_latent_kind(vae) for vae in (loaded["vae_decoder"], parts.get("vae") or loaded["vae"])]
            if kinds[0] != kinds[1]:
                problem = "decodes latents of {} px and {} channels, and the model has {} px and {} channels"
                raise InputError(problem.format(*kinds[0], *kinds[1]), "vae_decoder_path", vae_decoder_path)
        if not {"audio_encoder", "audio_processor"} <= set(parts):
            encoder, processor = load_audio_encoder(paths.audio_encoder_path, dtype, device)
            loaded |= {"audio_encoder": encoder, "audio_processor": processor}
        pipeline = cls(**{**loaded, **parts})
        pipeline.model_paths = paths
        return pipeline._with_fast_autoencoders()

    def enable_model_cpu_offload(self, gpu_id: int | None = None, device: torch.device | str | None = None) -> None:
        """Has each network on the accelerator only while it works, and else on the CPU.

        Without an accelerator there is nothing to save, and it is only said so.
        """
        kind = torch.device(device).type if device is not None else get_device()
        if kind == "cpu":
            logger.warning("model offloading saves GPU memory, and the pipeline works on the CPU: it stays as it is")
            return
        super().enable_model_cpu_offload(gpu_id, device)

    def enable_sequential_cpu_offload(self, *args, **kwargs) -> None:
        """Not supported: a dropped condition reads an output bias without running its layer.

        Raises:
            InputError: always.
        """
        raise InputError("is not supported: use enable_model_cpu_offload", "enable_sequential_cpu_offload")

    def _move(self, device: Any) -> torch.device:
        """Brings the networks to the device, if one is given, and says where they work."""
        if device is not None:
            if getattr(self, "_all_hooks", None):
                raise InputError("is chosen by enable_model_cpu_offload", "device", device)
            self.to(inputs.check_device(device), silence_dtype_warnings=True)
        return self._execution_device

    @torch.no_grad()
    def encode_audio(self, waveform: Tensor, num_frames: int, num_pad_audio_frames: int = 2) -> Tensor:
        """Speech (n,) -> audio tokens (1 num_frames m d) of a video as long as the speech."""
        return self.project_audio(audio_windows(self.encode_speech(waveform), num_frames, num_pad_audio_frames))

    @torch.no_grad()
    def encode_speech(self, waveform: Tensor, check: Callable[[], None] = lambda: None) -> Tensor:
        """Speech (n,) -> hidden states (m d) of the audio encoder; see `encode_audio` for `check`."""
        return encode_audio(self.audio_encoder, self.audio_processor, waveform, self._execution_device, check)

    @torch.no_grad()
    def project_audio(self, windows: Tensor) -> Tensor:
        """Audio steps around frames (f n d) -> audio tokens (1 f m d)."""
        return torch.cat([self.audio_projection(part) for part in windows.split(AUDIO_BATCH)])[None]

    @torch.no_grad()
    def project_attributes(self, attributes: Tensor) -> Tensor:
        """Attributes (f 6) on the networks' device, NaN where not known -> attribute tokens (1 f 6 d)."""
        return self.attribute_projection(attributes)[None]

    @torch.no_grad()
    def encode_reference(self, image: Image.Image) -> dict[str, Tensor]:
        """Portrait, RGB -> features of the ReferenceNet: block path -> (1 n d)."""
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 127.5 - 1
        latents = compute_latents(self.vae, pixels.to(self._execution_device, self.vae.dtype))
        return self.reference_net(scale_latents(self.vae, latents))

    @torch.no_grad()
    def encode_kps(self, kps: Tensor, height: int, width: int) -> Tensor:
        """Keypoints (f 3 2) px of (height, width) -> V-Kps features (1 d f h w)."""
        parts = []
        for part in kps.split(FRAMES_PER_BATCH):
            images = torch.from_numpy(np.stack([render_v_kps(points, height, width) for points in part]))
            # Not `_execution_device`, which takes milliseconds; a guider that is offloaded fetches its inputs.
            images = rearrange(images, "f h w c -> 1 c f h w").to(self.v_kps_guider.device) / 255
            parts.append(self.v_kps_guider(images.to(self.v_kps_guider.dtype)))
        return torch.cat(parts, dim=2)

    @torch.no_grad()
    def decode(
        self, latents: Tensor | Iterable[Tensor], median_filter: bool = True, denoise_threshold: float = 0.0
    ) -> Iterator[Tensor]:
        """Decodes latents batch by batch, as frames are asked for.

        Args:
            latents: (1 c f h w), or parts of a clip, in order.
            median_filter: smooths frames over 3x3x3 pixels, against flicker.
            denoise_threshold: of 255; see `stream_denoise`. 0 switches it off.

        Yields:
            (3 H W) float32 in 0..1 on the CPU, one frame after the other.
        """

        vae, device = self.vae_decoder or self.vae, self._execution_device

        def decoded() -> Iterator[Tensor]:
            for piece in [latents] if isinstance(latents, Tensor) else latents:
                for part in rearrange(piece, "1 c f h w -> f c h w").split(FRAMES_PER_BATCH):
                    part = unscale_latents(vae, part.to(device, vae.dtype))
                    yield from (vae.decode(part).sample.float() / 2 + 0.5).clamp(0, 1)

        frames = decoded()
        if median_filter:
            frames = stream_median_filter(frames, MEDIAN_KERNEL_SIZE)
        if denoise_threshold:
            frames = stream_denoise(frames, denoise_threshold / 255)
        for frame in frames:
            yield frame.cpu()
        self.maybe_free_model_hooks()


def _check_dtype(field: str, dtype: Any) -> None:
    if not isinstance(dtype, torch.dtype):
        raise InputError("must be a torch.dtype", field, repr(dtype))


def _latent_kind(vae: Autoencoder) -> tuple[int, int]:
    """Pixels per latent along each side, and channels."""
    return vae_downsampling(vae), vae.config.latent_channels
