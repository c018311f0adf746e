"""A window is what SyncNet compares: five frames at its rate, and the sound meanwhile."""

import numpy as np
import pytest

from tests.clips import write_dataset
from vexpress.data.formats import load_face_info, load_metadata
from vexpress.data.sync_windows import sync_window, window_positions
from vexpress.data.transforms import Geometry
from vexpress.errors import InputError
from vexpress.media.audio import load_audio
from vexpress.syncnet import compute_mfcc as mfcc
from vexpress.syncnet import crop_corners, smooth_track


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    return load_metadata(write_dataset(tmp_path_factory.mktemp("data"), num_clips=1))[0]


@pytest.mark.parametrize(
    ("fps", "first", "last"),
    [(25, [0, 1, 2, 3, 4], [3, 4, 5, 6, 7]), (30, [0, 1, 2, 3, 4], [3, 4, 5, 6, 7]), (50, [0, 2, 4, 6, 8], None)],
)
def test_windows_are_the_frames_on_show(fps, first, last):
    num_frames = 8 if last else 9
    windows = window_positions(np.arange(num_frames) / fps)
    assert windows[0].tolist() == first
    assert windows[-1].tolist() == (last or first)


@pytest.mark.parametrize("times", [np.arange(4) / 25, np.arange(12) * 2 / 25, np.array([0.0])])
def test_too_few_frames_and_too_far_apart_have_none(times):
    assert window_positions(times) is None


def test_the_sound_is_that_of_the_frames(record):
    frame_ids = np.arange(3, 11)
    fps = record.fps or 25.0
    boxes = load_face_info(record.face_info).bbox[frame_ids]
    whole = load_audio(record.audio or record.video).resampled_mono(16000).numpy()
    cepstra = mfcc(np.clip(np.rint(whole * 32768), -32768, 32767))
    for flip in (False, True):
        geometry = Geometry((0, 0, 64, 64), 128, 64, flip)
        made = sync_window(np.random.default_rng(0), record, frame_ids, fps, boxes, geometry)
        first = frame_ids[made["sync_frames"][0]]
        start = round(first / fps * 16000)
        assert start % 160 == 0  # so that steps of the whole clip are these
        np.testing.assert_allclose(made["sync_cepstra"][0].T, cepstra[start // 160 :][:20], atol=2e-3)
        corners = crop_corners(smooth_track(boxes))[made["sync_frames"]] * [2, 1]
        if flip:
            corners = np.stack([128 - corners[..., ::-1, 0], corners[..., 1]], -1)
        np.testing.assert_allclose(made["sync_corners"], corners, atol=1e-3)


def test_an_error_says_what_to_change(record):
    boxes = load_face_info(record.face_info).bbox
    arguments = np.random.default_rng(0), record
    geometry = Geometry((0, 0, 64, 64), 64, 64, False)
    with pytest.raises(InputError, match="num_frames"):
        sync_window(*arguments, np.arange(3), 25.0, boxes[:3], geometry)
    with pytest.raises(InputError, match="bbox is not finite"):
        sync_window(*arguments, np.arange(8), 25.0, boxes[:8] * np.nan, geometry)
