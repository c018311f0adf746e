"""Drawn talking faces: portraits of many people whose mouths are a known function of the speech, with exact labels.

    person = random_person(rng)                                     # what someone looks like
    motion = random_motion(rng, num_frames, fps)                    # head, lids and gaze, a row per frame
    mouth = mouth_from_speech(waveform, sample_rate_hz, num_frames, fps)
    frame = render_frame(person, motion.row(i), mouth[i], size_px)  # pixels and labels

The first three are drawn_people's.

Face units: half the width of the head is 1, x grows to the viewer's right and y downwards from the middle between the
ears; the eyes are at y -0.08, the mouth at 0.7, the chin at 1.2. Left is the viewer's left.
"""

import functools
from dataclasses import dataclass

import cv2
import numpy as np

from scripts.demo.drawn_people import Colour, Motion, Person, mix_colours
from vexpress.data.formats import FaceInfo
from vexpress.data.transforms import INNER_LIPS, OUTER_LIPS

SUPERSAMPLING = 2
SHIFT_BITS = 4  # of OpenCV's coordinates, for sixteenths of a pixel
FACE_HALF_WIDTH = 0.25  # of the head at scale 1, as a share of the picture's width
EYE_X, EYE_Y, NOSE_Y, MOUTH_Y, CHIN_Y, SKULL_Y = 0.43, -0.08, 0.34, 0.72, 1.22, -1.3
LID_HEIGHT = 0.13
BROW_LIFT, SMILE_LIFT = 0.09, 0.14  # of the brows and of the corners of the mouth, at 1
PROBE_PX = 1  # around a probe, that is compared
LARGEST_APERTURE = 0.42  # height of the opening at aperture 1
MOUTH_HALF_WIDTH = (0.27, 0.47)  # at width 0 and 1

OPENING_COLOUR = (44, 12, 18)
TEETH_COLOUR, TONGUE_COLOUR, EYE_WHITE = (240, 236, 228), (170, 72, 80), (244, 242, 238)


@dataclass(frozen=True)
class DrawnFrame:
    """A picture and where its parts are, in px.

    Attributes:
        pixels: (H W 3) uint8 RGB.
        kps: (5 2) float32: left eye, right eye, nose, left and right corner of the mouth.
        landmarks: (106 2) float32, in insightface's order.
        bbox: (4) float32, x1 y1 x2 y2 from forehead to chin.
        probes: (3 2) float32: places of nothing but skin, hair and background, at least 2 px around.
    """

    pixels: np.ndarray
    kps: np.ndarray
    landmarks: np.ndarray
    bbox: np.ndarray
    probes: np.ndarray


class _Canvas:
    """A picture to paint on, and the way from face units to its pixels."""

    def __init__(self, person: Person, motion: Motion, size_px: int):
        self.pixels_per_unit = FACE_HALF_WIDTH * size_px * float(motion.scale)
        self.size_px = size_px
        self.person = person
        self.turn = float(np.sin(motion.yaw))
        cos, sin = np.cos(motion.roll), np.sin(motion.roll)
        self.rotation = np.array([[cos, sin], [-sin, cos]]) * self.pixels_per_unit  # of rows
        self.centre = size_px * (np.array([0.5, 0.5]) + motion.shift)
        self.pixels = np.empty((size_px * SUPERSAMPLING, size_px * SUPERSAMPLING, 3), np.uint8)

    def place(self, points: np.ndarray, depth: float | None = None) -> np.ndarray:
        """Face units (n 2) -> px (n 2). With yaw, what is in front moves; depth None is on the face's surface."""
        x, y = points.T
        if depth is None:
            depth = np.sqrt(np.clip(1 - 0.75 * x**2 - 0.35 * y**2, 0, 1))
        x = (x * np.sqrt(1 - self.turn**2) + depth * self.turn) * self.person.head_width
        return np.stack([x, y], 1) @ self.rotation + self.centre

    def fill(self, points_px: np.ndarray, colour: Colour) -> None:
        """Fills a polygon (n 2) px."""
        cv2.fillPoly(self.pixels, [self._fixed(points_px)], colour, cv2.LINE_AA, SHIFT_BITS)

    def line(self, points_px: np.ndarray, colour: Colour, width: float) -> None:
        """Paints an open line (n 2) px of a width in face units."""
        thickness = max(1, round(width * self.pixels_per_unit * SUPERSAMPLING))
        cv2.polylines(self.pixels, [self._fixed(points_px)], False, colour, thickness, cv2.LINE_AA, SHIFT_BITS)

    @staticmethod
    def _fixed(points_px: np.ndarray) -> np.ndarray:
        scaled = points_px * SUPERSAMPLING - 0.5  # OpenCV counts from the middle of a pixel
        return np.rint(scaled * 2**SHIFT_BITS).astype(np.int32)


