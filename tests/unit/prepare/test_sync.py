"""The shift between sound and lips, found by SyncNets: one whose answers are known, and the demo pack's."""

import numpy as np
import pytest

from tests.unit.evaluation.talkers import SIZE_PX, SYNC_SIZES, loudness_syncnet, make_frames, make_speech
from vexpress.data.formats import load_face_info, load_metadata
from vexpress.media.audio import load_audio
from vexpress.media.video import read_frames
from vexpress.model_folder import EMBEDDED_MODEL_DIR
from vexpress.prepare.sync import MARGIN_SECONDS, Speech, crop_for_syncnet, measure_sync
from vexpress.syncnet import FPS, MAX_SHIFT, PLACES, RATE_HZ, crop_track, load_syncnet

MARGIN = round(MARGIN_SECONDS * RATE_HZ)


@pytest.mark.parametrize("shift", [-15, -4, 0, 7])
@pytest.mark.parametrize("has_more", [True, False])
def test_the_shift_is_found_with_and_without_sound_around_the_clip(shift, has_more):
    """A head as bright as its speech, 2.4 s long, out of a longer video; lips come `shift` frames late."""
    network, num_frames, start = loudness_syncnet(), 110, 25
    speech = make_speech(3, num_frames)
    frames = make_frames(speech, num_frames, shift)[start : start + 60]
    middle = np.array([SIZE_PX / 2, SIZE_PX * 0.45])
    boxes = np.tile([*middle - (24, 31), *middle + (24, 31)], (60, 1))
    crops = crop_for_syncnet(iter(frames), boxes, FPS, SYNC_SIZES.crop_px)
    first, stop = start * RATE_HZ // FPS - MARGIN, (start + 60) * RATE_HZ // FPS + MARGIN
    samples, seconds = speech[first:stop].copy(), MARGIN_SECONDS
    if not has_more:
        samples[:MARGIN], samples[-MARGIN:], seconds = 1.0, -1.0, 0.0  # nobody may look there
    score = measure_sync(network, crops, Speech(samples, seconds, seconds))
    assert score.offset == shift and score.confidence > 0


def test_a_clip_without_a_window_says_nothing():
    crops = np.zeros((5, SYNC_SIZES.crop_px, SYNC_SIZES.crop_px, 3), np.uint8)
    assert measure_sync(loudness_syncnet(), crops, Speech(np.zeros(2 * MARGIN + 3200, np.float32), 0, 0)) is None


def test_crops_are_those_of_a_player_of_25_fps():
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 255, (20, 60, 60, 3), np.uint8)
    boxes = np.array([20.0, 20, 40, 40]) + rng.uniform(0, 3, (20, 1))
    np.testing.assert_array_equal(crop_for_syncnet(iter(frames), boxes, 25, 32), crop_track(frames, boxes, 32))
    assert len(crop_for_syncnet(iter(frames), boxes, 50, 32)) == 10
    assert len(crop_for_syncnet(iter(frames), boxes, 10, 32)) == 50


def test_the_demo_packs_network_finds_shifts_of_drawn_people():
    path = next(EMBEDDED_MODEL_DIR / place for place in PLACES if (EMBEDDED_MODEL_DIR / place).is_file())
    network, _ = load_syncnet(path)
    errors = []
    for record in load_metadata(EMBEDDED_MODEL_DIR / "heldout" / "metadata.json")[:3]:
        boxes = load_face_info(record.face_info).bbox
        frames = (frame for _, frame in read_frames(record.video))
        crops = crop_for_syncnet(frames, boxes, record.fps, network.config.crop_px)
        sound = np.pad(load_audio(record.video).resampled_mono(RATE_HZ).numpy(), MARGIN)
        for late in (-5, 0, 3):
            shifted = Speech(np.roll(sound, late * RATE_HZ // FPS), -late / FPS, late / FPS)
            errors.append(measure_sync(network, crops, shifted).offset + late)
    assert np.abs(errors).max() <= 1 < MAX_SHIFT
