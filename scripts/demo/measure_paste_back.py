"""Measures how crops come back into a picture: which mask, and whether colours are matched.

python -m scripts.demo.measure_paste_back

A drawn head moves in front of a textured wall; its body reaches beyond the crop. What a generator would make is cut out
of the true picture and given other colours. It is set into the picture of the first frame and compared with the truth.
"""

import sys
from dataclasses import replace

import cv2
import numpy as np

from scripts.demo.drawn_people import random_motion, random_person
from scripts.demo.drawn_scene import SceneFrame, Shot, random_wall, render_scene
from vexpress.cli.parser import ArgumentParser
from vexpress.cli.program import run_program
from vexpress.media.compositing import HEAD, Box, Compositor, border_mask, union_mask

WIDTH, HEIGHT, FACE_SHARE = 420, 360, 0.65  # of the drawn square's usual face, so that shoulders reach out of the crop
FRAMES = (0, 12, 24, 36, 48, 59)
GAIN, OFFSET, SLOPE = np.float32([1.04, 0.98, 0.97]), np.float32([3, -4, 2]), 4  # of the other colours


def random_scene(seed: int) -> tuple[list[SceneFrame], Box]:
    """Some frames of a head that moves, and the crop around it in the first one."""
    rng = np.random.default_rng(seed)
    wall = cv2.GaussianBlur(random_wall(rng, WIDTH, HEIGHT), (0, 0), 1.0)
    num_frames = FRAMES[-1] + 1
    motion = random_motion(rng, num_frames, 30.0)
    motion = replace(motion, scale=motion.scale * FACE_SHARE)
    mouth = np.stack([0.5 + 0.5 * np.sin(np.arange(num_frames) / 3), np.full(num_frames, 0.5)], 1)
    shot = Shot(wall, num_frames, random_person(rng), motion, mouth, HEIGHT, 30)
    frames = [render_scene(shot, index) for index in FRAMES]
    x, y = frames[0].kps[:2].mean(0)
    side = round(HEIGHT * FACE_SHARE)
    return frames, Box(round(x - side / 2), round(y - 0.48 * side), side, side)


def recoloured(pixels: np.ndarray) -> np.ndarray:
    """A picture (H W 3) uint8 in other colours, differently so from top to bottom."""
    slope = np.linspace(-SLOPE, SLOPE, len(pixels), dtype=np.float32)[:, None, None]
    return np.clip(np.rint(pixels * GAIN + OFFSET + slope), 0, 255).astype(np.uint8)


def errors(frames: list[SceneFrame], box: Box, mask: np.ndarray, matches: bool) -> float:
    """Mean absolute difference, of 255, of what is made and the truth, over the whole picture."""
    compositor = Compositor(matches)
    cut = np.s_[box.top : box.top + box.height, box.left : box.left + box.width]
    made = [compositor.compose(frames[0].pixels, recoloured(frame.pixels[cut]), mask, box) for frame in frames]
    return float(np.mean([np.abs(one.astype(int) - frame.pixels).mean() for one, frame in zip(made, frames)]))


def main(arguments: list[str] | None = None) -> None:
    """Prints a row per mask."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num_scenes", type=int, default=3)
    args = parser.parse_args(arguments)
    rows: dict[str, list[list[float]]] = {}
    for seed in range(args.num_scenes):
        frames, box = random_scene(seed)
        kps = np.stack([frame.kps[:3] for frame in frames])
        masks = {
            "whole crop": np.ones((box.height, box.width), np.float32),
            "border": border_mask(box),
            "head": union_mask(kps, HEAD, box),
        }
        for name, mask in masks.items():
            rows.setdefault(name, []).append([errors(frames, box, mask, matches) for matches in (False, True)])
        still = np.abs(frames[0].pixels.astype(int) - np.stack([frame.pixels for frame in frames])).mean()
        rows.setdefault("the picture alone", []).append([still, still])
    for name, values in rows.items():
        plain, matched = np.mean(values, axis=0)
        print(f"{name:20} {plain:6.2f} {matched:6.2f}")


if __name__ == "__main__":
    sys.exit(run_program(main))
