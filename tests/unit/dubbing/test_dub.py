"""Which generated frame goes where, what stays, and how speech and video are fitted; the networks are stand-ins."""

import logging
from dataclasses import replace
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.clips import encode_video
from vexpress.dubbing.dub import Dubber, fade, plan_dub
from vexpress.dubbing.shots import Timeline, Track
from vexpress.errors import InputError
from vexpress.media.audio import Audio
from vexpress.media.compositing import Box
from vexpress.media.video import VideoInfo, read_frames, write_video
from vexpress.options import SamplingOptions

RATE, SIZE = 16000, 64
KPS = np.array([[50.0, 40.0], [70.0, 40.0], [60.0, 52.0]])
BOX = Box(30, 16, 60, 60)
OPTIONS = SamplingOptions(image_width=SIZE, image_height=SIZE, seed=1)


class Numbered:
    """In place of the pipeline: every frame is plain, of a grey that says its number in the whole video."""

    audio_processor = SimpleNamespace(sampling_rate=RATE)

    def __init__(self):
        self.calls = []

    def encode_speech(self, waveform):
        self.num_samples = len(waveform)
        return torch.linspace(0, 1, 500)[:, None].expand(-1, 4)

    def project_audio(self, windows):
        return windows[None]

    def __call__(self, portrait, waveform, kps, *, audio_tokens, options, output_type, device):
        assert waveform is None and portrait.size == (SIZE, SIZE) and audio_tokens.shape[:2] == (1, len(kps))
        self.calls.append((np.asarray(portrait), kps, audio_tokens))
        # The middle step of a frame's audio says where in the speech it is.
        shares = audio_tokens[0, :, audio_tokens.shape[2] // 2, 0].tolist()
        return SimpleNamespace(frames=(np.full((SIZE, SIZE, 3), 40 + 200 * share, np.uint8) for share in shares))


def timeline(num_frames: int, fps: float = 25, times=None) -> Timeline:
    info = VideoInfo(120, 100, Fraction(fps), num_frames / fps, True)
    is_even = times is None
    return Timeline(info, np.arange(num_frames) / fps if is_even else np.array(times), 1 / fps, is_even)


def track(start: int, stop: int, fades=(False, False), step: float = 0.0) -> Track:
    kps = np.stack([KPS + [step * i, 0] for i in range(stop - start)])
    return Track(start, stop, kps, [BOX] * (stop - start), start + 1, BOX, fades)


def speech(seconds: float) -> Audio:
    return Audio(np.full((1, round(seconds * RATE)), 0.1, np.float32), RATE)


@pytest.fixture
def film(tmp_path):
    """Forty grey frames with a grain, lossless, at 25 fps."""
    rng = np.random.default_rng(0)
    frames = [np.clip(120 + rng.normal(0, 4, (100, 120, 3)) + i % 5, 0, 255).astype(np.uint8) for i in range(40)]
    write_video(tmp_path / "film.mkv", frames, 25, is_lossless=True)
    return tmp_path / "film.mkv", np.stack(frames)


def dubbed(plan, pipeline=None, **options):
    masks = {}
    dubber = Dubber(plan, pipeline or Numbered(), OPTIONS.changed(**options))
    frames = np.stack(list(dubber.frames(lambda number, mask, box: masks.update({number: (mask, box)}))))
    return frames, masks


def test_faces_alone_change(film):
    path, before = film
    plan = plan_dub(path, timeline(40), [track(4, 14), track(20, 40)], speech(1.6), "shorter", 30.0)
    frames, masks = dubbed(plan)
    assert frames.shape == before.shape and sorted(masks) == [*range(4, 14), *range(20, 40)]
    for number in range(40):
        outside = np.ones(before.shape[1:3], bool)
        if number in masks:
            mask, box = masks[number]
            top, left = int(box.top), int(box.left)
            outside[top : top + box.height, left : left + box.width] = mask == 0
            assert (frames[number] != before[number])[~outside].mean() > 0.5
        assert np.array_equal(frames[number][outside], before[number][outside])


def test_every_track_hears_its_own_part_of_the_speech_and_what_is_around_it(film):
    pipeline = Numbered()
    plan = plan_dub(film[0], timeline(40), [track(4, 14), track(20, 40)], speech(1.6), "shorter", 30.0)
    dubbed(plan, pipeline)
    for (_, kps, tokens), (start, stop) in zip(pipeline.calls, ((4, 14), (20, 40))):
        shares = tokens[0, :, tokens.shape[2] // 2, 0]
        np.testing.assert_allclose(shares, (np.arange(start, stop) + 0.5) / 40, atol=0.02)
        np.testing.assert_allclose(kps, np.broadcast_to((KPS - [30, 16]) * SIZE / 60, kps.shape), atol=1e-4)
        assert tokens[0, 0, 0, 0] > 0 or start < 2  # steps before the track are heard, not silence
    assert pipeline.num_samples == round(1.6 * RATE)


@pytest.mark.parametrize("fps", [50, 60])
def test_a_fast_video_shows_each_generated_frame_for_longer(film, fps):
    kept = track(0, 40, step=0.4)
    plan = plan_dub(film[0], timeline(40, fps), [kept], speech(40 / fps), "shorter", 30.0)
    assert plan.fps == fps / 2 and plan.source.tolist() == [i // 2 for i in range(40)]
    pipeline = Numbered()
    _, masks = dubbed(plan, pipeline)
    [(_, kps, _)] = pipeline.calls
    assert len(kps) == 20
    # What was made for the middle of two frames is moved to where the face is in each of them.
    shifts = [box.left - 30 for _, box in masks.values()]
    np.testing.assert_allclose(shifts[2:-2], np.tile([-0.2, 0.2], 18), atol=0.03)


def test_frames_keep_their_own_times(tmp_path):
    times = [0, 1, 2, 4, 5, 8, 9, 10, 11, 12]
    frames = [np.full((100, 120, 3), 60 + 10 * i, np.uint8) for i in range(10)]
    encode_video(tmp_path / "vfr.mkv", frames, fps=20, times=times)
    uneven = timeline(10, 20, [t / 20 for t in times])
    plan = plan_dub(tmp_path / "vfr.mkv", uneven, [track(0, 10)], speech(0.65), "shorter", 30.0)
    assert plan.fps == 30 and plan.num_frames == 10
    out = tmp_path / "out.mp4"
    write_video(out, dubbed(plan)[0], plan.fps_of_file, plan.audio, times=plan.times)
    np.testing.assert_allclose([seconds for seconds, _ in read_frames(out)], np.array(times) / 20, atol=2e-3)
    middles = (np.array(times) + np.array([*times[1:], 13])) / 2 / 20
    assert np.abs((plan.source + 0.5) / 30 - middles).max() <= 0.5 / 30 + 1e-6


@pytest.mark.parametrize(
    ("seconds", "length", "num_frames", "said"),
    [
        (1.0, "shorter", 25, "ends with it"),
        (1.0, "video", 40, "silent from there on"),
        (3.0, "shorter", 40, "its end is left out"),
        (3.0, "video", 40, "its end is left out"),
        (1.6, "shorter", 40, ""),
    ],
)
def test_lengths(film, seconds, length, num_frames, said, caplog):
    with caplog.at_level(logging.INFO):
        plan = plan_dub(film[0], timeline(40), [track(0, 30), track(32, 40)], speech(seconds), length, 30.0)
    assert plan.num_frames == num_frames
    assert plan.audio.duration_seconds == pytest.approx(num_frames / 25, abs=1e-4)
    assert said in caplog.text if said else not caplog.text
    assert len(dubbed(plan)[0]) == num_frames


def test_speech_of_no_length_and_video_without_a_face_are_refused(film):
    with pytest.raises(InputError, match="^audio_path: lasts 0.010 s"):
        plan_dub(film[0], timeline(40), [track(0, 40)], speech(0.01), "shorter", 30.0)
    with pytest.raises(InputError, match="^video_path=.*: no face was found"):
        plan_dub(film[0], timeline(40), [], speech(1), "shorter", 30.0)


def test_a_face_that_is_lost_within_a_shot_fades():
    lost = track(0, 20, fades=(False, True))
    shares = [fade(lost, number) for number in range(20)]
    assert shares[:15] == [1.0] * 15 and shares[16:] == pytest.approx([0.8, 0.6, 0.4, 0.2])
    assert [fade(track(0, 20), number) for number in range(20)] == [1.0] * 20


def test_the_reference_may_lie_beyond_the_end_of_the_speech(film):
    late = track(0, 40)
    late = replace(late, reference=39)
    pipeline = Numbered()
    plan = plan_dub(film[0], timeline(40), [late], speech(0.4), "shorter", 30.0)
    assert len(dubbed(plan, pipeline)[0]) == 10
    portrait = pipeline.calls[0][0]
    assert abs(portrait.mean() - film[1][39][16:76, 30:90].mean()) < 0.5
