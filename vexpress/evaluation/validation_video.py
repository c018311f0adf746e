"""A video for looking at during training: a held-out clip and what the networks make of it, side by side."""

import itertools
import logging
from pathlib import Path

import numpy as np
from PIL import Image

from vexpress.data.formats import ClipRecord
from vexpress.diffusion.latents import Autoencoder
from vexpress.diffusion.schedule import build_scheduler
from vexpress.media.video import constant_rate, read_frames, write_video
from vexpress.pipeline import VExpressPipeline
from vexpress.request import load_clip_inputs
from vexpress.training.config import TrainConfig
from vexpress.training.stages import TrainingNetworks
from vexpress.weights import load_audio_encoder

logger = logging.getLogger(__name__)

MOST_FRAMES_PER_WINDOW = 24  # the pipeline's default


def write_validation_video(
    config: TrainConfig, networks: TrainingNetworks, vae: Autoencoder, record: ClipRecord, step: int
) -> None:
    """Generates the start of a clip from its first frame, and puts it beside the true one.

    Args:
        config: of the run; the file goes into `output_dir`/validation.
        networks: in eval mode.
        vae: of the run.
        record: of the clip.
        step: for the file's name.

    Raises:
        InputError: a part of the clip cannot be read.
    """
    size = (config.data.train_width, config.data.train_height)
    inputs = load_clip_inputs(
        record.video,
        record.face_info,
        record.audio or record.video,
        size,
        max_frames=config.validation.num_frames,
    )
    frames = itertools.islice(constant_rate(read_frames(record.video), inputs.fps), inputs.num_frames)
    true = (np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS)) for frame in frames)

    encoder, processor = load_audio_encoder(config.audio_model_path, vae.dtype, vae.device, "audio_model_path")
    pipeline = VExpressPipeline(
        vae=vae,
        **dict(networks.named_children()),
        audio_encoder=encoder,
        audio_processor=processor,
        scheduler=build_scheduler("ddim", config.enable_zero_snr),
    )
    pipeline.set_progress_bar_config(disable=True)
    generated = pipeline(
        **inputs.pipeline_arguments(processor.sampling_rate),
        num_inference_steps=config.validation.num_inference_steps,
        guidance_scale=config.validation.guidance_scale,
        context_frames=min(MOST_FRAMES_PER_WINDOW, networks.denoising_unet.config.motion_max_seq_length),
        num_pad_audio_frames=config.data.num_padding_audio_frames,
        device=vae.device,
        output_type="generator",
    ).frames
    path = Path(config.output_dir) / "validation" / f"step_{step:08d}.mp4"
    path.parent.mkdir(exist_ok=True)
    write_video(path, (np.concatenate(pair, axis=1) for pair in zip(true, generated)), inputs.fps, inputs.audio)
    logger.info("step %d | true and generated side by side: %s", step, path)
