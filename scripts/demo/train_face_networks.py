"""Trains small face networks (detection, 106 landmarks, recognition) on drawn faces, and measures them in insightface.

    python -m scripts.demo.train_face_networks --output_dir runs/demo/insightface_models

Half of the people have natural colours, half have any. The same command resumes from `states/`.
Writes models/buffalo_l/*.onnx, the detector's after every save, and report.json.
"""

import functools
import json
import logging
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scripts.demo.drawn_faces import INNER_LIPS, OUTER_LIPS, DrawnFrame
from scripts.demo.face_networks import FINE_PX, LEVELS, NETWORKS, SHRINK, Detector, export_network
from scripts.demo.face_pictures import (
    CANVAS_PX,
    FACES_SEED,
    FRAMES_PER_PERSON,
    Pool,
    degrade,
    random_clutter,
    random_pool,
    recoloured,
)
from scripts.demo.measure_face_networks import measure_networks
from scripts.demo.training_state import SAVE_SECONDS, load_state, save_state
from vexpress.cli.parser import ArgumentParser
from vexpress.cli.program import run_program, set_up_logging
from vexpress.errors import InputError
from vexpress.files import replacing

logger = logging.getLogger("train_face_networks")

DETECTOR_PICTURE_PX = 128
SMALL_LEVEL_PX, LARGE_LEVEL_PX = 165, 125  # in insightface's picture: widest face of the first, narrowest of the second
BATCH_SIZES = {"detection": 16, "landmarks": 16, "recognition": 32}  # of recognition, people with two pictures each
TEMPERATURE = 0.1
LIP_LANDMARK_WEIGHT = 2.0


# ---- the three tasks -----------------------------------------------------------------------------------------------


def centred_tensor(pixels: list[np.ndarray], scale: float) -> Tensor:
    """n (H W 3) uint8 -> (n 3 H W) float32 about 0."""
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float().sub_(127.5).div_(scale)


def compose_picture(rng: np.random.Generator, pool: Pool) -> tuple[np.ndarray, np.ndarray | None]:
    """A picture as the detector sees it, and the five keypoints and the box's corners in it.

    Returns:
        (DETECTOR_PICTURE_PX DETECTOR_PICTURE_PX 3) uint8, and points (7 2) in px of it or None if there is no face.
    """
    kind = rng.random()
    if kind < 0.14:
        return degrade(rng, random_clutter(rng, DETECTOR_PICTURE_PX)), None
    frame = pool.people[rng.integers(len(pool.people))][rng.integers(FRAMES_PER_PERSON)]
    if kind < 0.2:
        return degrade(rng, without_face(rng, frame)), None
    size = len(frame.pixels)
    clutter = pool.clutter[rng.integers(len(pool.clutter))][:, :: int(rng.choice([-1, 1]))]
    clutter = clutter[..., rng.permutation(3)]
    points = np.concatenate([frame.kps, frame.bbox.reshape(2, 2)])
    matrix = np.array([[1.0, 0, 0], [0, 1, 0]]) * CANVAS_PX / size
    if kind > 0.4:
        middle, width = points[5:].mean(0), np.diff(points[5:, 0])[0]
        share = rng.uniform(0.36, 0.75) if rng.random() < 0.6 else math.exp(rng.uniform(math.log(0.1), math.log(0.4)))
        turn = rng.uniform(-10, 10) * (rng.random() < 0.5)
        matrix = cv2.getRotationMatrix2D(middle, turn, share * CANVAS_PX / width)
        room = max(0.0, 0.5 - 0.45 * share)
        matrix[:, 2] += CANVAS_PX * (0.5 + rng.uniform(-room, room, 2)) - middle
    inside = matrix.copy()
    inside[:, 2] += matrix[:, :2].sum(1) / 2 - 0.5  # OpenCV counts from the middle of a pixel
    source = degrade(rng, recoloured(rng, frame.pixels))
    canvas = (CANVAS_PX, CANVAS_PX)
    if rng.random() < 0.5:
        picture = cv2.warpAffine(source, inside, canvas, borderMode=cv2.BORDER_REPLICATE)
    else:
        picture = cv2.warpAffine(source, inside, canvas, dst=clutter.copy(), borderMode=cv2.BORDER_TRANSPARENT)
    points = (points @ matrix[:, :2].T + matrix[:, 2]) * DETECTOR_PICTURE_PX / CANVAS_PX
    end = points.max(0) + rng.uniform(0, 0.3, 2) * DETECTOR_PICTURE_PX
    picture = cv2.resize(picture, (DETECTOR_PICTURE_PX,) * 2, interpolation=cv2.INTER_AREA)
    picture = degrade(rng, picture) if rng.random() < 0.5 else picture
    if rng.random() < 0.15:  # pictures that are not square are filled up with black
        picture[:, int(end[0]) :] = 0
    elif rng.random() < 0.15:
        picture[int(end[1]) :] = 0
    return picture, points


