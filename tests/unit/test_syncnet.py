import json

import numpy as np
import pytest
import safetensors.torch
import torch

from tests.unit.evaluation.talkers import SYNC_SIZES, loudness_syncnet
from vexpress.errors import InputError
from vexpress.syncnet import (
    PADDING_VALUE,
    SyncNet,
    compute_mfcc,
    count_windows,
    crop_track,
    encode_clip,
    load_syncnet,
    save_syncnet,
    score_sync,
)


@pytest.mark.parametrize("shift", [-15, -6, 0, 1, 15])
def test_offset_is_the_shift(shift):
    rng = np.random.default_rng(0)
    audio = rng.normal(size=(100, 8)).astype(np.float32)
    visual = np.roll(audio, shift, axis=0) + 0.1 * rng.normal(size=(100, 8)).astype(np.float32)
    score = score_sync(visual[20:-20], audio[20:-20])
    assert score.offset == shift
    assert score.distance < 2.5 and score.confidence > 1


def test_unrelated_embeddings_have_little_confidence():
    rng = np.random.default_rng(1)
    one, other = rng.normal(size=(2, 100, 8)).astype(np.float32)
    assert score_sync(one, other).confidence < 0.4 < score_sync(one, one).confidence


def test_crop_follows_the_smoothed_box_and_pads():
    frames = np.zeros((20, 60, 80, 3), np.uint8)
    frames[:, 20:40, 30:50] = (255, 0, 0)
    boxes = np.tile([30.0, 20, 50, 40], (20, 1))
    boxes[7] = (0, 0, 79, 59)  # a wrong detection, which the median leaves out
    crops = crop_track(frames, boxes, 56)
    assert crops.shape == (20, 56, 56, 3)
    assert (crops == crops[0]).all()
    # 28 px of the frame from x 26 to 54 and y 20 to 48: the box fills the crop but 4 px at the sides and 8 below
    red = crops[0, :, :, 2] > 127
    assert crops[0, ..., :2].max() == 0
    assert np.flatnonzero(red.any(1))[[0, -1]].tolist() == [0, 39]
    assert np.flatnonzero(red.any(0))[[0, -1]].tolist() == [8, 47]
    outside = crop_track(frames, boxes - [40, 40, 40, 40], 56)
    assert (outside[0, :10, :10] == PADDING_VALUE).all()


def test_windows_are_those_with_frames_and_speech():
    assert count_windows(50, 50 * 640) == 45
    assert count_windows(50, 20 * 640) == 15
    assert count_windows(4, 99999) == 0


def test_windows_do_not_depend_on_each_other():
    network = SyncNet(SYNC_SIZES).eval()
    rng = np.random.default_rng(0)
    crops = rng.integers(0, 255, (26, 80, 80, 3)).astype(np.uint8)
    cepstra = rng.normal(size=(104, 13)).astype(np.float32)
    whole = encode_clip(network, crops, cepstra, 20)
    part = encode_clip(network, crops[3:], cepstra[12:], 5)
    assert np.allclose(whole.visual[3:8], part.visual, atol=1e-5)
    assert np.allclose(whole.audio[3:8], part.audio, atol=1e-5)


def test_mfcc_of_silence_is_finite_and_of_louder_sound_higher():
    noise = np.random.default_rng(0).normal(0, 1000, 8000)
    assert np.isfinite(compute_mfcc(np.zeros(8000))).all()
    louder = compute_mfcc(4 * noise)[:, 0] - compute_mfcc(noise)[:, 0]
    assert np.allclose(louder, 2 * np.log(4), atol=1e-3)
    assert compute_mfcc(np.zeros(16000)).shape == (99, 13)


def test_a_saved_network_is_the_same_and_knows_its_sizes(tmp_path):
    network = loudness_syncnet()
    save_syncnet(tmp_path / "small.safetensors", network)
    loaded, facts = load_syncnet(tmp_path / "small.safetensors")
    assert loaded.config == SYNC_SIZES and not loaded.training
    assert facts.file == "small.safetensors" and len(facts.sha256) == 12 and "other sizes" in facts.kind
    for name, tensor in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


@pytest.mark.parametrize("kind", ["missing", "text", "other", "sizes"])
def test_what_is_no_syncnet_is_an_error(tmp_path, kind):
    path = tmp_path / "net.safetensors"
    if kind == "text":
        path.write_text("hello")
    elif kind == "other":
        safetensors.torch.save_file({"a": torch.zeros(2)}, path)
    elif kind == "sizes":
        save_syncnet(path, loudness_syncnet())
        path.with_suffix(".json").write_text(json.dumps({"depth": 3}))
    with pytest.raises(InputError, match="net"):
        load_syncnet(path)


def test_crops_that_are_too_small_are_an_error():
    with pytest.raises(InputError, match="crop_px is 40, allowed are 60"):
        SyncNet(type(SYNC_SIZES)(crop_px=40))
