"""Pictures that face networks learn from: drawn people in any light and colours, clutter without a face, and damage."""

import dataclasses
import logging

import cv2
import numpy as np

from scripts.demo.drawn_faces import DrawnFrame, render_frame
from scripts.demo.drawn_people import Motion, Person, random_motion, random_person

logger = logging.getLogger("face_pictures")

FACES_SEED, CLUTTER_SEED = 0, 2**30
FRAMES_PER_PERSON = 4
POOL_SIZES_PX = (96, 128, 128, 192)
NUM_CLUTTER = 400
CANVAS_PX = 256  # the detector's pictures are composed at this size, and then halved


@dataclasses.dataclass(frozen=True)
class Pool:
    """What the batches are made of: people with FRAMES_PER_PERSON frames each, and what is around them."""

    people: list[list[DrawnFrame]]
    clutter: list[np.ndarray]


def random_moment(rng: np.random.Generator, amount: float = 1.3) -> tuple[Motion, np.ndarray]:
    """A random pose of the head and state of the mouth, closed lids included."""
    motion = dataclasses.replace(random_motion(rng, 1, 30, amount), lids=rng.choice([1.0, 1.0, rng.random()], (1, 2)))
    aperture = 0.0 if rng.random() < 0.15 else rng.random() ** 1.3
    return motion.row(0), np.array([aperture, rng.random()])


def random_redress(rng: np.random.Generator, person: Person, natural: bool) -> Person:
    """The same face in other light and, half of the time, before another background or in other clothes."""
    other = random_person(rng, natural)
    person = dataclasses.replace(person, light=other.light)
    if rng.random() < 0.5:
        person = dataclasses.replace(person, background=other.background)
    return dataclasses.replace(person, clothes=other.clothes) if rng.random() < 0.5 else person


def random_pool(num_people: int) -> Pool:
    """Renders random people, natural ones first in each pair, and random clutter."""
    people = []
    for index in range(num_people):
        rng = np.random.default_rng((FACES_SEED, index))
        natural = index % 2 == 0
        person = random_person(rng, natural)
        people.append([
            render_frame(random_redress(rng, person, natural), *random_moment(rng), int(rng.choice(POOL_SIZES_PX)))
            for _ in range(FRAMES_PER_PERSON)
        ])  # fmt: skip
        if (index + 1) % 500 == 0:
            logger.info("rendered %d of %d people", index + 1, num_people)
    rng = np.random.default_rng(CLUTTER_SEED)
    return Pool(people, [random_clutter(rng, CANVAS_PX) for _ in range(NUM_CLUTTER)])


def random_clutter(rng: np.random.Generator, size_px: int) -> np.ndarray:
    """A picture (size_px size_px 3) uint8 without a face: plain, a gradient, stripes, noise, grain or shapes."""
    colours = rng.uniform(0, 255, (3, 3))
    y, x = np.mgrid[:size_px, :size_px] / size_px
    direction = rng.normal(size=2)
    along = (x * direction[0] + y * direction[1]) / np.abs(direction).sum()
    kind = rng.choice(["plain", "gradient", "stripes", "noise", "grain", "shapes", "shapes", "shapes"])
    if kind == "plain":
        along = np.zeros_like(along)
    elif kind == "stripes":
        along = np.sign(np.sin(2 * np.pi * rng.uniform(2, 30) * along))
    elif kind == "noise":
        cells = int(rng.choice([4, 8, 16, 64, 256]))
        along = cv2.resize(rng.normal(size=(cells, cells)), (size_px, size_px), interpolation=int(rng.integers(3)))
    pixels = np.clip(colours[0] + along[..., None] * (colours[1] - colours[0]), 0, 255).astype(np.uint8)
    if kind == "grain":
        pixels = rng.integers(0, 256, pixels.shape, np.uint8)
    for _ in range(int(rng.integers(2, 16)) if kind == "shapes" else 0):
        colour = rng.uniform(0, 255, 3).tolist()
        middle, reach = rng.integers(0, size_px, 2), rng.uniform(0.02, 0.4) * size_px
        shape = rng.integers(3)
        if shape == 0:
            corners = middle + rng.normal(0, reach, (int(rng.integers(3, 8)), 2))
            cv2.fillPoly(pixels, [corners.astype(np.int32)], colour, cv2.LINE_AA)
        elif shape == 1:
            axes = [round(reach * factor) for factor in rng.uniform(0.4, 1, 2)]
            cv2.ellipse(pixels, middle.tolist(), axes, rng.uniform(0, 180), 0, 360, colour, -1, cv2.LINE_AA)
        else:
            end, width = rng.integers(0, size_px, 2), int(rng.integers(1, 12))
            cv2.line(pixels, middle.tolist(), end.tolist(), colour, width, cv2.LINE_AA)
    return pixels


def degrade(rng: np.random.Generator, pixels: np.ndarray) -> np.ndarray:
    """Blurs, adds noise, shifts colours, compresses (H W 3) uint8: each of them now and then."""
    if rng.random() < 0.4:
        pixels = cv2.GaussianBlur(pixels, (0, 0), rng.uniform(0.3, 1.5) * len(pixels) / 128)
    if rng.random() < 0.3:
        coarse = int(rng.choice([1, 1, 2, 4]))  # side of a grain in px
        noise = rng.standard_normal((len(pixels) // coarse, pixels.shape[1] // coarse, 3), np.float32)
        noise = cv2.resize(noise * rng.uniform(1, 14), pixels.shape[1::-1])
        pixels = np.clip(pixels + noise, 0, 255).astype(np.uint8)
    if rng.random() < 0.4:
        gain, offset = rng.uniform(0.85, 1.15) * rng.uniform(0.95, 1.05, 3), rng.uniform(-12, 12)
        pixels = np.clip(pixels * gain + offset, 0, 255).astype(np.uint8)
    if rng.random() < 0.3:
        quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(20, 90))]
        pixels = cv2.imdecode(cv2.imencode(".jpg", pixels, quality)[1], cv2.IMREAD_COLOR)
    return pixels


def recoloured(rng: np.random.Generator, pixels: np.ndarray) -> np.ndarray:
    """Exchanges the colours' channels now and then."""
    return np.ascontiguousarray(pixels[..., rng.permutation(3)]) if rng.random() < 0.4 else pixels