def without_face(rng: np.random.Generator, frame: DrawnFrame) -> np.ndarray:
    """Hair, clothes and background of a frame, or its tiles in disorder: (H W 3) uint8, DETECTOR_PICTURE_PX wide."""
    size = len(frame.pixels)
    if rng.random() < 0.5:
        x1, y1, x2, y2 = np.clip(np.rint(frame.bbox).astype(int), 8, size - 8)
        part = [frame.pixels[y2:], frame.pixels[:y1], frame.pixels[:, :x1], frame.pixels[:, x2:]][rng.integers(4)]
    else:
        count = int(rng.integers(4, 8))
        side = size // count
        tiles = frame.pixels[: count * side, : count * side].reshape(count, side, count, side, 3).swapaxes(1, 2)
        tiles = rng.permutation(tiles.reshape(-1, side, side, 3)).reshape(tiles.shape)
        part = tiles.swapaxes(1, 2).reshape(count * side, count * side, 3)
    return cv2.resize(part, (DETECTOR_PICTURE_PX, DETECTOR_PICTURE_PX), interpolation=cv2.INTER_AREA)


def compute_detection_loss(network: Detector, rng: np.random.Generator, pool: Pool, batch_size: int) -> Tensor:
    """Focal loss of the scores, and the distance of the points in tenths of the face's width."""
    pictures, points = zip(*(compose_picture(rng, pool) for _ in range(batch_size)))
    has_face = torch.tensor([there is not None for there in points])
    nowhere = np.repeat(np.arange(7.0)[:, None], 2, 1)  # any box that is not empty, so that nothing is divided by 0
    points = np.stack([nowhere if there is None else there for there in points])
    points = torch.from_numpy(points).float() * SHRINK / FINE_PX  # in cells of the fine grid
    middle, width = points[:, 5:].mean(1), (points[:, 6, 0] - points[:, 5, 0])  # (n 2), (n)
    loss = torch.zeros(())
    images = centred_tensor(pictures, 128).contiguous(memory_format=torch.channels_last)
    for (stride, _), (logits, found) in zip(LEVELS, network.levels(images)):
        step = stride // FINE_PX
        limits = (0, SMALL_LEVEL_PX) if step == 1 else (LARGE_LEVEL_PX, math.inf)
        wanted = has_face & (width * FINE_PX > limits[0]) & (width * FINE_PX < limits[1])
        rows, columns = (torch.arange(count) * step for count in logits.shape[1:])
        cells = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), -1)  # (h w 2)
        distance = (cells - middle[:, None, None]).norm(dim=-1)
        radius = (0.12 * width).clamp_min(0.75 * step)[:, None, None]
        positive = (distance < radius) & wanted[:, None, None]
        unclear = (distance < 2 * radius) & has_face[:, None, None] & ~positive
        target = positive.float()
        wrong = (target - logits.sigmoid()).abs()
        focal = F.binary_cross_entropy_with_logits(logits, target, reduction="none") * wrong.square() * ~unclear
        loss = loss + focal.sum() / max(1, positive.sum())
        error = (found.unflatten(1, (7, 2)) - points[..., None, None]).abs().mean((1, 2)) / width[:, None, None]
        per_face = (error * positive).sum((1, 2))[wanted] / positive.sum((1, 2))[wanted].clamp_min(1)
        loss = loss + 10 * per_face.sum() / max(1, len(per_face))
    return loss


def compute_landmark_loss(network: nn.Module, rng: np.random.Generator, pool: Pool, batch_size: int) -> Tensor:
    """Mean distance in shares of the crop, times 10; the lips count more. Crops as insightface makes them."""
    crops, landmarks = [], []
    size = NETWORKS["landmarks"][1]
    for _ in range(batch_size):
        frame = pool.people[rng.integers(len(pool.people))][rng.integers(FRAMES_PER_PERSON)]
        middle, side = (frame.bbox[:2] + frame.bbox[2:]) / 2, (frame.bbox[2:] - frame.bbox[:2]).max()
        scale = size / (1.5 * side * math.exp(rng.normal(0, 0.05)))
        middle = middle + rng.normal(0, 0.03, 2) * side
        matrix = np.array([[scale, 0, size / 2 - scale * middle[0]], [0, scale, size / 2 - scale * middle[1]]])
        crops.append(cv2.warpAffine(degrade(rng, recoloured(rng, frame.pixels)), matrix, (size, size)))
        landmarks.append((frame.landmarks @ matrix[:, :2].T + matrix[:, 2]) / (size / 2) - 1)
    weights = torch.ones(106)
    weights[INNER_LIPS + OUTER_LIPS] = LIP_LANDMARK_WEIGHT
    found = network(centred_tensor(crops, 128)).unflatten(1, (106, 2))
    distance = (found - torch.from_numpy(np.stack(landmarks)).float()).square().sum(2).add(1e-8).sqrt()
    return 10 * (distance * weights).mean()


