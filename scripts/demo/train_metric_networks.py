"""Trains the small networks by which the demo pack measures drawn faces: features for FID and FVD, and a SyncNet.

    python -m scripts.demo.train_metric_networks --data_dir runs/demo/data --output_dir runs/demo/evaluation_networks

Writes fid.pt, fvd.pt (TorchScript with the released detectors' interfaces), syncnet.safetensors, syncnet.json and
report.json. The same command goes on where it was cut off, from `states/`, which goes when all is done.

The features for FID and FVD come from regression: what a picture shows (colours, hair, pose, mouth) or how a
clip moves, and how much the picture or clip was degraded, so that features move with both content and quality.
"""

import dataclasses
import functools
import json
import logging
import math
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from scripts.demo.drawn_faces import render_frame
from scripts.demo.drawn_people import HAIR_STYLES, random_motion, random_person
from vexpress.cli.parser import ArgumentParser
from vexpress.cli.program import run_program, set_up_logging
from vexpress.data.formats import load_face_info, load_metadata
from vexpress.errors import InputError
from vexpress.evaluation.clips import read_clip
from vexpress.evaluation.features import CLIP_FRAMES, EXTRA_FILE
from vexpress.evaluation.frechet import compute_frechet_distance
from vexpress.evaluation.syncnet import (
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
    encode_clip,
    save_syncnet,
    score_sync,
)
from vexpress.files import replacing
from vexpress.media.audio import load_audio

logger = logging.getLogger("train_metric_networks")

SEED, HELDOUT_SEED = 30_000, 40_000
FEATURES = 64
PICTURE_PX, CLIP_PX = 96, 48
FRAMES_PER_PERSON = 4
BATCHES = {"fid": 48, "fvd": 12}
SYNC_CLIPS, SYNC_WINDOWS = 8, 12  # of a batch: clips, and windows of each
SYNC_SIZES = SyncNetConfig(
    crop_px=96, visual_widths=(16, 32, 48, 48, 48, 96), audio_widths=(16, 32, 48, 48, 48, 96), hidden_width=96,
    embedding_width=64,
)  # fmt: skip
HELDOUT_SHARE = 0.1  # of the clips
SAVE_SECONDS = 30
LEARNING_RATES = {"fid": 2e-3, "fvd": 2e-3, "syncnet": 1.5e-3}


# ---- networks ------------------------------------------------------------------------------------------------------


def _block(dimensions: int, width_in: int, width_out: int, kernel, stride, padding) -> nn.Sequential:
    conv, norm = {2: (nn.Conv2d, nn.BatchNorm2d), 3: (nn.Conv3d, nn.BatchNorm3d)}[dimensions]
    return nn.Sequential(conv(width_in, width_out, kernel, stride, padding, bias=False), norm(width_out), nn.ReLU())


