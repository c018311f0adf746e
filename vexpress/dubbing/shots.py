"""What a video shows: when each frame is shown, where it cuts, and the face of each shot in every frame."""

import itertools
import logging
import math
import os
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
import torch

from vexpress.media.compositing import Box
from vexpress.media.faces import Face, FaceDetector, head_and_shoulders_box
from vexpress.media.retargeting import measure_pose, smooth_kps
from vexpress.media.video import VideoInfo, check_rate, probe_video, read_frames
from vexpress.options import SamplingOptions
from vexpress.prepare.pieces import Piece, compute_crop, split_into_pieces
from vexpress.prepare.shots import ShotFinder

logger = logging.getLogger(__name__)

MIN_CUT_CHANGE = 15.0  # of 255, PySceneDetect's own default
MIN_TRACK_FRAMES = 5  # what is seen for less is no face, or nobody sees what its mouth does
MIN_FACE_PX = 16
DETECTOR_PX = 512  # to which detectors fit a frame
SMALL_FACE_PX = 160  # of those; a smaller face is looked at once more, by itself
EVEN_SECONDS = 2e-3  # containers round timestamps to a millisecond
MAX_ROOM = 1.3  # a square this much larger than the face asks for is better one that follows it
FOLLOW_SECONDS = 0.5  # standard deviation of the average that makes its path smooth
MAX_SLOWER, MAX_FASTER = 1.5, 1.25  # than the model's rate
EYE_REACH = 0.22  # of a patch around an eye, in distances of the eyes
FRONTAL_RAD = 0.25  # a face turned by this much from the shot's middle is half as good a reference


@dataclass(frozen=True)
class Timeline:
    """When the frames of a video are shown.

    Attributes:
        info: of the file.
        times: (n) seconds from the first frame on.
        spacing: seconds that the last frame is shown for; the median.
        is_even: whether frame i is shown at i / fps.
    """

    info: VideoInfo
    times: np.ndarray
    spacing: float
    is_even: bool

    @property
    def duration_seconds(self) -> float:
        return float(self.times[-1] + self.spacing)

    @property
    def middles(self) -> np.ndarray:
        """(n) seconds: the middle of the time that each frame is shown."""
        return (self.times + np.append(self.times[1:], self.duration_seconds)) / 2


@dataclass(frozen=True)
class Track:
    """One face in consecutive frames of one shot.

    Attributes:
        start: number of its first frame; likewise stop, exclusive.
        kps: (n 3 2) px of the video, smoothed.
        boxes: a square per frame, of one size, that is cut out around the face.
        reference: number of the frame that shows the face best; reference_box is the square in it.
        fades: whether the shot goes on without the face before and after it.
    """

    start: int
    stop: int
    kps: np.ndarray
    boxes: list[Box]
    reference: int
    reference_box: Box
    fades: tuple[bool, bool]


@dataclass(frozen=True)
class _Seen:
    """What one look at a video finds, a list item per frame.

    Attributes:
        times: seconds.
        faces: whom to follow first, and others.
        contrast: (k) of each face's eyes, high where they are sharp and open.
        cuts: numbers of the frames that begin a shot.
    """

    times: list[float]
    faces: list[list[Face]]
    contrast: list[list[float]]
    cuts: list[int]