def compute_recognition_loss(network: nn.Module, rng: np.random.Generator, pool: Pool, batch_size: int) -> Tensor:
    """Cross-entropy of finding a person's other picture among all pictures of the batch."""
    from insightface.utils import face_align

    chosen = rng.choice(len(pool.people), min(batch_size, len(pool.people)), replace=False)
    crops = []
    for person in chosen:
        order = rng.permutation(3) if rng.random() < 0.4 else [0, 1, 2]  # another person, so to speak
        for index in rng.choice(FRAMES_PER_PERSON, 2, replace=False):
            frame = pool.people[person][index]
            kps = frame.kps + rng.normal(0, 0.008, (5, 2)) * len(frame.pixels)
            crops.append(face_align.norm_crop(degrade(rng, np.ascontiguousarray(frame.pixels[..., order])), kps))
    embeddings = F.normalize(network(centred_tensor(crops, 127.5)))
    similarity = embeddings @ embeddings.T / TEMPERATURE
    similarity = similarity.masked_fill(torch.eye(len(crops), dtype=torch.bool), -math.inf)
    return F.cross_entropy(similarity, torch.arange(len(crops)) ^ 1)


LOSSES = {
    "detection": compute_detection_loss,
    "landmarks": compute_landmark_loss,
    "recognition": compute_recognition_loss,
}


def train_face_network(name: str, num_steps: int, learning_rate: float, pool: Callable[[], Pool], folder: Path) -> None:
    """Trains a network from where its state in `folder` stands, and exports it with every save."""
    torch.manual_seed(FACES_SEED)
    network = NETWORKS[name][0]().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate, betas=(0.9, 0.99), weight_decay=1e-4)
    state_path, parts = folder / "states" / f"{name}.pt", {"network": network, "optimizer": optimizer}
    start = load_state(state_path, **parts)["step"]
    if start:
        logger.info("%s: resumed at step %d", name, start)
    exports = folder / "models" / "buffalo_l"
    if start >= num_steps:
        export_network(name, network, exports)
        return
    pool = pool()
    losses, since = [], time.time()
    for step in range(start, num_steps):
        rate = learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / num_steps)))
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 100)
        network.train()
        rng = np.random.default_rng((FACES_SEED, 1, step))
        loss = LOSSES[name](network, rng, pool, BATCH_SIZES[name])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            raise FloatingPointError(f"{name}: the loss of step {step} is {losses[-1]}")
        if step + 1 == num_steps or time.time() - since > SAVE_SECONDS:
            pace = (time.time() - since) / len(losses)
            left = (num_steps - step - 1) * pace / 60
            logger.info("%s: step %d of %d, loss %.4f, %.2f s per step, %.0f min left",
                        name, step + 1, num_steps, np.mean(losses), pace, left)  # fmt: skip
            save_state(state_path, parts, step=step + 1)
            export_network(name, network, exports)
            losses, since = [], time.time()


def main(arguments: list[str] | None = None) -> None:
    """Trains, exports and measures the three networks."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output_dir", required=True, type=Path)
    parser.add_argument("--num_people", type=int, default=1200, help="to train on")
    parser.add_argument("--num_heldout_people", type=int, default=96, help="to measure on")
    parser.add_argument("--detection_steps", type=int, default=5000)
    parser.add_argument("--landmarks_steps", type=int, default=4000)
    parser.add_argument("--recognition_steps", type=int, default=900)
    parser.add_argument("--learning_rate", type=float, default=2e-3)
    args = parser.parse_args(arguments)
    for name, least in (("num_people", 2), ("num_heldout_people", 1), *((f"{name}_steps", 1) for name in NETWORKS)):
        if getattr(args, name) < least:
            raise InputError(f"must be {least} or more", name, getattr(args, name))
    set_up_logging()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    for part in ("states", "models/buffalo_l"):
        (args.output_dir / part).mkdir(parents=True, exist_ok=True)
    pool = functools.cache(lambda: random_pool(args.num_people))
    for name in NETWORKS:
        train_face_network(name, getattr(args, f"{name}_steps"), args.learning_rate, pool, args.output_dir)
    report = measure_networks(args.output_dir, args.num_heldout_people)
    with replacing(args.output_dir / "report.json") as temporary:
        temporary.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    sys.exit(run_program(main))
