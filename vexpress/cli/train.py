"""Trains one stage.

    python train.py --config training_configs/stage_1.yaml [key=value ...]

The same command resumes where the run was cut off. Several processes: train_stage.sh.
"""

import argparse
import logging
import os
import signal
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image

from vexpress.cli.parser import ArgumentParser
from vexpress.data.formats import ClipRecord, load_face_info
from vexpress.diffusion.schedule import build_scheduler
from vexpress.logs import set_up_logging
from vexpress.media.audio import Audio, load_audio
from vexpress.media.video import constant_rate, probe_video, read_frames, write_video
from vexpress.pipeline import VExpressPipeline
from vexpress.training.config import TrainConfig
from vexpress.training.config_file import load_config
from vexpress.training.setup import describe_plan
from vexpress.training.stages import TrainingNetworks
from vexpress.training.trainer import Trainer
from vexpress.weights import load_audio_encoder

logger = logging.getLogger("vexpress")

EXIT_TERMINATED = 128 + signal.SIGTERM


def build_parser() -> ArgumentParser:
    """The flags; all settings of a run are in its configuration."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True, help="YAML file, e.g. training_configs/stage_1.yaml")
    parser.add_argument("--dry_run", action="store_true", help="print what would be trained, and stop")
    parser.add_argument("overrides", nargs=argparse.REMAINDER, metavar="key=value", help="changes to the configuration")
    return parser


def write_validation_video(
    config: TrainConfig, networks: TrainingNetworks, vae: AutoencoderKL, record: ClipRecord, step: int
) -> None:
    """Generates the start of a clip from its first frame, and puts it beside the true one.

    Args:
        config: of the run; the file goes into `output_dir`/validation.
        networks: in eval mode.
        vae: of the run.
        record: of the clip.
        step: for the file's name.
    """
    size = (config.data.train_width, config.data.train_height)
    info = probe_video(record.video)
    fps = info.fps
    true = [
        np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS))
        for _, frame in zip(range(config.validation.num_frames), constant_rate(read_frames(record.video), fps))
    ]
    audio = load_audio(record.audio or record.video)
    audio = Audio(audio.samples[:, : round(len(true) / float(fps) * audio.sampling_rate_hz)], audio.sampling_rate_hz)
    face_info = load_face_info(record.face_info)
    kps = torch.from_numpy(face_info.kps[: len(true), :3]) * torch.tensor([size[0] / info.width, size[1] / info.height])

    encoder, processor = load_audio_encoder(config.audio_model_path, vae.dtype, vae.device, "audio_model_path")
    pipeline = VExpressPipeline(
        vae=vae,
        **dict(networks.named_children()),
        audio_encoder=encoder,
        audio_processor=processor,
        scheduler=build_scheduler("ddim", config.enable_zero_snr),
    )
    pipeline.set_progress_bar_config(disable=True)
    frames = pipeline(
        Image.fromarray(true[0]),
        audio.resampled_mono(processor.sampling_rate),
        kps,
        num_inference_steps=config.validation.num_inference_steps,
        guidance_scale=config.validation.guidance_scale,
        context_frames=min(24, networks.denoising_unet.config.motion_max_seq_length),
        num_pad_audio_frames=config.data.num_padding_audio_frames,
        device=vae.device,
        output_type="generator",
    ).frames
    path = Path(config.output_dir) / "validation" / f"step_{step:08d}.mp4"
    path.parent.mkdir(exist_ok=True)
    write_video(path, (np.concatenate(pair, axis=1) for pair in zip(true, frames)), fps, audio)
    logger.info("step %d | true and generated side by side: %s", step, path)


def main(arguments: list[str] | None = None) -> None:
    """Configuration -> training."""
    args = build_parser().parse_args(arguments)
    is_main = os.environ.get("RANK", "0") == "0"
    set_up_logging(logging.INFO if is_main else logging.ERROR)
    config = load_config(args.config, args.overrides)
    if args.dry_run:
        print(describe_plan(config))
        return
    on_validation = partial(write_validation_video, config) if config.validation.num_frames else None
    trainer = Trainer(config, on_validation)
    trainer.train()
    if is_main:
        print(f"{config.output_dir}: step {trainer.step} of {config.solver.max_train_steps}, model in export/")
    if trainer.step < config.solver.max_train_steps:  # stopped by SIGTERM; what follows must not take it for done
        sys.exit(EXIT_TERMINATED)
