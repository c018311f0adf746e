"""Shots and faces of drawn films, whose cuts, points and lids are known."""

from fractions import Fraction

import numpy as np
import pytest

from scripts.demo.drawn_people import random_motion, random_person
from scripts.demo.drawn_scene import Shot, film, random_wall
from tests.clips import encode_video
from vexpress.dubbing.shots import Timeline, _detect, constant_fps, find_tracks, sources
from vexpress.media.faces import Face, FaceDetector
from vexpress.media.video import VideoInfo, write_video
from vexpress.options import SamplingOptions

WIDTH, HEIGHT, FPS = 160, 120, 25
OPTIONS = SamplingOptions(crop_scale=2.0, crop_face_height=0.6)


class Known(FaceDetector):
    """Gives, frame by frame, the faces that a film's labels say; a closer look finds nothing more."""

    def __init__(self, faces: list[list[Face]]):
        self._faces = iter(faces)

    def detect(self, image):
        return next(self._faces) if image.shape[:2] == (HEIGHT, WIDTH) else []


def face_at(kps: np.ndarray, side: float) -> Face:
    middle = kps.mean(0)
    bbox = np.concatenate([middle - side / 2, middle + side / 2])
    return Face(bbox.astype(np.float32), kps.astype(np.float32), 0.9)


def shot(seed: int, num_frames: int, left: int = 40, size: int = 90, wall: np.ndarray | None = None) -> Shot:
    rng = np.random.default_rng(seed)
    wall = random_wall(rng, WIDTH, HEIGHT) if wall is None else wall
    mouth = np.tile([[0.4, 0.5]], (num_frames, 1))
    return Shot(wall, num_frames, random_person(rng), random_motion(rng, num_frames, FPS), mouth, size, left)


def empty(seed: int, num_frames: int) -> Shot:
    return Shot(random_wall(np.random.default_rng(seed), WIDTH, HEIGHT), num_frames)


def found(tmp_path, shots, miss=(), extra=None, options=OPTIONS, **how):
    """The tracks of a film whose detector misses some frames."""
    frames = list(film(shots))
    write_video(tmp_path / "film.mkv", (frame.pixels for frame in frames), FPS, is_lossless=True)
    size = iter([s.size_px for s in shots for _ in range(s.num_frames)])
    faces = [[] if np.isnan(f.kps).any() else [face_at(f.kps, s / 2)] for f, s in zip(frames, size)]
    for number in miss:
        faces[number] = []
    for number, face in (extra or {}).items():
        faces[number] = [*faces[number], face]
    # A frame that is repeated is not looked at again.
    looked_at = [n for n in range(len(frames)) if not n or (frames[n].pixels != frames[n - 1].pixels).any()]
    detector = Known([faces[n] for n in looked_at])
    timeline, tracks = find_tracks(tmp_path / "film.mkv", detector, options, **how)
    return timeline, tracks, frames


def test_shots_end_at_cuts_and_frames_without_a_face_are_in_none(tmp_path):
    shots = [shot(0, 24), empty(1, 9), shot(2, 20, left=60)]
    timeline, tracks, frames = found(tmp_path, shots)
    assert [(t.start, t.stop, t.fades) for t in tracks] == [(0, 24, (False, False)), (33, 53, (False, False))]
    assert timeline.is_even and len(timeline.times) == 53 and timeline.duration_seconds == pytest.approx(53 / 25)
    for track in tracks:
        kps = np.stack([frame.kps[:3] for frame in frames[track.start : track.stop]])
        assert np.abs(track.kps - kps).max() < 0.3
        assert track.start < track.reference < track.stop - 1


class Coarse(FaceDetector):
    """Is off by two pixels in the whole frame, and exact in a picture of the face alone."""

    def __init__(self, kps: np.ndarray, side: float, mark: tuple[int, int]):
        self.kps, self.side, self.mark = kps, side, np.array(mark)

    def detect(self, image):
        corner = self.mark - np.argwhere(image[..., 0])[0][::-1]  # of this picture in the frame
        return [face_at(self.kps - corner + (2 if image.shape[:2] == (HEIGHT, WIDTH) else 0), self.side)]


@pytest.mark.parametrize("side, off", [(40, 0), (60, 2)])
def test_small_faces_are_looked_at_closely(side, off):
    kps = np.array([[70.0, 50], [90, 50], [80, 60], [72, 70], [88, 70]])
    frame = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    frame[60, 80] = 255
    (face,) = _detect(frame, Coarse(kps, side, mark=(80, 60)))
    np.testing.assert_allclose(face.kps, kps + off, atol=1e-4)