def find_tracks(
    path: str | os.PathLike,
    detector: FaceDetector,
    options: SamplingOptions,
    choose: str = "largest",
    max_gap: int = 5,
    smoothing: float = 1.0,
    max_seconds: float = float("inf"),
) -> tuple[Timeline, list[Track]]:
    """Looks through a video once.

    Args:
        path: video file.
        detector: finds faces.
        options: `crop_scale` and `crop_face_height` frame the faces.
        choose: whom to follow from the first frame of a shot on: "largest" or "leftmost".
        max_gap: longest gap, in frames, in which a face is still followed.
        smoothing: strength against the detector's noise, see `smooth_kps`.
        max_seconds: the rest of the video is left out.

    Returns:
        When its frames are shown, and the faces that are followed; frames in no track show none.

    Raises:
        InputError: the video cannot be read, or PySceneDetect is not installed.
    """
    info = probe_video(path)
    check_rate(info, path)
    seen = _look_through(path, info.fps, detector, choose, max_seconds)
    timeline = _timeline(info, seen.times)
    tracks = []
    edges = [0, *seen.cuts, len(seen.times)]
    for start, stop in itertools.pairwise(edges):
        boxes = [np.array([face.bbox for face in faces]).reshape(-1, 4) for faces in seen.faces[start:stop]]
        for piece in split_into_pieces(boxes, max_gap, len(boxes) + 1):
            if len(piece.seen) < MIN_TRACK_FRAMES:
                continue
            face_px = float(np.median((piece.boxes[:, 2:] - piece.boxes[:, :2]).max(1)))
            if face_px < MIN_FACE_PX:
                logger.warning("frames %d-%d: a face of %.0f px is too small", start, stop - 1, face_px)
                continue
            tracks.append(_track(piece, (start, stop), seen, timeline, options, smoothing))
    return timeline, tracks


def _look_through(
    path: str | os.PathLike, fps: Fraction, detector: FaceDetector, choose: str, max_seconds: float
) -> _Seen:
    finder = ShotFinder(fps, MIN_CUT_CHANGE)
    seen = _Seen([], [], [], finder.cuts)

    def shown() -> Iterator[np.ndarray]:
        for seconds, frame in read_frames(path):
            if seen.times and seconds - seen.times[0] >= max_seconds:
                return
            seen.times.append(seconds)
            yield frame

    last_frame: np.ndarray | None = None
    for frame in finder.watch(shown()):
        if last_frame is None or not np.array_equal(frame, last_frame):
            faces = _detect(frame, detector)
            faces = sorted(faces, key=lambda face: face.center[0]) if choose == "leftmost" else faces
            contrast = [_eye_contrast(frame, face) for face in faces]
        last_frame = frame
        seen.faces.append(faces)
        seen.contrast.append(contrast)
    return seen


def _detect(frame: np.ndarray, detector: FaceDetector) -> list[Face]:
    """Finds faces; small ones are looked at again in a picture of their own, which makes their points exact."""
    height, width = frame.shape[:2]
    limit = SMALL_FACE_PX * max(height, width) / DETECTOR_PX
    faces = []
    for face in detector.detect(frame):
        if face.size.max() < limit:
            x1, y1, x2, y2 = head_and_shoulders_box(face.bbox, width, height)
            near = detector.detect(np.ascontiguousarray(frame[y1:y2, x1:x2]))
            if near:
                offset = np.float32([x1, y1])
                closest = min(near, key=lambda other: np.abs(other.center + offset - face.center).sum())
                face = replace(closest, bbox=closest.bbox + np.tile(offset, 2), kps=closest.kps + offset)
        faces.append(face)
    return faces


def _eye_contrast(frame: np.ndarray, face: Face) -> float:
    """How sharp and open the eyes are: brightness differs little on closed or blurred ones; the worse eye counts."""
    eyes = face.kps[:2]
    reach = max(2.0, EYE_REACH * float(np.linalg.norm(eyes[1] - eyes[0])))
    values = []
    for x, y in eyes:
        rows, columns = (slice(max(0, round(v - reach)), max(0, round(v + reach) + 1)) for v in (float(y), float(x)))
        patch = frame[rows, columns]
        values.append(float(patch.mean(2).std()) if patch.size else 0.0)
    return min(values)


def _timeline(info: VideoInfo, seconds: list[float]) -> Timeline:
    times = np.array(seconds) - seconds[0]
    spacing = float(statistics.median(np.diff(times))) if len(times) > 1 else float(1 / info.fps)
    is_even = bool(np.abs(times - np.arange(len(times)) / float(info.fps)).max() < EVEN_SECONDS)
    if is_even:
        times, spacing = np.arange(len(times)) / float(info.fps), float(1 / info.fps)
    return Timeline(info, times, spacing, is_even)