def render_frame(person: Person, motion: Motion, mouth: np.ndarray, size_px: int) -> DrawnFrame:
    """Renders one frame.

    Args:
        person: what they look like.
        motion: one row of a `Motion`.
        mouth: (2) aperture and width, 0..1.
        size_px: width and height of the frame.
    """
    aperture, width = (float(value) for value in mouth)
    canvas = _Canvas(person, motion, size_px)
    top, bottom = (np.array(colour) for colour in person.background)
    rows = np.linspace(0, 1, len(canvas.pixels))[:, None, None]
    canvas.pixels[:] = np.rint(top + (bottom - top) * rows)
    outline = _head_outline(person.jaw, aperture)
    _render_hair_behind(canvas)
    _render_body(canvas, motion)
    for side in (-1, 1):
        ear = _ellipse((side * 1.0, 0.08), (0.14, 0.24))
        canvas.fill(canvas.place(ear, depth=-0.1), mix_colours(person.skin, (90, 40, 30), 0.12))
    canvas.fill(canvas.place(outline, depth=0.0), person.skin)
    person.decorate(canvas, is_in_front=False)
    eyes = [_render_eye(canvas, side, motion) for side in (-1, 1)]
    nose = _render_nose(canvas)
    outer, inner, corners = _render_mouth(canvas, aperture, width, float(motion.smile))
    _render_hair_in_front(canvas)
    person.decorate(canvas, is_in_front=True)
    pixels = cv2.resize(canvas.pixels, (size_px, size_px), interpolation=cv2.INTER_AREA)
    pixels = cv2.multiply(pixels, _light(size_px, round(person.light, 2)), dtype=cv2.CV_8U)
    contour = canvas.place(_contour(outline), depth=0.0)
    landmarks = np.empty((106, 2))
    landmarks[:33] = contour
    for (eye, brow, _), eye_at, brow_at in zip(eyes, (33, 87), (43, 97)):
        landmarks[eye_at : eye_at + 10], landmarks[brow_at : brow_at + 9] = eye, brow
    landmarks[OUTER_LIPS], landmarks[INNER_LIPS] = outer, inner
    landmarks[72:87] = nose
    face = np.concatenate([contour, landmarks[43:52], landmarks[97:106]])
    kps = np.array([eyes[0][2], eyes[1][2], nose[0], *corners])
    skin, hair = canvas.place(np.array([(-0.55, 0.38), (0, -1.16)]), depth=0.0)
    return DrawnFrame(
        pixels,
        kps.astype(np.float32),
        landmarks.astype(np.float32),
        np.concatenate([face.min(0), face.max(0)]).astype(np.float32),
        np.array([skin, hair, (0.05 * size_px, 0.05 * size_px)], np.float32),
    )


def face_info(frames: list[DrawnFrame]) -> FaceInfo:
    """The exact labels of a clip's frames, as a detector would give them."""
    return FaceInfo(
        bbox=np.stack([frame.bbox for frame in frames]),
        kps=np.stack([frame.kps for frame in frames]),
        landmark_2d_106=np.stack([frame.landmarks for frame in frames]),
        det_score=np.ones(len(frames), np.float32),
    )


def probe_errors(pixels: np.ndarray, true: np.ndarray, probes: np.ndarray) -> np.ndarray:
    """(3) mean absolute difference of two pictures (H W 3) around the probes (3 2) px: skin, hair and background."""
    spots = [
        (slice(y - PROBE_PX, y + PROBE_PX + 1), slice(x - PROBE_PX, x + PROBE_PX + 1))
        for x, y in np.rint(probes).astype(int)
    ]
    return np.array([np.abs(pixels[spot].mean((0, 1)) - true[spot].mean((0, 1))).mean() for spot in spots])


def _head_outline(jaw: float, aperture: float) -> np.ndarray:
    """(n 2): clockwise from the top of the skull; the chin follows the mouth a little."""
    angle = np.linspace(0, 2 * np.pi, 73)[:-1]
    sin, cos = np.sin(angle), np.cos(angle)
    chin = CHIN_Y + 0.3 * LARGEST_APERTURE * aperture
    x = np.where(cos > 0, sin, np.sign(sin) * np.abs(sin) ** jaw)
    return np.stack([x, np.where(cos > 0, cos * SKULL_Y, -cos * chin)], 1)


def _contour(outline: np.ndarray) -> np.ndarray:
    """(33 2) from the viewer's left temple around the chin to the right one; 16 is the chin."""
    return outline[52:19:-1]


