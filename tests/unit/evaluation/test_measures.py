"""Faces, pixels, feature networks and pairs of files, each alone."""

import json
from fractions import Fraction

import cv2
import numpy as np
import pytest
import torch

from tests.unit.evaluation.talkers import write_feature_networks
from vexpress.errors import InputError
from vexpress.evaluation.clips import Clip, pair_folders, pair_metadata
from vexpress.evaluation.faces import FaceTrack, measure_kps_distance, measure_similarity
from vexpress.evaluation.features import ClipFeatures, FrameFeatures
from vexpress.evaluation.images import fit_size, measure_psnr, measure_ssim
from vexpress.evaluation.measure import correlate
from vexpress.evaluation.rows import derange


def track(bbox: np.ndarray, embedding: np.ndarray | None = None) -> FaceTrack:
    return FaceTrack(bbox, np.zeros((len(bbox), 5, 2)), embedding, None)


def test_distance_of_keypoints_is_as_in_512_px():
    target = np.random.default_rng(0).uniform(0, 128, (4, 5, 2))
    assert measure_kps_distance(target, target, 128) == 0
    moved = target.copy()
    moved[:, :3] += (3, 4)
    moved[:, 3:] += 99  # the mouth does not count
    assert measure_kps_distance(moved, target, 128) == pytest.approx(5 * 4)
    moved[0] = np.nan
    assert measure_kps_distance(moved, target, 128) == pytest.approx(5 * 4)
    assert np.isnan(measure_kps_distance(target * np.nan, target, 128))


def test_similarity_is_the_mean_cosine():
    embedding = np.array([[2.0, 0], [0, 3], [np.nan, np.nan]])
    bbox = np.where(np.isnan(embedding[:, :1]), np.nan, [[0.0, 0, 1, 1]])
    assert measure_similarity(track(bbox, embedding), np.array([5.0, 0])) == pytest.approx(50)


def test_missing_boxes_are_interpolated_unless_most_are_missing():
    bbox = np.array([[0.0, 0, 10, 10], [np.nan] * 4, [4.0, 0, 14, 10], [np.nan] * 4])
    assert track(bbox).filled_boxes()[:, 0].tolist() == [0, 2, 4, 4]
    bbox[2] = np.nan
    with pytest.raises(InputError, match="in 1 of 4 frames"):
        track(bbox).filled_boxes()


def test_psnr_and_ssim_are_known_and_get_worse():
    rng = np.random.default_rng(0)
    real = cv2.GaussianBlur(rng.integers(0, 255, (64, 64, 3)).astype(np.uint8), (0, 0), 2)[None]
    assert measure_psnr(real, real) == np.inf and measure_ssim(real, real) == pytest.approx(1)
    other = np.where(np.indices(real.shape).sum(0) % 2, real + 4, real - 4).astype(np.uint8)
    assert measure_psnr(other, real) == pytest.approx(10 * np.log10(255**2 / 16))
    blurred = [np.stack([cv2.GaussianBlur(real[0], (0, 0), sigma)]) for sigma in (0.7, 1.5, 3)]
    for measure in (measure_psnr, measure_ssim):
        scores = [measure(frames, real) for frames in blurred]
        assert scores == sorted(scores, reverse=True) and len(set(scores)) == 3
    with pytest.raises(InputError, match="8x8 px"):
        measure_ssim(real[:, :8, :8], real[:, :8, :8])
    assert fit_size(real, 32, 48).shape == (1, 32, 48, 3)


def test_correlation_needs_movement_and_half_of_the_frames():
    one = np.sin(np.arange(20.0))
    assert correlate(one, 3 * one + 1) == pytest.approx(1)
    assert correlate(np.where(np.arange(20) < 8, np.nan, one), one) == pytest.approx(1)
    with pytest.raises(InputError, match="8 of 20"):
        correlate(np.where(np.arange(20) < 12, np.nan, one), one)
    with pytest.raises(InputError, match="does not move"):
        correlate(one, np.ones(20))


@pytest.mark.parametrize("num", [2, 3, 10])
def test_shuffling_leaves_nothing_in_its_place(num):
    items = list(range(100, 100 + num))
    for seed in range(20):
        shuffled = derange(items, seed)
        assert sorted(shuffled) == items and all(a != b for a, b in zip(shuffled, items))


def test_features_and_what_is_said_of_the_networks(tmp_path):
    fid, fvd = write_feature_networks(tmp_path)
    frames = np.random.default_rng(0).integers(0, 255, (40, 48, 64, 3)).astype(np.uint8)
    found = FrameFeatures(fid)
    assert found(frames).shape == (40, 48)
    assert np.allclose(found(frames)[:5], found(frames[:5]))
    assert found.facts.kind == "for tests" and found.facts.file == "fid.pt" and len(found.facts.sha256) == 12
    clips = ClipFeatures(fvd)
    assert clips(frames).shape == (2, 15)
    assert "32 px" in clips.facts.resize
    assert np.allclose(clips(np.repeat(frames[:1], 16, 0)), 0)