def _track(
    piece: Piece,
    shot: tuple[int, int],
    seen: _Seen,
    timeline: Timeline,
    options: SamplingOptions,
    smoothing: float,
) -> Track:
    """The track of a piece of a shot, whose frames count from the shot's first."""
    found = [
        next(i for i, face in enumerate(seen.faces[shot[0] + index]) if np.array_equal(face.bbox, box))
        for index, box in zip(piece.seen, piece.boxes)
    ]
    numbers = piece.seen + shot[0]
    points = np.stack([seen.faces[n][i].v_kps for n, i in zip(numbers, found)]).reshape(len(found), -1)
    start, stop = piece.start + shot[0], piece.stop + shot[0]
    kps = np.stack([np.interp(range(start, stop), numbers, track) for track in points.T], 1).reshape(-1, 3, 2)
    kps = smooth_kps(torch.from_numpy(kps), smoothing).numpy()
    turn = measure_pose(torch.from_numpy(kps))[:, 4].numpy()
    aside = np.abs(turn - np.median(turn))[numbers - start]
    contrast = np.array([seen.contrast[n][i] for n, i in zip(numbers, found)])
    contrast = contrast / (1 + (aside / FRONTAL_RAD) ** 2)
    inner = slice(1, -1) if len(numbers) > MIN_TRACK_FRAMES else slice(None)  # at cuts, frames may be blends
    reference = int(numbers[inner][contrast[inner].argmax()])
    boxes = _boxes(piece, timeline, options)
    return Track(start, stop, kps, boxes, reference, boxes[reference - start], (start > shot[0], stop < shot[1]))


def _boxes(piece: Piece, timeline: Timeline, options: SamplingOptions) -> list[Box]:
    """The squares around a face: one for all frames, as the model's data have it, or one that follows a face far."""
    info, scale, height = timeline.info, options.crop_scale, options.crop_face_height
    left, top, side = compute_crop(piece.boxes, info.width, info.height, (scale - 1) / 2, height)
    wanted = min(scale * float(np.median((piece.boxes[:, 2:] - piece.boxes[:, :2]).max(1))), info.width, info.height)
    if side <= MAX_ROOM * wanted:
        return [Box(left, top, side, side)] * piece.num_frames
    side = round(wanted)
    centres = (piece.boxes[:, :2] + piece.boxes[:, 2:]) / 2
    path = np.stack([np.interp(range(piece.start, piece.stop), piece.seen, track) for track in centres.T], 1)
    path = _average(path, FOLLOW_SECONDS / timeline.spacing) - [side / 2, side * height]
    path = np.rint(np.clip(path, 0, [info.width - side, info.height - side]))
    return [Box(float(x), float(y), side, side) for x, y in path]


def _average(path: np.ndarray, deviation: float) -> np.ndarray:
    """Gaussian average of (n d) over n, its ends held."""
    radius = int(3 * deviation) + 1
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / deviation) ** 2)
    padded = np.pad(path, ((radius, radius), (0, 0)), mode="edge")
    return np.stack([np.convolve(track, kernel / kernel.sum(), mode="valid") for track in padded.T], 1)


def constant_fps(timeline: Timeline, model_fps: float) -> Fraction:
    """The rate at which frames are generated: the video's, or of its parts and multiples one that suits the model."""
    if not timeline.is_even:
        return Fraction(model_fps).limit_denominator(1001)
    fps = timeline.info.fps
    if fps * MAX_SLOWER < model_fps:
        return fps * round(model_fps / float(fps))
    return fps / math.ceil(float(fps) / (MAX_FASTER * model_fps))


def sources(timeline: Timeline, fps: Fraction) -> Iterator[int]:
    """For each frame of the video, the number of the frame at a constant rate that is shown in its middle."""
    return (int(middle * float(fps) + 1e-6) for middle in timeline.middles)