def _render_hair_behind(canvas: _Canvas) -> None:
    person = canvas.person
    ends = {"long": 1.75, "bob": 0.85}.get(person.hair_style, 0.1)
    volume = 1 + person.hair_volume
    angle = np.linspace(np.pi, 2 * np.pi, 37)
    cap = np.stack([np.cos(angle) * volume, np.sin(angle) * (-SKULL_Y + person.hair_volume)], 1)
    flare = 1.06 if ends > 0.5 else 0.98
    strand = np.array([(volume * flare, ends * 0.6), (volume * flare * 0.92, ends)])
    canvas.fill(canvas.place(np.concatenate([cap, strand, strand[::-1] * [-1, 1]]), depth=-0.25), person.hair)
    if person.hair_style == "bun":
        canvas.fill(canvas.place(_ellipse((0, SKULL_Y - 0.2), (0.42, 0.36)), depth=-0.3), person.hair)


def _render_body(canvas: _Canvas, motion: Motion) -> None:
    """Neck and shoulders, which follow the head by half."""
    person, size_px = canvas.person, canvas.size_px
    unit = FACE_HALF_WIDTH * size_px
    middle = size_px * (np.array([0.5, 0.5]) + 0.5 * motion.shift)
    neck = person.neck_width
    shade = mix_colours(person.skin, (70, 30, 24), 0.25)
    canvas.fill(np.array([(-neck, 0.7), (neck, 0.7), (neck, 1.75), (-neck, 1.75)]) * unit + middle, shade)
    x = np.linspace(neck, 2.2, 12)
    slope = 1.42 + 0.55 * ((x - neck) / (2.2 - neck)) ** 1.6
    right = np.stack([x, slope], 1)
    collar = np.array([(neck * 0.5, 1.66), (0, 1.72), (-neck * 0.5, 1.66)])
    shoulders = np.concatenate([right[::-1], collar, right * [-1, 1], [(-2.2, 3), (2.2, 3)]])
    canvas.fill(shoulders * unit + middle, person.clothes)