def test_a_cut_to_the_same_place_begins_another_track(tmp_path):
    """The boxes overlap: only the picture tells that it is another person."""
    _, tracks, _ = found(tmp_path, [shot(0, 20), shot(5, 20)])
    assert [(t.start, t.stop) for t in tracks] == [(0, 20), (20, 40)]


def test_a_face_that_is_missed_for_a_moment_is_followed_and_one_that_goes_is_not(tmp_path):
    _, tracks, _ = found(tmp_path, [shot(0, 40)], miss=[10, 11, *range(24, 40)], max_gap=3)
    assert [(t.start, t.stop, t.fades) for t in tracks] == [(0, 24, (False, True))]
    _, tracks, _ = found(tmp_path, [shot(0, 40)], miss=[10, 11], max_gap=1)
    assert [(t.start, t.stop) for t in tracks] == [(0, 10), (12, 40)]


def test_what_is_seen_for_a_moment_is_no_face(tmp_path):
    ghost = face_at(np.array([[20.0, 20], [40, 20], [30, 30], [22, 38], [38, 38]]), 40)
    _, tracks, _ = found(tmp_path, [empty(1, 20)], extra={5: ghost, 6: ghost})
    assert tracks == []


def test_whom_to_follow(tmp_path):
    other = face_at(np.array([[10.0, 70], [20, 70], [15, 76], [11, 82], [19, 82]]), 24)
    extra = dict.fromkeys(range(20), other)
    for choose, x in (("largest", 85), ("leftmost", 15)):
        _, [track], _ = found(tmp_path, [shot(0, 20)], extra=extra, choose=choose)
        assert abs(track.kps[:, 2, 0].mean() - x) < 12


def test_the_reference_has_open_eyes(tmp_path):
    for seed in range(3):
        one = shot(seed, 60, left=20, size=118)
        _, [track], _ = found(tmp_path, [one])
        assert one.motion.lids.min() < 0.3 or seed != 0  # somebody blinks
        assert one.motion.lids[track.reference].min() > 0.9


def test_one_square_for_a_shot_and_a_moving_one_for_a_face_that_walks(tmp_path):
    _, [track], frames = found(tmp_path, [shot(0, 20)])
    assert len(set(track.boxes)) == 1
    box = track.boxes[0]
    assert box.width == box.height == pytest.approx(90, abs=12) and box.left >= 0
    wall = random_wall(np.random.default_rng(9), WIDTH, HEIGHT)
    walk = [shot(0, 1, left=2 * i, size=60, wall=wall) for i in range(45)]
    _, [track], frames = found(tmp_path, walk)
    assert len({box.width for box in track.boxes}) == 1 and len(set(track.boxes)) > 10
    for box, frame in zip(track.boxes, frames):
        x, y = box.to_generated(frame.kps[2], (1, 1))
        assert 0.2 < x < 0.8 and 0.2 < y < 0.9


def test_times_of_a_video_whose_rate_changes(tmp_path):
    frames = [frame.pixels for frame in film([shot(0, 20)])]
    times = [*range(0, 20, 2), *range(20, 30)]
    encode_video(tmp_path / "vfr.mkv", frames, fps=30, options={"crf": "10"}, times=times)
    faces = [[face_at(f.kps, 45)] for f in film([shot(0, 20)])]
    timeline, [track] = find_tracks(tmp_path / "vfr.mkv", Known(faces), OPTIONS)
    assert not timeline.is_even and (track.start, track.stop) == (0, 20)
    np.testing.assert_allclose(timeline.times, np.array(times) / 30, atol=2e-3)


def even(fps: Fraction, num_frames: int = 30) -> Timeline:
    info = VideoInfo(64, 64, Fraction(fps), float(num_frames / fps), False)
    return Timeline(info, np.arange(num_frames) / float(fps), float(1 / fps), True)


@pytest.mark.parametrize(
    ("fps", "made"),
    [(25, 25), (30, 30), (24, 24), (Fraction(30000, 1001), Fraction(30000, 1001)), (60, 30), (50, 25), (12, 24)]
    + [(Fraction(60000, 1001), Fraction(30000, 1001)), (120, 30), (10, 30)],
)
def test_faces_are_made_at_a_rate_that_the_model_knows(fps, made):
    timeline = even(Fraction(fps))
    assert constant_fps(timeline, 30.0) == made
    numbers = list(sources(timeline, Fraction(made)))
    for number, source in enumerate(numbers):  # the middle of a frame lies within the generated frame
        middle = (number + 0.5) / float(fps)
        assert source / float(made) - 1e-6 <= middle <= (source + 1) / float(made) + 1e-6
