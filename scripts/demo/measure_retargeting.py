"""Measures retargeting with drawn people, whose pose is known, and shows it on real clips.

    python -m scripts.demo.measure_retargeting [--samples_dir ../shared/samples --sheet_path runs/retargeting.png]

One drawn person moves as another one does: the renderer says where the keypoints must be.
"""

import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from scripts.demo.drawn_faces import render_frame
from scripts.demo.drawn_people import Motion, Person, random_motion, random_person
from vexpress.cli.parser import ArgumentParser
from vexpress.cli.program import run_program
from vexpress.files import replacing
from vexpress.media.images import load_image
from vexpress.media.keypoints import load_kps, retarget
from vexpress.media.mtcnn import MtcnnDetector
from vexpress.media.retargeting import relative_retarget
from vexpress.media.video import read_frames

FRAME_PX, RENDERED_PX = 512, 32  # points are exact at any size of the picture
FPS = 30.0
RELEASED = ("fix_face", "no_retarget", "offset_retarget", "naive_retarget")
SCALES, MAX_ROLL_DEGREES, MAX_YAW_DEGREES, MAX_SHIFT = (0.5, 2.0), 20, 25, 0.12
NOISE_PX = 0.5
FIRST_FRAMES = 5
POINT_COLOURS = ((255, 60, 60), (60, 220, 60), (80, 120, 255))


@dataclass(frozen=True)
class Pair:
    """One person's motion, another one's portrait, and the other one moved by it: (f 3 2), (3 2), (f 3 2) px."""

    driving: Tensor
    reference: Tensor
    true: Tensor


def v_kps(person: Person, motion: Motion) -> Tensor:
    """Where the renderer says that eyes and nose are, (f 3 2) float32 px of a frame of FRAME_PX."""
    frames = [render_frame(person, motion.row(i), np.zeros(2), RENDERED_PX).kps[:3] for i in range(len(motion.roll))]
    return torch.from_numpy(np.stack(frames)) * (FRAME_PX / RENDERED_PX)


def random_pair(rng: np.random.Generator, num_frames: int) -> Pair:
    """Two people, each with a size, place, roll and turn of their own, and a random motion of the one.

    The motion that both make is measured from its median over the clip: shift in sizes of the face, size as a factor,
    roll and yaw as angles that are added.
    """
    wander = random_motion(rng, num_frames, FPS)
    people, rests = [random_person(rng) for _ in range(2)], [_random_rest(rng) for _ in range(2)]

    def moved(rest: dict, motion: Motion) -> Motion:
        return dataclasses.replace(
            motion,
            shift=rest["shift"] + rest["scale"] * (motion.shift - np.median(motion.shift, axis=0)),
            roll=rest["roll"] + motion.roll - np.median(motion.roll),
            yaw=rest["yaw"] + motion.yaw - np.median(motion.yaw),
            scale=rest["scale"] * motion.scale / np.median(motion.scale),
        )

    zeros, two = np.zeros(1), np.zeros((1, 2))
    still = Motion(shift=two, roll=zeros, yaw=zeros, scale=zeros + 1, lids=two + 1, gaze=two, brows=zeros, smile=zeros)
    return Pair(
        driving=v_kps(people[0], moved(rests[0], wander)),
        reference=v_kps(people[1], moved(rests[1], still))[0],
        true=v_kps(people[1], moved(rests[1], wander)),
    )


def _random_rest(rng: np.random.Generator) -> dict:
    return {
        "shift": rng.uniform(-MAX_SHIFT, MAX_SHIFT, 2),
        "scale": np.exp(rng.uniform(*np.log(SCALES))),
        "roll": np.radians(rng.uniform(-MAX_ROLL_DEGREES, MAX_ROLL_DEGREES)),
        "yaw": np.radians(rng.uniform(-MAX_YAW_DEGREES, MAX_YAW_DEGREES)),
    }


def add_noise(kps: Tensor, seed: int, noise_px: float = NOISE_PX) -> Tensor:
    """Keypoints with a detector's noise of so many px rms in each coordinate."""
    return kps + noise_px * torch.randn(kps.shape, generator=torch.Generator().manual_seed(seed))


def measure_errors(pairs: Sequence[Pair], noise_px: float = 0.0) -> dict[str, float]:
    """Mean distance to the true points in % of the frame's width, for each strategy."""
    errors: dict[str, list[float]] = {}
    for i, pair in enumerate(pairs):
        driving = add_noise(pair.driving, i, noise_px) if noise_px else pair.driving
        made = {name: retarget(driving, pair.reference, name) for name in RELEASED}
        made["relative_retarget"] = relative_retarget(driving, pair.reference)
        for name, kps in made.items():
            errors.setdefault(name, []).append((kps - pair.true).norm(dim=-1).mean().item())
    return {name: 100 * float(np.mean(values)) / FRAME_PX for name, values in errors.items()}