class FrameNetwork(nn.Module):
    """Pictures (n 3 H W) uint8 -> features (n 64), or what they are trained on."""

    def __init__(self, num_targets: int, widths: tuple[int, ...] = (16, 32, 48, 64, 96)):
        super().__init__()
        pairs = zip((3, *widths), widths)
        self.layers = nn.Sequential(*(_block(2, a, b, 3, 2, 1) for a, b in pairs))
        self.features = nn.Linear(widths[-1] * (PICTURE_PX // 2 ** len(widths)) ** 2, FEATURES)
        self.head = nn.Linear(FEATURES, num_targets)
        self.size = PICTURE_PX

    def forward(self, images: Tensor, return_features: bool = True) -> Tensor:
        pixels = F.interpolate(
            images.float(), [self.size, self.size], mode="bilinear", align_corners=False, antialias=True
        )
        features = self.features(self.layers(pixels / 127.5 - 1).flatten(1))
        return features if return_features else self.head(features)


class ClipNetwork(nn.Module):
    """Clips (n 3 16 48 48) in -1..1 -> features (n 64), or what they are trained on."""

    def __init__(self, num_targets: int, widths: tuple[int, ...] = (12, 24, 48, 64)):
        super().__init__()
        layers = []
        for a, b in zip((3, *widths), widths):  # in space, then in time
            layers += [_block(3, a, b, (1, 3, 3), (1, 2, 2), (0, 1, 1)), _block(3, b, b, (3, 1, 1), 1, (1, 0, 0))]
        self.layers = nn.Sequential(*layers)
        side = CLIP_PX // 2 ** len(widths)
        self.mix = _block(3, widths[-1], 16, 1, 1, 0)
        self.features = nn.Linear(16 * CLIP_FRAMES * side**2, FEATURES)
        self.head = nn.Linear(FEATURES, num_targets)

    def forward(
        self, clips: Tensor, rescale: bool = False, resize: bool = False, return_features: bool = True
    ) -> Tensor:
        assert not rescale and not resize, "give clips of the right size in -1..1"
        features = self.features(self.mix(self.layers(clips)).flatten(1))
        return features if return_features else self.head(features)


# ---- pictures for FID ----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Drawn frames (n px px 3) uint8 and what they show (n targets), standardised."""

    pixels: np.ndarray
    targets: np.ndarray


def random_pictures(seed: int, num_people: int) -> Pictures:
    """Renders FRAMES_PER_PERSON random moments of each of some random people."""
    pixels, targets = [], []
    for index in range(num_people):
        rng = np.random.default_rng((seed, index))
        person = random_person(rng)
        colours = np.concatenate([person.skin, person.hair, person.lips, person.clothes, *person.background]) / 64
        style = 2.0 * np.eye(len(HAIR_STYLES))[HAIR_STYLES.index(person.hair_style)]
        shape = np.array(
            [10 * person.lip_thickness, 5 * person.head_width, 3 * person.light, 20 * person.brow_thickness]
        )
        for _ in range(FRAMES_PER_PERSON):
            motion, mouth = random_motion(rng, 1, 30, 1.2).row(0), rng.random(2) * [rng.random() > 0.2, 1]
            frame = render_frame(person, motion, mouth, PICTURE_PX)
            pose = frame.kps[:3].ravel() / 8
            pixels.append(frame.pixels)
            targets.append(np.concatenate([colours, style, shape, pose, 6 * mouth, [2 * float(motion.lids)]]))
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


def frame_loss(network: FrameNetwork, pictures: Pictures, rng: np.random.Generator) -> Tensor:
    """Squared error of what a batch of pictures shows and of how it is degraded."""
    chosen = rng.integers(len(pictures.pixels), size=BATCHES["fid"])
    degraded, amounts = zip(*(degrade_picture(rng, pictures.pixels[i]) for i in chosen))
    targets = np.concatenate([pictures.targets[chosen], np.stack(amounts)], 1)
    images = torch.from_numpy(np.stack(degraded)).permute(0, 3, 1, 2)
    return F.mse_loss(network(images, False), torch.from_numpy(targets).float())


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


def load_clips(meta_path: Path, num_clips: int) -> list[DrawnClip]:
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
        clip, info = read_clip(record.video, "--data_dir", 60), load_face_info(record.face_info)
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


def clip_loss(network: ClipNetwork, clips: list[DrawnClip], rng: np.random.Generator) -> Tensor:
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
    found = network(rearrange(pixels, "n f h w c -> n c f h w"), False, False, False)
    return F.mse_loss(found, torch.from_numpy(np.stack(targets)).float())


NUM_CLIP_TARGETS = 6 * CLIP_FRAMES // 2 + 6 + 5


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


# ---- training ------------------------------------------------------------------------------------------------------


def train(
    name: str, network: nn.Module, num_steps: int, folder: Path, compute_loss: Callable[[np.random.Generator], Tensor]
) -> nn.Module:
    """Trains a network from where its state in `folder` stands; the batches depend on nothing but the step."""
    rate = LEARNING_RATES[name]
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=1e-3)
    path, start = folder / f"{name}.pt", 0
    if path.is_file():
        state = torch.load(path, weights_only=True)
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]
        logger.info("%s: goes on at step %d", name, start)
    network.train()
    losses: list[float] = []
    saved = begun = time.monotonic()
    for step in range(start, num_steps):
        warm_up = min(1.0, (step + 1) / 50)
        for group in optimizer.param_groups:
            group["lr"] = rate * warm_up * (0.02 + 0.49 * (1 + math.cos(math.pi * step / num_steps)))
        loss = compute_loss(np.random.default_rng((SEED, step)))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
        if (step + 1) % 100 == 0:
            milliseconds = 1000 * (time.monotonic() - begun) / (step + 1 - start)
            logger.info(
                "%s: step %d of %d, loss %.4f, %.0f ms", name, step + 1, num_steps, np.mean(losses[-100:]), milliseconds
            )
        if time.monotonic() - saved > SAVE_SECONDS or step + 1 == num_steps:
            with replacing(path) as temporary:
                parts = {"network": network.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
                torch.save(parts, temporary)
            saved = time.monotonic()
    return network.eval()


def save_script(path: Path, network: nn.Module, facts: dict) -> torch.jit.ScriptModule:
    """Writes TorchScript with the facts that `vexpress.evaluation.features` reads."""
    script = torch.jit.script(network)
    with replacing(path) as temporary:
        torch.jit.save(script, str(temporary), _extra_files={EXTRA_FILE: json.dumps(facts)})
    return script


# ---- how good they are ---------------------------------------------------------------------------------------------


@torch.no_grad()
def measure_fid(network: nn.Module, pictures: Pictures) -> dict[str, float]:
    """Distances of half of unseen people from the other half as it is, blurred, recoloured and with closed mouths."""
    half = len(pictures.pixels) // 2
    one, other = pictures.pixels[:half], pictures.pixels[half:]

    def features(pixels: np.ndarray) -> np.ndarray:
        parts = torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2).split(64)
        return torch.cat([network(part) for part in parts]).double().numpy()

    reference = features(one)
    changed = {
        "halves": other,
        "blur of 1 px": np.stack([cv2.GaussianBlur(p, (0, 0), 1.0) for p in other]),
        "blur of 2 px": np.stack([cv2.GaussianBlur(p, (0, 0), 2.0) for p in other]),
        "15 % darker": (other * 0.85).astype(np.uint8),
    }
    return {name: compute_frechet_distance(features(pixels), reference) for name, pixels in changed.items()}