def _render_eye(canvas: _Canvas, side: int, motion: Motion) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Paints an eye and its brow; returns their landmarks (10 2) and (9 2) and the eye's middle (2), px."""
    person = canvas.person
    half_width, height = 0.2 * person.eye_size, LID_HEIGHT * person.eye_size
    lids = float(motion.lids[(side + 1) // 2])
    x = np.linspace(-1, 1, 17)
    arch = (1 - x**2) ** 0.7
    tilt = person.eye_tilt * side * x
    upper, lower = EYE_Y + tilt + 0.02 - height * arch * (2 * lids - 1), EYE_Y + tilt + 0.02 + 0.8 * height * arch
    upper = np.minimum(upper, lower)
    x = side * EYE_X + x * half_width
    both = np.concatenate([np.stack([x, upper], 1), np.stack([x, lower], 1)[::-1]])
    canvas.fill(canvas.place(both), EYE_WHITE)
    middle = np.array([side * EYE_X, EYE_Y + 0.02]) + motion.gaze * [0.06, 0.025]
    for radius, colour in ((0.115, person.iris), (0.055, (16, 14, 16))):
        disc = _ellipse(middle, (radius * person.eye_size,) * 2)
        disc[:, 1] = np.clip(disc[:, 1], np.interp(disc[:, 0], x, upper), np.interp(disc[:, 0], x, lower))
        canvas.fill(canvas.place(disc), colour)
    canvas.line(canvas.place(np.stack([x, upper], 1)), mix_colours(person.brow, (24, 18, 18), 0.5), 0.045)

    brow_x = np.linspace(-1, 1, 9)
    brow_y = EYE_Y - 0.3 - 0.06 * (1 - brow_x**2) + person.brow_tilt * side * brow_x - BROW_LIFT * motion.brows
    brow = canvas.place(np.stack([side * EYE_X + brow_x * 0.26, brow_y], 1))
    canvas.line(brow, person.brow, person.brow_thickness)
    around = [0, 4, 8, 12, 16, 20, 24, 28, 32]  # of the outline
    outline = canvas.place(both)
    centre = canvas.place(np.array([(side * EYE_X, EYE_Y)]))
    return np.concatenate([centre, outline[around]]), brow, centre[0]


def _render_nose(canvas: _Canvas) -> np.ndarray:
    """Paints the nose; returns its landmarks (15 2) px, the first one its tip."""
    person = canvas.person
    shade = mix_colours(person.skin, (96, 40, 28), 0.38)
    wing = person.nose_width
    bridge = np.stack([np.full(6, 0.0), np.linspace(EYE_Y, NOSE_Y, 6)], 1)
    angle = np.linspace(0, np.pi, 8)
    base = np.stack([-np.cos(angle) * wing, NOSE_Y + 0.03 + 0.07 * np.sin(angle)], 1)
    shadow_x = np.sign(person.light + 1e-9) * np.array([0.05, 0.09, wing * 0.9])
    shadow = np.stack([shadow_x, [EYE_Y + 0.1, NOSE_Y - 0.12, NOSE_Y + 0.02]], 1)
    canvas.line(canvas.place(shadow, depth=1.1), mix_colours(person.skin, shade, 0.55), 0.045)
    canvas.line(canvas.place(base, depth=1.1), shade, 0.055)
    tip = canvas.place(np.array([(0, NOSE_Y)]), depth=1.15)
    return np.concatenate([tip, canvas.place(bridge), canvas.place(base, depth=1.1)])


def _render_mouth(
    canvas: _Canvas, aperture: float, width: float, smile: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Paints the mouth; returns landmarks around lips (12 2) and opening (8 2), and the corners (2 2), px."""
    person = canvas.person
    half_width = person.mouth_size * np.interp(width, (0, 1), MOUTH_HALF_WIDTH)
    opening = person.mouth_size * LARGEST_APERTURE * aperture
    x = np.linspace(-1, 1, 25)
    arch = np.sqrt(1 - x**2)
    middle = MOUTH_Y + (0.02 - SMILE_LIFT * smile) * x**2
    upper, lower = middle - 0.22 * opening * arch, middle + 0.78 * opening * arch
    thickness = person.lip_thickness * arch**0.8
    cupid = 1 - 0.25 * np.exp(-((x / 0.16) ** 2))
    over, under = upper - 0.8 * thickness * cupid, lower + 1.1 * thickness

    def placed(y: np.ndarray, inset: float = 1.0) -> np.ndarray:
        return canvas.place(np.stack([x * half_width * inset, y], 1))

    def between(one: np.ndarray, other: np.ndarray, inset: float) -> np.ndarray:
        return np.concatenate([placed(one, inset), placed(other, inset)[::-1]])

    canvas.fill(between(over, under, 1.0), person.lips)
    if opening > 0.02:
        canvas.fill(between(upper, lower, 0.9), OPENING_COLOUR)
        tongue = lower - 0.42 * np.maximum(lower - upper - 0.1, 0)
        canvas.fill(between(tongue, lower, 0.62), TONGUE_COLOUR)
        canvas.fill(between(upper, upper + np.minimum(0.08, 0.32 * (lower - upper)), 0.78), TEETH_COLOUR)
    canvas.line(placed(upper, 0.95), mix_colours(person.lips, OPENING_COLOUR, 0.6), 0.035)
    at = [0, 4, 8, 12, 16, 20, 24]
    outer = np.concatenate([placed(over)[at], placed(under)[at[-2:0:-1]]])
    at = [0, 6, 12, 18, 24]
    inner = np.concatenate([placed(upper, 0.9)[at], placed(lower, 0.9)[at[-2:0:-1]]])
    return outer, inner, outer[[0, 6]]


def _render_hair_in_front(canvas: _Canvas) -> None:
    """The hair between the skull and the hairline."""
    person = canvas.person
    volume = 1 + 0.5 * person.hair_volume
    angle = np.linspace(np.pi * 1.02, np.pi * 1.98, 33)
    skull = np.stack([np.cos(angle) * volume, np.sin(angle) * (-SKULL_Y + 0.7 * person.hair_volume)], 1)
    x = np.linspace(1, -1, 25)
    hairline = {
        "short": -0.82 + 0.12 * x**2,
        "fringe": -0.5 - 0.1 * x**2,
        "parted": -0.86 + 0.45 * np.abs(x - 0.35) ** 1.3,
        "long": -0.9 + 0.5 * np.abs(x) ** 1.5,
        "bob": -0.56 + 0.0 * x,
        "bun": -0.92 + 0.4 * x**2,
        "receding": -1.02 + 0.25 * x**2 + 0.12 * np.exp(-((x / 0.3) ** 2)),
    }[person.hair_style]
    hairline = np.stack([x * 0.99, hairline + person.hairline_y], 1)
    sideburn = 0.25 if person.hair_style in ("long", "bob") else -0.15
    left, right = (np.array([(s * volume, sideburn - 0.15), (s * 0.93, sideburn)]) for s in (-1, 1))
    points = np.concatenate(
        [canvas.place(skull, depth=0.0), canvas.place(np.concatenate([right, hairline, left[::-1]]), depth=0.15)]
    )
    canvas.fill(points, person.hair)


@functools.lru_cache(maxsize=64)
def _light(size_px: int, light: float) -> np.ndarray:
    """(H W 3) float32 factors: brighter towards one side and the top."""
    across = np.linspace(-1, 1, size_px)
    field = 1.0 + 0.07 * light * across[None, :] - 0.04 * across[:, None]
    return np.repeat(field[..., None], 3, axis=2).astype(np.float32)


def _ellipse(middle: tuple[float, float] | np.ndarray, radii: tuple[float, float]) -> np.ndarray:
    angle = np.linspace(0, 2 * np.pi, 33)[:-1]
    return np.stack([np.cos(angle), np.sin(angle)], 1) * radii + np.asarray(middle)