class Extremes(torch.nn.Module):
    """What reaches the network for clips: its smallest and largest value, and its shape."""

    def forward(
        self, clips: torch.Tensor, rescale: bool = True, resize: bool = True, return_features: bool = False
    ) -> torch.Tensor:
        facts = [clips.min(), clips.max(), torch.tensor(clips.shape[2:]).prod(), torch.tensor(return_features)]
        facts += [torch.tensor(rescale), torch.tensor(resize)]
        return torch.stack([fact.float() for fact in facts])[None]


def test_a_network_for_clips_gets_what_the_released_one_expects(tmp_path):
    torch.jit.save(torch.jit.script(Extremes()), str(tmp_path / "fvd.pt"))
    frames = np.zeros((16, 64, 64, 3), np.uint8)
    frames[:, :32] = 255
    found = ClipFeatures(tmp_path / "fvd.pt")
    assert found(frames)[0].tolist() == pytest.approx([-1, 1, 16 * 224 * 224, 1, 0, 0])
    assert found.facts.kind == "I3D interface"


def test_the_middle_is_taken_of_wide_frames(tmp_path):
    _, fvd = write_feature_networks(tmp_path)
    frames = np.zeros((16, 64, 128, 3), np.uint8)
    frames[::2, :, :20] = 255  # flickers at the left, out of the middle
    assert np.allclose(ClipFeatures(fvd)(frames), 0)


@pytest.mark.parametrize(("network", "flag"), [(FrameFeatures, "fid_network"), (ClipFeatures, "fvd_network")])
def test_what_is_no_network_is_an_error(tmp_path, network, flag):
    with pytest.raises(InputError, match=f"{flag}.*no such file"):
        network(tmp_path / "none.pt")
    (tmp_path / "bad.pt").write_bytes(b"hello")
    with pytest.raises(InputError, match=f"{flag}.*no TorchScript"):
        network(tmp_path / "bad.pt")
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), str(tmp_path / "linear.pt"))
    with pytest.raises(InputError, match=f"{flag}.*does not take"):
        network(tmp_path / "linear.pt")(np.zeros((16, 32, 32, 3), np.uint8))


def touch(folder, *names):
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"")
    return folder


def test_folders_are_matched_by_name(tmp_path):
    ours, real = touch(tmp_path / "a", "x.mp4", "y.mov", "notes.txt"), touch(tmp_path / "b", "y.mp4", "z.mp4")
    pairs, problems = pair_folders(ours, real)
    assert [(pair.name, pair.generated.name, pair.real.name) for pair in pairs] == [("y", "y.mov", "y.mp4")]
    assert {problem.clip for problem in problems} == {"x", "z"}
    with pytest.raises(InputError, match="name them alike"):
        pair_folders(touch(tmp_path / "c", "other.mp4"), real)
    with pytest.raises(InputError, match="no such folder"):
        pair_folders(tmp_path / "none", real)
    with pytest.raises(InputError, match="holds no video"):
        pair_folders(touch(tmp_path / "d"), real)
    with pytest.raises(InputError, match="suffix alone"):
        pair_folders(touch(tmp_path / "e", "y.mp4", "y.mov"), real)


def test_rows_keep_their_facts(tmp_path):
    row = {
        "video": "v/a.mp4",
        "face_info": "a.npz",
        "audio_embeds": "a.safetensors",
        "language": "fi",
        "labels": "l.npz",
    }
    (tmp_path / "metadata.json").write_text(json.dumps([row]))
    [pair] = pair_metadata(tmp_path / "metadata.json", tmp_path / "out")
    assert pair.facts["language"] == "fi" and pair.labels == tmp_path / "l.npz"
    assert pair.face_info is None  # the file is not there
    assert pair.generated == tmp_path / "out" / "a.mp4" and pair.sound == pair.real == tmp_path / "v/a.mp4"
    (tmp_path / "metadata.json").write_text(json.dumps([row, row]))
    with pytest.raises(InputError, match="two rows"):
        pair_metadata(tmp_path / "metadata.json", tmp_path / "out")


def test_frames_at_another_rate():
    clip = Clip(np.zeros((90, 2, 2, 3), np.uint8), Fraction(30))
    at = clip.at_rate(25)
    assert len(at) == 75 and at[0] == 0 and at[-1] == 88 and (np.diff(at) >= 1).all()
    assert Clip(clip.frames, Fraction(25)).at_rate(25).tolist() == list(range(90))