@torch.no_grad()
def measure_fvd(network: nn.Module, clips: list[DrawnClip]) -> dict[str, float]:
    """Distances of half of unseen clips from the other half as it is, in disorder, and standing still."""

    def features(of: list[np.ndarray]) -> np.ndarray:
        parts = [frames[: len(frames) // CLIP_FRAMES * CLIP_FRAMES] for frames in of]
        pixels = torch.from_numpy(np.concatenate(parts)).float() / 127.5 - 1
        batches = rearrange(pixels, "(n f) h w c -> n c f h w", f=CLIP_FRAMES).split(16)
        return torch.cat([network(batch) for batch in batches]).double().numpy()

    rng = np.random.default_rng(HELDOUT_SEED)
    smalls = [clip.small for clip in clips]
    one, other = smalls[::2], smalls[1::2]
    changed = {
        "halves": other,
        "disorder": [
            frames[
                np.arange(len(frames)) + rng.integers(0, 3, len(frames)) * (np.arange(len(frames)) < len(frames) - 3)
            ]
            for frames in other
        ],
        "still": [np.repeat(frames[::CLIP_FRAMES], CLIP_FRAMES, 0) for frames in other],
    }
    reference = features(one)
    return {name: compute_frechet_distance(features(of), reference) for name, of in changed.items()}


def measure_sync(network: SyncNet, clips: list[DrawnClip]) -> dict[str, float]:
    """Sync-C and Sync-D of unseen clips, with the sound of others, and how often a shift of 4 frames is found."""
    encoded = []
    for clip in clips:
        num_windows = count_windows(len(clip.crops), len(clip.samples))
        encoded.append(encode_clip(network, clip.crops, compute_mfcc(clip.samples), num_windows))
    true = [score_sync(of.visual, of.audio) for of in encoded]
    shifted = [score_sync(of.visual[:-4], of.audio[4:]) for of in encoded]
    swapped = [score_sync(of.visual, other.audio) for of, other in zip(encoded, encoded[1:] + encoded[:1])]
    return {
        "sync_c": float(np.mean([score.confidence for score in true])),
        "sync_d": float(np.mean([score.distance for score in true])),
        "sync_c of other sound": float(np.mean([score.confidence for score in swapped])),
        "sync_d of other sound": float(np.mean([score.distance for score in swapped])),
        "offset within 1 frame, %": 100 * float(np.mean([abs(score.offset) <= 1 for score in true])),
        "shift of 4 found within 1 frame, %": 100 * float(np.mean([abs(score.offset - 4) <= 1 for score in shifted])),
    }


def main(arguments: list[str] | None = None) -> None:
    """Trains and measures the three networks."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", type=Path, required=True, help="drawn clips, see make_drawn_dataset.py")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--num_people", type=int, default=2000, help="drawn for the features of pictures")
    parser.add_argument("--num_clips", type=int, default=400, help="read at most; a tenth is for measuring")
    parser.add_argument("--fid_steps", type=int, default=2500)
    parser.add_argument("--fvd_steps", type=int, default=1500)
    parser.add_argument("--sync_steps", type=int, default=1200)
    args = parser.parse_args(arguments)
    for name in ("num_people", "num_clips", "fid_steps", "fvd_steps", "sync_steps"):
        if getattr(args, name) < 1:
            raise InputError(f"--{name} {getattr(args, name)}: must be 1 or more")
    set_up_logging()
    output, states = args.output_dir, args.output_dir / "states"
    states.mkdir(parents=True, exist_ok=True)
    read = functools.cache(lambda: load_clips(args.data_dir / "metadata.json", args.num_clips))
    report_path = output / "report.json"
    report = json.loads(report_path.read_text()) if report_path.is_file() else {}

    def split() -> tuple[list[DrawnClip], list[DrawnClip]]:
        clips = read()
        num_heldout = max(2, round(HELDOUT_SHARE * len(clips)))
        return clips[:-num_heldout], clips[-num_heldout:]

    def finish(name: str, figures: dict[str, float]) -> None:
        report[name] = figures
        logger.info("%s: %s", name, ", ".join(f"{what} {value:.3f}" for what, value in figures.items()))
        with replacing(report_path) as temporary:
            temporary.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")

    if "fid" not in report:
        pictures = random_pictures(SEED, args.num_people)
        torch.manual_seed(SEED)
        network = FrameNetwork(pictures.targets.shape[1] + 6)
        train("fid", network, args.fid_steps, states, lambda rng: frame_loss(network, pictures, rng))
        resize = f"{PICTURE_PX} px (bilinear, antialiased), by the network itself"
        script = save_script(output / "fid.pt", network, {"kind": "small, of drawn faces", "resize": resize})
        finish("fid", measure_fid(script, random_pictures(HELDOUT_SEED, max(8, args.num_people // 8))))
    if "fvd" not in report:
        clips, unseen = split()
        torch.manual_seed(SEED)
        network = ClipNetwork(NUM_CLIP_TARGETS)
        train("fvd", network, args.fvd_steps, states, lambda rng: clip_loss(network, clips, rng))
        script = save_script(output / "fvd.pt", network, {"kind": "small, of drawn faces", "frame_px": CLIP_PX})
        finish("fvd", measure_fvd(script, unseen))
    if "syncnet" not in report:
        clips, unseen = split()
        torch.manual_seed(SEED)
        network = SyncNet(SYNC_SIZES)
        train("syncnet", network, args.sync_steps, states, lambda rng: sync_loss(network, clips, rng))
        save_syncnet(output / "syncnet.safetensors", network)
        finish("syncnet", measure_sync(network, unseen))
    shutil.rmtree(states)
    num_bytes = sum(path.stat().st_size for path in output.iterdir())
    print(f"{output}: fid.pt, fvd.pt, syncnet.safetensors, {num_bytes / 1e6:.2f} MB")


if __name__ == "__main__":
    sys.exit(run_program(main))
