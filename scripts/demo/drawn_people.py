"""Who the drawn people are, how they move, and what their mouths do to speech.

Face units: half the width of the head is 1, see drawn_faces.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.ndimage
import scipy.signal

Colour = tuple[float, float, float]  # RGB, 0..255

# From light to dark. Anyone is between two neighbours, with a little hue of their own.
SKIN_COLOURS = ((246, 214, 190), (232, 190, 158), (214, 164, 126), (188, 134, 96), (156, 106, 74), (122, 82, 58))
HAIR_COLOURS = (
    (34, 28, 28),
    (60, 42, 34),
    (98, 66, 42),
    (140, 82, 46),
    (190, 146, 84),
    (214, 186, 128),
    (150, 146, 144),
)
EYE_COLOURS = ((70, 48, 32), (96, 120, 84), (86, 122, 158), (110, 90, 60))
BACKGROUND_COLOURS = (
    (196, 208, 218), (206, 214, 196), (222, 208, 190), (208, 196, 212), (176, 194, 196), (218, 196, 190),
    (150, 166, 182),
)  # fmt: skip
CLOTHES_COLOURS = (
    (58, 78, 112),
    (122, 56, 60),
    (70, 100, 80),
    (96, 92, 104),
    (190, 186, 180),
    (158, 120, 72),
    (60, 56, 62),
)
LIP_TINT = (172, 62, 72)

HAIR_STYLES = ("short", "fringe", "parted", "long", "bob", "bun", "receding")

LOUD_PERCENTILE = 90
ENERGY_SMOOTHING_SECONDS, WIDTH_SMOOTHING_SECONDS = 0.045, 0.06  # standard deviations
LOW_BAND_HZ, HIGH_BAND_HZ = (150, 1000), (1500, 5000)
SILENCE_LEVEL = 0.06  # of the loud level; below this the mouth is closed


@dataclass(frozen=True)
class Person:
    """What someone looks like. Lengths in face units, colours RGB 0..255."""

    skin: Colour
    hair: Colour
    brow: Colour
    lips: Colour
    iris: Colour
    clothes: Colour
    background: tuple[Colour, Colour]
    """At the top and at the bottom."""
    hair_style: str
    hairline_y: float
    hair_volume: float
    jaw: float
    """0.7 is a square jaw, 1 a round one."""
    head_width: float
    eye_size: float
    eye_tilt: float
    brow_thickness: float
    brow_tilt: float
    nose_width: float
    mouth_size: float
    lip_thickness: float
    neck_width: float
    light: float
    """-1..1, from which side."""

    def decorate(self, canvas: Any, is_in_front: bool) -> None:
        """Paints what only some styles have, see drawn_styles: on bare skin, or in front of all else."""


@dataclass(frozen=True)
class Motion:
    """Head and eyes over time, arrays of one row per frame.

    Attributes:
        shift: (f 2) shares of the picture's size.
        roll, yaw: (f) rad.
        scale: (f) about 1.
        lids: (f 2) of the left and the right eye, 0 closed .. 1 open.
        gaze: (f 2) -1..1, x to the viewer's right and y downwards.
        brows: (f) -1 lowered .. 1 raised, 0 at rest.
        smile: (f) 0 at rest .. 1.
    """

    shift: np.ndarray
    roll: np.ndarray
    yaw: np.ndarray
    scale: np.ndarray
    lids: np.ndarray
    gaze: np.ndarray
    brows: np.ndarray
    smile: np.ndarray

    def row(self, index: int) -> "Motion":
        """The state in one frame."""
        return Motion(*(values[index] for values in vars(self).values()))

    @property
    def attributes(self) -> np.ndarray:
        """(f 6) float32: lids of the left and the right eye, gaze x and y, brows, smile."""
        columns = (self.lids, self.gaze, self.brows[:, None], self.smile[:, None])
        return np.concatenate(columns, 1).astype(np.float32)


def random_person(rng: np.random.Generator, natural: bool = True) -> Person:
    """Chooses what someone looks like; `natural=False` gives any colours, so that detectors do not rely on them."""

    def between(low: float, high: float) -> float:
        return float(rng.uniform(low, high))

    def near(colours: tuple[Colour, ...], spread: float) -> Colour:
        chosen = np.array(colours[rng.integers(len(colours))]) + rng.normal(0, spread) + rng.normal(0, spread / 2, 3)
        return _colour(chosen if natural else rng.uniform(20, 250, 3))

    place = between(0, len(SKIN_COLOURS) - 1.001)
    lighter, darker = (np.array(SKIN_COLOURS[int(place) + i], float) for i in (0, 1))
    skin = _colour(
        mix_colours(lighter, darker, place % 1) + rng.normal(0, 2.5, 3) if natural else rng.uniform(70, 250, 3)
    )
    hair = near(HAIR_COLOURS, 6)
    background = np.array(near(BACKGROUND_COLOURS, 8))
    return Person(
        skin=skin,
        hair=hair,
        brow=mix_colours(hair, (40, 30, 26), 0.4),
        lips=mix_colours(skin, LIP_TINT, between(0.45, 0.75)),
        iris=near(EYE_COLOURS, 5),
        clothes=near(CLOTHES_COLOURS, 10),
        background=(_colour(background + between(0, 16)), _colour(background - between(0, 30))),
        hair_style=HAIR_STYLES[rng.integers(len(HAIR_STYLES))],
        hairline_y=between(-0.08, 0.08),
        hair_volume=between(0.1, 0.24),
        jaw=between(0.68, 1.0),
        head_width=between(0.93, 1.05),
        eye_size=between(0.9, 1.15),
        eye_tilt=between(-0.03, 0.03),
        brow_thickness=between(0.05, 0.09),
        brow_tilt=between(-0.05, 0.05),
        nose_width=between(0.12, 0.2),
        mouth_size=between(0.92, 1.1),
        lip_thickness=between(0.07, 0.12),
        neck_width=between(0.5, 0.62),
        light=between(-1, 1),
    )


def random_motion(
    rng: np.random.Generator,
    num_frames: int,
    fps: float,
    amount: float = 1.0,
    blink_rate: float = 1.0,
    glance_rate: float = 1.0,
) -> Motion:
    """Makes random smooth motion of head, lids, gaze, brows and smile.

    Args:
        rng: says what happens.
        num_frames: of the motion; likewise `fps`.
        amount: scales the head's motion, 0 holds it still.
        blink_rate: how much more often than people the face blinks.
        glance_rate: how much more often, and further, than people it looks aside.
    """

    def wander(reach: float, seconds: float) -> np.ndarray:
        """A smooth walk with a standard deviation of about `reach`, within three of them."""
        width = seconds * fps
        walk = scipy.ndimage.gaussian_filter1d(rng.normal(size=num_frames + int(6 * width)), width, mode="wrap")
        walk = walk[int(3 * width) :][:num_frames] * np.sqrt(2 * np.sqrt(np.pi) * width)  # back to variance 1
        return reach * np.clip(walk, -3, 3)

    lids = np.ones((num_frames, 2))
    blink = rng.uniform(0.3, 3) * fps
    while blink < num_frames:
        eyes = rng.choice([[1, 1], [1, 1], [1, 1], [1, 0], [0, 1]])  # some wink, so that each eye is learned by itself
        closing = np.clip(np.abs(np.arange(num_frames) - blink) / (0.1 * fps) - 0.25, 0, 1)
        lids = np.minimum(lids, 1 - eyes * (1 - closing)[:, None])
        blink += rng.uniform(1.5, 4.5) / blink_rate * fps
    if rng.random() < 0.3:  # narrow eyes, which a blink alone shows for a frame or two
        lids = lids * np.clip(0.7 + wander(0.2, 0.4), 0.3, 1)[:, None]
    hold = round(12 / glance_rate)  # frames
    glances = np.repeat(rng.normal(0, 0.5 * glance_rate, (num_frames // hold + 1, 2)), hold, axis=0)[:num_frames]
    glances = scipy.ndimage.gaussian_filter1d(glances, 1.0, axis=0, mode="nearest")
    start = rng.normal(size=5) * [0.015, 0.012, 0.04, 0.12, 0.03]
    return Motion(
        shift=np.stack([start[0] + wander(0.012, 0.5), start[1] + wander(0.009, 0.5)], 1) * amount,
        roll=(start[2] + wander(0.035, 0.6)) * amount,
        yaw=(start[3] + wander(0.09, 0.7)) * amount,
        scale=np.exp((start[4] + wander(0.015, 0.8)) * amount),
        lids=lids,
        gaze=np.clip(glances, -1, 1),
        brows=np.clip(0.3 * rng.normal() + wander(0.5, 0.35), -1, 1),
        smile=np.clip(max(0.0, 0.4 * rng.normal()) + wander(0.35, 0.5), 0, 1),
    )


def mouth_from_speech(waveform: np.ndarray, sample_rate_hz: int, num_frames: int, fps: float) -> np.ndarray:
    """Computes what the mouth does: open where it is loud, wide where high frequencies prevail, closed in silence.

    Both are relative to the clip's own loud level, so the recording's volume does not matter.

    Args:
        waveform: (n) mono.
        sample_rate_hz: of the waveform; 12 kHz or more.
        num_frames: of the video; likewise its fps.

    Returns:
        (num_frames 2) float32, 0..1: aperture and width, at the middle of each frame.
    """
    step_hz = 200.0
    num_steps = int(np.ceil(num_frames / fps * step_hz)) + 1

    def level(band_hz: tuple[float, float], smoothing_seconds: float) -> np.ndarray:
        """(num_steps) root mean square within a band of frequencies."""
        filter_ = scipy.signal.butter(2, band_hz, "bandpass", fs=sample_rate_hz, output="sos")
        power = np.square(scipy.signal.sosfiltfilt(filter_, waveform.astype(np.float64)))
        edges = (np.arange(num_steps + 1) / step_hz * sample_rate_hz).astype(int)
        sums = np.concatenate([[0], np.cumsum(power)])[np.minimum(edges, len(power))]
        power = np.diff(sums) / np.maximum(1, np.diff(edges))
        return np.sqrt(np.maximum(scipy.ndimage.gaussian_filter1d(power, smoothing_seconds * step_hz), 0))

    energy = level((80, 5500), ENERGY_SMOOTHING_SECONDS)
    loud = max(np.percentile(energy[energy > 0.1 * energy.max()], LOUD_PERCENTILE) if energy.any() else 0, 1e-5)
    relative = energy / loud
    aperture = np.clip((relative - SILENCE_LEVEL) / (1 - SILENCE_LEVEL), 0, 1) ** 0.75
    low, high = (level(band, WIDTH_SMOOTHING_SECONDS) for band in (LOW_BAND_HZ, HIGH_BAND_HZ))
    balance = np.log((high + 0.01 * loud) / (low + 0.01 * loud))
    spoken = np.clip((relative - SILENCE_LEVEL) / 0.15, 0, 1)  # at rest, the width is in the middle
    width = 0.5 + spoken * np.clip((balance + 1.2) / 3.2, -0.5, 0.5)
    mouth = scipy.ndimage.gaussian_filter1d(np.stack([aperture, width], 1), 0.012 * step_hz, axis=0)
    middles = (np.arange(num_frames) + 0.5) / fps
    times = (np.arange(num_steps) + 0.5) / step_hz
    return np.stack([np.interp(middles, times, track) for track in mouth.T], 1).astype(np.float32)


def mix_colours(one: Colour, other: Colour, share: float) -> Colour:
    """So much of the other colour in the one, 0..1."""
    return _colour(np.asarray(one) * (1 - share) + np.asarray(other) * share)


def _colour(values: np.ndarray) -> Colour:
    return tuple(float(value) for value in np.clip(values, 0, 255))
