"""What the metric networks learn from: rendered pictures and drawn clips, degraded, and the loss on them."""

import dataclasses
import json
import logging
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from scripts.demo.drawn_faces import render_frame
from scripts.demo.drawn_people import HAIR_STYLES, random_motion, random_person
from vexpress.data.formats import load_face_info, load_metadata
from vexpress.errors import InputError
from vexpress.evaluation.clips import read_clip
from vexpress.evaluation.metric_networks import CLIP_FRAMES
from vexpress.media.audio import load_audio
from vexpress.syncnet import (
    FPS,
    RATE_HZ,
    STEPS_PER_FRAME,
    WINDOW_FRAMES,
    WINDOW_STEPS,
    SyncNet,
    SyncNetConfig,
    compute_mfcc,
    count_windows,
    crop_track,
)

logger = logging.getLogger("metric_tasks")

PICTURE_PX, CLIP_PX = 96, 48
MOMENTS_PER_PERSON = 4
BATCHES = {"fid": 48, "fvd": 12}
SYNC_CLIPS, SYNC_WINDOWS = 8, 12  # of a batch: clips, and windows of each
SYNC_SIZES = SyncNetConfig(
    crop_px=96, visual_widths=(16, 32, 48, 48, 48, 96), audio_widths=(16, 32, 48, 48, 48, 96), hidden_width=96,
    embedding_width=64,
)  # fmt: skip
NUM_DEGRADATIONS = {"fid": 6, "fvd": 5}
NUM_CLIP_TARGETS = 6 * CLIP_FRAMES // 2 + 6 + NUM_DEGRADATIONS["fvd"]


# ---- pictures for FID ----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Drawn frames (n px px 3) uint8 and what they show (n targets), standardised."""

    pixels: np.ndarray
    targets: np.ndarray


def random_pictures(seed: int, num_people: int) -> Pictures:
    """Renders MOMENTS_PER_PERSON random moments of each of some random people."""
    pixels, targets = [], []
    for index in range(num_people):
        rng = np.random.default_rng((seed, index))
        person = random_person(rng)
        colours = np.concatenate([person.skin, person.hair, person.lips, person.clothes, *person.background]) / 64
        style = 2.0 * np.eye(len(HAIR_STYLES))[HAIR_STYLES.index(person.hair_style)]
        shape = np.array(
            [10 * person.lip_thickness, 5 * person.head_width, 3 * person.light, 20 * person.brow_thickness]
        )
        for _ in range(MOMENTS_PER_PERSON):
            motion, mouth = random_motion(rng, 1, 30, 1.2).row(0), rng.random(2) * [rng.random() > 0.2, 1]
            frame = render_frame(person, motion, mouth, PICTURE_PX)
            pose = frame.kps[:3].ravel() / 8
            pixels.append(frame.pixels)
            targets.append(np.concatenate([colours, style, shape, pose, 6 * mouth, 2 * motion.lids]))
    values = np.stack(targets)
    return Pictures(np.stack(pixels), (values - values.mean(0)).astype(np.float32))


