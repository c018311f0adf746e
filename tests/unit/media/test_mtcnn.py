"""The built-in face finder. On real clips where there are any; its parts anywhere."""

import logging
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from tests.face_models import build_face_models
from vexpress.cli import extract_kps
from vexpress.cli.program import run_program
from vexpress.errors import InputError
from vexpress.media.faces import FaceAnalyzer, track_face
from vexpress.media.keypoints import load_kps
from vexpress.media.mtcnn import WEIGHTS_PATH, MtcnnDetector, crop, load_face_detector, square, suppress
from vexpress.media.video import read_frames

SAMPLES = Path(__file__).parents[4] / "shared" / "samples"
needs_samples = pytest.mark.skipif(not SAMPLES.exists(), reason=f"no sample clips in {SAMPLES}")
SIZE_PX = 512


@pytest.fixture(scope="module")
def detector() -> MtcnnDetector:
    torch.set_num_threads(1)
    return MtcnnDetector()


@pytest.fixture(scope="module")
def portrait() -> np.ndarray:
    return cv2.imread(str(SAMPLES / "clip_a" / "ref.jpg"))[..., ::-1].copy()


@needs_samples
@pytest.mark.parametrize("name", ["clip_a", "clip_b"])
def test_real_clips_are_within_3_px_of_insightface(detector, name):
    """The clips' own keypoints are insightface's, at 512 px."""
    true = load_kps(SAMPLES / name / "kps.pth").kps.numpy()[::4]
    frames = [frame for _, frame in read_frames(SAMPLES / name / "gt.mp4")][::4]
    found = [detector.detect(cv2.resize(frame, (SIZE_PX, SIZE_PX), interpolation=cv2.INTER_AREA)) for frame in frames]
    assert [len(faces) for faces in found] == [1] * len(true)
    error = np.linalg.norm(np.stack([faces[0].v_kps for faces in found]) - true, axis=-1)
    assert error.mean() < 3 and error.mean(axis=0).max() < 6
    kps, filled = track_face(found, max_gap=0)
    assert kps.shape == (len(true), 5, 2) and not filled


@needs_samples
def test_a_face_is_found_at_any_size_and_place(detector, portrait):
    [face] = detector.detect(portrait)
    large = cv2.resize(portrait, None, fx=3, fy=3, interpolation=cv2.INTER_CUBIC)
    [again] = detector.detect(large)
    assert np.abs(again.kps / 3 - face.kps).max() < 4
    canvas = np.full((900, 1400, 3), 90, np.uint8)
    canvas[300:556, 1000:1256] = cv2.resize(portrait, (256, 256), interpolation=cv2.INTER_AREA)
    [moved] = detector.detect(canvas)
    assert np.abs((moved.kps - [1000, 300]) * 2 - face.kps).max() < 8
    assert (face.bbox[:2] < face.kps.min(0)).all() and (face.bbox[2:] > face.kps.max(0)).all()
    assert face.landmark_2d_106 is None and face.embedding is None


@needs_samples
def test_mirrored_pictures_have_mirrored_points(detector, portrait):
    [face] = detector.detect(portrait)
    [mirrored] = detector.detect(portrait[:, ::-1].copy())
    expected = face.kps * [-1, 1] + [portrait.shape[1] - 1, 0]
    assert np.abs(mirrored.kps - expected[[1, 0, 2, 4, 3]]).max() < 4


@needs_samples
def test_of_several_faces_the_largest_comes_first(detector, portrait):
    canvas = np.full((SIZE_PX, SIZE_PX + 200, 3), 90, np.uint8)
    canvas[:, :SIZE_PX] = portrait
    canvas[100:250, 530:680] = cv2.resize(portrait, (150, 150), interpolation=cv2.INTER_AREA)
    faces = detector.detect(canvas)
    assert len(faces) == 2 and faces[0].center[0] < SIZE_PX < faces[1].center[0]


@pytest.mark.parametrize("shape", [(8, 8, 3), (40, 600, 3), (300, 200, 3)])
@pytest.mark.parametrize("kind", ["black", "noise"])
def test_no_face_in_pictures_without_one(detector, shape, kind):
    pixels = np.random.default_rng(0).integers(0, 256, shape) if kind == "noise" else np.zeros(shape)
    assert detector.detect(pixels.astype(np.uint8)) == []


def test_no_face_is_an_input_error(detector):
    with pytest.raises(InputError, match=r"^reference_image_path=p\.png: no face was found"):
        detector.detect_main(np.zeros((64, 64, 3), np.uint8), value="p.png")


def test_weights_stay_small_and_have_their_licence():
    assert WEIGHTS_PATH.stat().st_size < 2.1e6
    assert (WEIGHTS_PATH.parent / "LICENSE.md").read_text().startswith("MIT License")


def test_crops_are_black_beyond_the_picture():
    image = np.full((20, 30, 3), 200, np.uint8)
    np.testing.assert_array_equal(crop(image, np.array([5, 5, 15, 15]), 10), image[:10, :10])
    half = crop(image, np.array([-10, 0, 10, 20]), 20)
    assert (half[:, :10] == 0).all() and (half[:, 10:] == 200).all()
    assert (crop(image, np.array([100, 100, 110, 110]), 8) == 0).all()


def test_squares_keep_middle_and_longer_side():
    np.testing.assert_allclose(square(np.array([[0.0, 0.0, 10.0, 4.0]])), [[0, -3, 10, 7]])


def test_suppression_keeps_the_best_of_what_overlaps():
    boxes = np.array([[0, 0, 10, 10], [1, 0, 11, 10], [50, 50, 60, 60], [2, 2, 6, 6]], float)
    score = np.array([0.8, 0.9, 0.7, 0.6])
    assert suppress(boxes, score, 0.5).tolist() == [1, 2, 3]
    assert suppress(boxes, score, 0.5, of_smaller=True).tolist() == [1, 2]
    assert suppress(boxes[:0], score[:0], 0.5).tolist() == []


def test_unset_takes_insightface_where_it_is_and_else_says_what_it_takes(tmp_path, caplog):
    assert isinstance(load_face_detector(None, build_face_models(tmp_path / "faces")), FaceAnalyzer)
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        assert isinstance(load_face_detector(None, tmp_path / "nowhere"), MtcnnDetector)
    assert "`face_models` mtcnn" in caplog.text
    assert isinstance(load_face_detector("mtcnn", tmp_path / "faces"), MtcnnDetector)
    with pytest.raises(InputError, match="^insightface_model_path="):
        load_face_detector("insightface", tmp_path / "nowhere")
    with pytest.raises(InputError, match="^face_models=dlib: allowed are insightface, mtcnn"):
        load_face_detector("dlib", tmp_path)


@needs_samples
def test_keypoints_of_a_real_video_are_extracted_with_nothing_downloaded(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = ["--video_path", str(SAMPLES / "clip_b" / "gt.mp4"), "--kps_sequence_save_path", "kps.npz"]
    assert run_program(lambda: extract_kps.main([*arguments, "--device", "cpu"])) == 0
    said = capsys.readouterr()
    assert "100 frames" in said.out and "--face_models mtcnn finds the face" in said.err
    error = (load_kps("kps.npz").kps - load_kps(SAMPLES / "clip_b" / "kps.pth").kps).norm(dim=-1)
    assert error.mean() < 3
