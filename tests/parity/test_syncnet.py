"""SyncNet against recorded numbers of the released network and procedure (weights by rule)."""

import numpy as np
import pytest
import torch

from tests.tiny import DATA_DIR, fill_by_rule, relative_error
from vexpress.syncnet import SyncNet, compute_mfcc, score_sync

RECORDED = dict(np.load(DATA_DIR / "evaluation" / "syncnet.npz"))


@pytest.fixture(scope="module")
def network() -> SyncNet:
    network = fill_by_rule(SyncNet())
    with torch.no_grad():  # the recording took these as 1 + |0.1 x|
        for name, tensor in network.named_buffers():
            if name.endswith("running_var"):
                tensor.abs_().add_(1)
    return network


def test_names_and_shapes_are_the_released_ones(network):
    rows = (DATA_DIR / "evaluation" / "syncnet_keys.tsv").read_text().split("\n")
    expected = dict(row.split("\t") for row in rows if row)
    found = {name: "x".join(map(str, tensor.shape)) or "-" for name, tensor in network.state_dict().items()}
    assert found == expected


@torch.no_grad()
def test_visual_embedding(network):
    frames = torch.from_numpy(RECORDED["frames_28px"]).float()[None]
    frames = frames.repeat_interleave(8, 3).repeat_interleave(8, 4)
    assert relative_error(network.encode_frames(frames)[0], RECORDED["visual_embedding"]) < 1e-5


@torch.no_grad()
def test_audio_embedding(network):
    found = network.encode_speech(torch.from_numpy(RECORDED["mfcc_input"]))[0]
    assert relative_error(found, RECORDED["audio_embedding"]) < 1e-5


def test_mfcc():
    assert np.abs(compute_mfcc(RECORDED["waveform_int16"]) - RECORDED["mfcc"]).max() < 1e-5


def test_offset_distance_and_confidence():
    score = score_sync(RECORDED["visual_features"], RECORDED["audio_features"], int(RECORDED["vshift"]))
    assert score.offset == int(RECORDED["offset"])
    assert score.distance == pytest.approx(float(RECORDED["min_distance"]), rel=1e-5)
    assert score.confidence == pytest.approx(float(RECORDED["confidence"]), rel=1e-5)