def degrade_picture(rng: np.random.Generator, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Blurs, adds noise, changes colours, compresses, each now and then: the picture, and how much of each (6)."""
    amounts = np.where(rng.random(6) < 0.35, rng.random(6), 0).astype(np.float32)
    blur, noise, compression = amounts[:3]
    signs = np.where(rng.random(3) < 0.5, -1, 1) * (amounts[3:] > 0)
    pixels = pixels.astype(np.float32)
    if blur:
        pixels = cv2.GaussianBlur(pixels, (0, 0), 0.2 + 2.5 * blur)
    if noise:
        pixels = pixels + 30 * noise * rng.standard_normal(pixels.shape, np.float32)
    pixels = np.clip(pixels * (1 + 0.25 * signs * amounts[3:]), 0, 255).astype(np.uint8)
    if compression:
        quality = [cv2.IMWRITE_JPEG_QUALITY, round(70 - 60 * float(compression))]
        pixels = cv2.imdecode(cv2.imencode(".jpg", pixels, quality)[1], cv2.IMREAD_COLOR)
    return pixels, 3 * np.concatenate([amounts[:3], signs * amounts[3:]])


def frame_loss(network: nn.Module, pictures: Pictures, rng: np.random.Generator) -> Tensor:
    """Squared error of what a batch of pictures shows and of how it is degraded."""
    chosen = rng.integers(len(pictures.pixels), size=BATCHES["fid"])
    degraded, amounts = zip(*(degrade_picture(rng, pictures.pixels[i]) for i in chosen))
    targets = np.concatenate([pictures.targets[chosen], np.stack(amounts)], 1)
    images = torch.from_numpy(np.stack(degraded)).permute(0, 3, 1, 2)
    return F.mse_loss(network(images), torch.from_numpy(targets).float())


# ---- clips for FVD and SyncNet -------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class DrawnClip:
    """A clip of the dataset.

    Attributes:
        small: (f CLIP_PX CLIP_PX 3) uint8 at the video's rate.
        kps: (f 3 2) in shares of the picture.
        mouth: (f 2).
        crops: (g px px 3) uint8 BGR at 25 fps, as SyncNet sees them.
        samples: (n) at 16 kHz on the scale of int16.
    """

    small: np.ndarray
    kps: np.ndarray
    mouth: np.ndarray
    crops: np.ndarray
    samples: np.ndarray


def load_drawn_clips(meta_path: Path, num_clips: int) -> list[DrawnClip]:
    """Reads clips of a dataset of drawn faces.

    Raises:
        InputError: it has too few clips, or no labels.
    """
    records = load_metadata(meta_path)[:num_clips]
    rows = json.loads(meta_path.read_text(encoding="utf-8"))
    if len(records) < 4 or any("labels" not in row for row in rows):
        raise InputError(f"{meta_path}: needed are 4 or more clips of drawn faces with labels (make_drawn_dataset.py)")
    clips = []
    for index, (record, row) in enumerate(zip(records, rows)):
        clip, info = read_clip(record.video, "data_dir", 60), load_face_info(record.face_info)
        with np.load(meta_path.parent / row["labels"]) as arrays:
            mouth = arrays["mouth"]
        at = clip.at_rate(FPS)
        samples = np.rint(load_audio(record.video).resampled_mono(RATE_HZ).numpy() * 32768)
        small = [cv2.resize(frame, (CLIP_PX, CLIP_PX), interpolation=cv2.INTER_LINEAR) for frame in clip.frames]
        crops = crop_track(clip.frames[at], info.bbox[at], SYNC_SIZES.crop_px)
        kps = info.kps[:, :3] / clip.frames.shape[2:0:-1]
        clips.append(DrawnClip(np.stack(small), kps.astype(np.float32), mouth, crops, samples))
        if (index + 1) % 100 == 0:
            logger.info("read %d of %d clips", index + 1, len(records))
    return clips


def degrade_clip(rng: np.random.Generator, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Flicker, jitter, stalling and blur, each now and then: frames (f px px 3), and how much of each (5)."""
    flicker, jitter, stall, blur, noise = amounts = np.where(rng.random(5) < 0.3, rng.random(5), 0)
    order = np.arange(len(frames))
    if stall:
        order = np.where(rng.random(len(frames)) < 0.7 * stall, np.maximum(order - rng.integers(1, 4), 0), order)
    result = []
    for frame in frames[order].astype(np.float32):
        if jitter:
            shift = np.float32([[1, 0, 0], [0, 1, 0]])
            shift[:, 2] = rng.normal(0, 1.5 * jitter, 2)
            frame = cv2.warpAffine(frame, shift, frame.shape[1::-1], borderMode=cv2.BORDER_REPLICATE)
        if blur:
            frame = cv2.GaussianBlur(frame, (0, 0), 0.2 + 1.3 * blur)
        frame = frame * (1 + 0.2 * flicker * rng.normal()) + 25 * noise * rng.standard_normal(frame.shape, np.float32)
        result.append(frame)
    return np.clip(np.stack(result), 0, 255), 3 * amounts


def clip_loss(network: nn.Module, clips: list[DrawnClip], rng: np.random.Generator) -> Tensor:
    """Squared error of how a batch of clips moves and of how it is degraded."""
    batch, targets = [], []
    for _ in range(BATCHES["fvd"]):
        clip = clips[rng.integers(len(clips))]
        start = int(rng.integers(len(clip.small) - CLIP_FRAMES + 1))
        part = slice(start, start + CLIP_FRAMES)
        frames, amounts = degrade_clip(rng, clip.small[part])
        kps = clip.kps[part]
        motion = np.concatenate(
            [40 * (kps.mean(1) - kps.mean((0, 1))), 8 * (kps[:, 1] - kps[:, 0]), 4 * clip.mouth[part]], 1
        )
        place = 8 * (kps.mean(0).ravel() - 0.5)
        batch.append(frames)
        targets.append(np.concatenate([motion[::2].ravel(), place, amounts]))
    pixels = torch.from_numpy(np.stack(batch)).float() / 127.5 - 1
    found = network(rearrange(pixels, "n f h w c -> n c f h w"))
    return F.mse_loss(found, torch.from_numpy(np.stack(targets)).float())


def sync_loss(network: SyncNet, clips: list[DrawnClip], rng: np.random.Generator) -> Tensor:
    """Cross-entropy of finding a window's speech among that of other moments and clips, and the other way around."""
    visual, speech = [], []
    for index in rng.choice(len(clips), min(SYNC_CLIPS, len(clips)), replace=False):
        clip = clips[index]
        num_windows = count_windows(len(clip.crops), len(clip.samples))
        gain = np.exp(rng.uniform(-1.5, 0.5))
        steps = compute_mfcc(np.clip(np.rint(clip.samples * gain), -32768, 32767)).T
        brightness, blur = 1 + rng.normal(0, 0.06, 3), rng.uniform(0.3, 2.0) * (rng.random() < 0.4)
        for start in rng.choice(num_windows, min(SYNC_WINDOWS, num_windows), replace=False):
            window = clip.crops[start : start + WINDOW_FRAMES].astype(np.float32)
            if blur:
                window = np.stack([cv2.GaussianBlur(frame, (0, 0), blur) for frame in window])
            visual.append(np.clip(window * brightness, 0, 255).astype(np.float32))
            speech.append(steps[None, :, STEPS_PER_FRAME * start :][..., :WINDOW_STEPS])
    crops = rearrange(torch.from_numpy(np.stack(visual)), "n f h w c -> n c f h w")
    distances = torch.cdist(network.encode_frames(crops), network.encode_speech(torch.from_numpy(np.stack(speech))))
    target = torch.arange(len(distances))
    return (F.cross_entropy(-distances, target) + F.cross_entropy(-distances.T, target)) / 2