def measure_jitter(num_clips: int, num_frames: int = 150) -> float:
    """What is left of the detector's noise on a still head, px rms in each coordinate, with a face of the same size."""
    rng = np.random.default_rng(1)
    powers = []
    for i in range(num_clips):
        still = random_motion(rng, 1, FPS, amount=0)
        face = v_kps(random_person(rng), still)
        made = relative_retarget(add_noise(face.expand(num_frames, -1, -1), i), face[0])
        powers.append((made - made.mean(dim=0)).square().mean().item())
    return float(np.sqrt(np.mean(powers)))


def measure_start(pairs: Sequence[Pair]) -> float:
    """Largest step from frame to frame at the start, in % of the frame's width beyond the true one; noisy input."""
    excess = []
    for i, pair in enumerate(pairs):
        steps = [
            kps[: FIRST_FRAMES + 1].diff(dim=0).norm(dim=-1).max().item()
            for kps in (relative_retarget(add_noise(pair.driving, i), pair.reference), pair.true)
        ]
        excess.append(steps[0] - steps[1])
    return 100 * max(excess) / FRAME_PX


def measure(num_pairs: int, num_frames: int) -> dict:
    """All figures."""
    rng = np.random.default_rng(0)
    pairs = [random_pair(rng, num_frames) for _ in range(num_pairs)]
    errors = measure_errors(pairs)
    best = min(errors[name] for name in RELEASED)
    return {
        "pairs": num_pairs,
        "mean error, % of the frame's width": {name: round(value, 3) for name, value in errors.items()},
        "relative to the best released strategy": round(errors["relative_retarget"] / best, 3),
        f"the same with noise of {NOISE_PX} px": {
            name: round(value, 3) for name, value in measure_errors(pairs, NOISE_PX).items()
        },
        f"jitter of a still head under noise of {NOISE_PX} px rms, px rms": round(measure_jitter(50), 3),
        "largest step at the start beyond the true one, % of the frame's width": round(measure_start(pairs), 3),
    }


def render_sheet(samples_dir: Path, num_columns: int = 8) -> Image.Image:
    """Portraits of real clips with the keypoints that another clip drives them by.

    A block per pair of driving clip and portrait: the driving frames with their keypoints, then the portrait with those
    of relative_retarget and of naive_retarget.
    """
    rows = []
    for driver, portrait in (("clip_a", "clip_b"), ("clip_b", "clip_a"), ("clip_c", "clip_a")):
        image = np.asarray(load_image(samples_dir / portrait / "ref.jpg").resize((FRAME_PX, FRAME_PX)))
        reference = torch.from_numpy(MtcnnDetector().detect(image)[0].v_kps)
        kps = load_kps(samples_dir / driver / "kps.pth").kps
        numbers = np.linspace(0, len(kps) - 1, num_columns).round().astype(int)
        video = samples_dir / driver / "gt.mp4"
        blank = np.zeros_like(image)
        frames = [frame for _, frame in read_frames(video)] if video.exists() else [blank] * len(kps)
        rows.append([_marked(frames[min(i, len(frames) - 1)], kps[i]) for i in numbers])
        for made in (relative_retarget(kps, reference), retarget(kps, reference, "naive_retarget")):
            rows.append([_marked(image, made[i]) for i in numbers])
    sheet = np.concatenate([np.concatenate(row, axis=1) for row in rows])
    return Image.fromarray(sheet).reduce(3)


def _marked(frame: np.ndarray, kps: Tensor) -> np.ndarray:
    frame = cv2.resize(frame, (FRAME_PX, FRAME_PX))
    points = kps.round().int().tolist()
    for eye in points[:2]:
        cv2.line(frame, eye, points[2], (255, 255, 255), 3, cv2.LINE_AA)
    for point, colour in zip(points, POINT_COLOURS):
        cv2.circle(frame, point, 9, colour, -1, cv2.LINE_AA)
    return frame


def main(arguments: list[str] | None = None) -> None:
    """Prints the figures."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num_pairs", type=int, default=200)
    parser.add_argument("--num_frames", type=int, default=60)
    parser.add_argument("--samples_dir", type=Path, help="real clips to show it on")
    parser.add_argument(
        "--sheet_path", type=Path, default=Path("runs/retargeting.png"), help="picture of them to write"
    )
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    print(json.dumps(measure(args.num_pairs, args.num_frames), indent=1))
    if args.samples_dir is not None:
        args.sheet_path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(args.sheet_path) as temporary:
            render_sheet(args.samples_dir).save(temporary, format="PNG")
        print(args.sheet_path)


if __name__ == "__main__":
    sys.exit(run_program(main))
