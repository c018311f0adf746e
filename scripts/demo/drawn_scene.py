"""A drawn film: people in front of a still, textured wall, cut after cut, with every label known.

    shots = [Shot(person, motion, mouth, size_px=200, left_px=100), Shot.empty(num_frames), ...]
    for frame in film(shots, 320, 240): ...

It is what `--paste_back` and dubbing are measured on: unlike the pack's clips, the person is a part of the picture.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from scripts.demo.drawn_faces import render_frame
from scripts.demo.drawn_people import Motion, Person

BACKDROPS = (0.0, 200.0)  # two plain backgrounds: where they show through, a picture is no person


@dataclass(frozen=True)
class Shot:
    """A stretch of film without a cut.

    Attributes:
        wall: (H W 3) uint8, what is behind.
        person: who is seen, at the bottom of the picture; None for nobody.
        motion: of `num_frames` rows; likewise mouth: (f 2).
        size_px: of the square in which the person is drawn.
        left_px: where it begins.
    """

    wall: np.ndarray
    num_frames: int
    person: Person | None = None
    motion: Motion | None = None
    mouth: np.ndarray | None = None
    size_px: int = 0
    left_px: int = 0


@dataclass(frozen=True)
class SceneFrame:
    """One picture of a film.

    Attributes:
        pixels: (H W 3) uint8 RGB.
        kps: (5 2) float32 px, NaN where nobody is seen.
        alpha: (H W) float32, 1 where the person is.
    """

    pixels: np.ndarray
    kps: np.ndarray
    alpha: np.ndarray


def random_wall(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """A wall with spots and lines of many sizes: (H W 3) uint8."""
    wall = np.full((height, width, 3), rng.uniform(90, 170, 3), np.float32)
    for cell_px in (4, 10, 30, 80):
        noise = rng.normal(0, 1, (height // cell_px + 2, width // cell_px + 2, 3)).astype(np.float32)
        wall += 12 * cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    for x in range(0, width, 24):
        wall[:, x : x + 2] -= 30
    return np.clip(wall, 0, 255).astype(np.uint8)


def film(shots: Sequence[Shot]) -> Iterator[SceneFrame]:
    """The frames of all shots, one after the other."""
    for shot in shots:
        for index in range(shot.num_frames):
            yield render_scene(shot, index)


def render_scene(shot: Shot, index: int) -> SceneFrame:
    """One frame of a shot."""
    height, width = shot.wall.shape[:2]
    alpha, kps = np.zeros((height, width), np.float32), np.full((5, 2), np.nan, np.float32)
    if shot.person is None:
        return SceneFrame(shot.wall.copy(), kps, alpha)
    size, left, top = shot.size_px, shot.left_px, height - shot.size_px
    drawn = [
        render_frame(
            replace(shot.person, background=((level,) * 3,) * 2, light=0.0),
            shot.motion.row(index),
            shot.mouth[index],
            size,
        )
        for level in BACKDROPS
    ]
    dark, bright = (frame.pixels.astype(np.float32) for frame in drawn)
    # Brightness falls by rows alone, and the picture's upper corner shows nobody: what shows through is known by row.
    rows = 1 - 0.04 * np.linspace(-1, 1, size, dtype=np.float32)
    own_alpha = 1 - (bright - dark).mean(2) / (BACKDROPS[1] * rows[:, None])
    own_alpha = np.clip(own_alpha, 0, 1)[..., None]
    place = np.s_[top : top + size, left : left + size]
    pixels = shot.wall.astype(np.float32)
    pixels[place] = dark + (1 - own_alpha) * pixels[place]
    alpha[place] = own_alpha[..., 0]
    kps = drawn[0].kps + np.float32([left, top])
    return SceneFrame(np.clip(np.rint(pixels), 0, 255).astype(np.uint8), kps, alpha)
