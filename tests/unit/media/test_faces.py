import logging
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.face_models import build_face_models, draw_face
from vexpress.errors import InputError
from vexpress.media.faces import MODULES, Face, FaceAnalyzer, head_and_shoulders_box, track_face

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    return build_face_models(tmp_path_factory.mktemp("insightface_models"))


@pytest.fixture(scope="module")
def analyzer(model_dir):
    return FaceAnalyzer(model_dir)


def picture(*faces, height=512, width=512):
    """A grey picture with `faces` drawn, and the keypoints of each."""
    image = np.full((height, width, 3), 90, np.uint8)
    return image, [draw_face(image, *face) for face in faces]


def face_at(x, y=200.0, side=100.0):
    """A face of which all but the place is of no interest; its nose is in the middle."""
    half = side / 2
    bbox = np.array([x - half, y - half, x + half, y + half], np.float32)
    kps = np.array([(-30, -30), (30, -30), (0, 0), (-20, 30), (20, 30)], np.float32) * side / 100 + [x, y]
    return Face(bbox, kps.astype(np.float32), 0.9)


# Loading --------------------------------------------------------------------------------------------------------------
def test_missing_models_are_named_without_a_download(tmp_path, monkeypatch):
    def refuse(*_):
        raise AssertionError("tried the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    with pytest.raises(InputError, match="^insightface_model_path=.*absent: is not a folder.*vexpress download"):
        FaceAnalyzer(tmp_path / "absent")
    with pytest.raises(InputError, match="has no .onnx files"):
        FaceAnalyzer(tmp_path)


def test_both_layouts_are_accepted(model_dir, tmp_path):
    shutil.copytree(model_dir, tmp_path / "models" / "buffalo_l")
    image, (kps,) = picture(((256, 240), 90))
    np.testing.assert_allclose(FaceAnalyzer(tmp_path).detect(image)[0].kps, kps, atol=1.5)


def test_a_wanted_module_that_is_missing_is_named(model_dir, tmp_path):
    shutil.copy(model_dir / "det_test.onnx", tmp_path)
    with pytest.raises(InputError, match=r"no model for \['recognition'\] among det_test.onnx"):
        FaceAnalyzer(tmp_path, modules=("detection", "recognition"))
    (tmp_path / "det_test.onnx").rename(tmp_path / "other")
    shutil.copy(model_dir / "recognition_test.onnx", tmp_path)
    with pytest.raises(InputError, match="no face detector among recognition_test.onnx"):
        FaceAnalyzer(tmp_path)


def test_a_damaged_model_is_named(model_dir, tmp_path):
    content = (model_dir / "det_test.onnx").read_bytes()
    (tmp_path / "det_test.onnx").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="cannot load det_test.onnx"):
        FaceAnalyzer(tmp_path)


def test_only_the_detector_is_loaded_where_no_more_is_asked_for(model_dir, tmp_path):
    folder, (image, _) = Path(shutil.copytree(model_dir, tmp_path / "models")), picture(((256, 240), 90))
    (folder / "recognition_test.onnx").write_bytes(b"not read")
    assert len(FaceAnalyzer(folder).detect(image)) == 1
    with pytest.raises(InputError, match="cannot load"):
        FaceAnalyzer(folder, modules=("recognition",))
    (folder / "det_test.onnx").rename(folder / "faces.onnx")  # by its name it could be anything
    shutil.copy(model_dir / "recognition_test.onnx", folder)
    assert len(FaceAnalyzer(folder).detect(image)) == 1


def test_cpu_runs_on_the_cpu_and_silently(model_dir, capfd, caplog):
    assert FaceAnalyzer(model_dir, torch.device("cpu")).providers == ["CPUExecutionProvider"]
    assert capfd.readouterr() == ("", "") and not caplog.records


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA works here")
def test_cuda_that_is_not_active_is_warned_about(model_dir, caplog):
    assert "CUDAExecutionProvider" not in FaceAnalyzer(model_dir, "cuda").providers
    assert "pip install --force-reinstall --no-deps onnxruntime-gpu==" in caplog.text


# Detecting ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("size", [(512, 512), (360, 640), (300, 200)])
def test_keypoints_are_found_in_pixels_of_the_image(analyzer, size):
    height, width = size
    image, (kps,) = picture(((0.4 * width, 0.5 * height), 0.2 * min(size)), height=height, width=width)
    (face,) = analyzer.detect(image)
    np.testing.assert_allclose(face.kps, kps, atol=1.5)
    np.testing.assert_array_equal(face.v_kps, face.kps[:3])
    assert face.det_score > 0.5 and face.kps.dtype == face.bbox.dtype == np.float32
    assert face.landmark_2d_106 is None and face.embedding is None


def test_faces_are_sorted_by_size(analyzer):
    image, (small, large) = picture(((120, 240), 40), ((350, 240), 90))
    found = analyzer.detect(image)
    assert len(found) == 2
    np.testing.assert_allclose(found[0].kps, large, atol=1.5)
    np.testing.assert_allclose(found[1].kps, small, atol=1.5)


def test_landmarks_and_embeddings(model_dir, recwarn):
    analyzer = FaceAnalyzer(model_dir, modules=("detection", "landmark_2d_106", "recognition"))
    skins = ((128, 128, 128), (200, 150, 120))
    faces = [analyzer.detect(picture(((250, 240), 90, skin))[0])[0] for skin in (*skins, skins[0])]
    lips, mouth = faces[0].landmark_2d_106[52:72], faces[0].kps[3:]
    np.testing.assert_allclose(lips.mean(0), mouth.mean(0), atol=4)
    assert faces[0].landmark_2d_106.shape == (106, 2) and faces[0].embedding.shape == (512,)
    similarity = [np.corrcoef(faces[0].embedding, face.embedding)[0, 1] for face in faces[1:]]
    assert similarity[0] < 0.9 < 0.999 < similarity[1]
    assert not [warning for warning in recwarn if warning.category is FutureWarning]


def test_main_face(analyzer, caplog):
    image, (_, large) = picture(((120, 240), 40), ((350, 240), 90))
    np.testing.assert_allclose(analyzer.detect_main(image, "reference_image_path", "a.jpg").kps, large, atol=1.5)
    assert "`reference_image_path` a.jpg: 2 faces" in caplog.text
    caplog.clear()
    analyzer.detect_main(picture(((256, 240), 90))[0], "portrait", "a.jpg")
    assert not caplog.records
    analyzer.detect_main(picture(((256, 240), 20))[0], "portrait", "a.jpg")
    assert "only 52 px" in caplog.text
    with pytest.raises(InputError, match="^reference_image_path=b.jpg: no face"):
        analyzer.detect_main(picture()[0], "reference_image_path", "b.jpg")


@pytest.mark.parametrize("bbox", [(300, 200, 400, 320), (0, 0, 80, 100), (900, 500, 1100, 700), (-40, 100, 700, 900)])
def test_head_and_shoulders_box_is_a_square_in_the_image(bbox):
    x1, y1, x2, y2 = box = head_and_shoulders_box(np.array(bbox, np.float32), width=1000, height=600)
    assert all(type(edge) is int for edge in box)
    assert x2 - x1 == y2 - y1 and x1 >= 0 and y1 >= 0 and x2 <= 1000 and y2 <= 600
    longer_side = max(bbox[2] - bbox[0], bbox[3] - bbox[1])
    assert x2 - x1 == pytest.approx(min(2.2 * longer_side, 600), abs=1)


def test_head_and_shoulders_box_has_the_face_a_little_above_the_middle():
    x1, y1, x2, y2 = head_and_shoulders_box(np.array([300, 200, 400, 300]), width=1000, height=600)
    assert (x1 + x2) / 2 == 350
    assert 0.4 < (250 - y1) / (y2 - y1) < 0.5


# Following ------------------------------------------------------------------------------------------------------------
def test_the_largest_face_of_the_first_frame_is_followed_when_another_grows_larger():
    ours = [face_at(150 + i, side=110 - 4 * i) for i in range(10)]
    theirs = [face_at(350 - i, side=80 + 6 * i) for i in range(10)]
    kps, filled = track_face(([a, b] if a.size[0] > b.size[0] else [b, a] for a, b in zip(ours, theirs)), max_gap=0)
    np.testing.assert_allclose(kps, np.stack([face.kps for face in ours]))
    assert filled == [] and kps.shape == (10, 5, 2) and kps.dtype == np.float32


def test_two_people_who_pass_each_other_are_not_swapped():
    ours = [face_at(150 + 12 * i, y=200, side=100) for i in range(20)]
    theirs = [face_at(390 - 12 * i, y=230, side=90) for i in range(20)]
    kps, _ = track_face(zip(ours, theirs), max_gap=0)
    np.testing.assert_allclose(kps, np.stack([face.kps for face in ours]))


def test_a_face_hidden_by_another_person_is_not_taken_for_that_person():
    theirs = [face_at(400 - 20 * i) for i in range(20)]  # passes in front of ours at 200
    hidden = range(7, 14)
    frames = [[other] if i in hidden else [face_at(200), other] for i, other in enumerate(theirs)]
    kps, filled = track_face(frames, max_gap=12)
    np.testing.assert_allclose(kps[:, 2, 0], 200)
    assert set(hidden) <= set(filled)


def test_gaps_are_interpolated_and_ends_are_held():
    frames = [[face_at(100 + 2 * i)] for i in range(12)]
    for missing in (0, 5, 6, 11):
        frames[missing] = []
    kps, filled = track_face(iter(frames), max_gap=2)
    expected = 100 + 2 * np.arange(12.0)
    expected[[0, 11]] = expected[[1, 10]]
    np.testing.assert_allclose(kps[:, 2, 0], expected)
    assert filled == [0, 5, 6, 11]


def test_gaps_that_are_too_long_are_listed():
    frames = [[face_at(100)] for _ in range(20)]
    frames[0:3] = [[]] * 3
    frames[8:12] = [[face_at(400)]] * 4  # somebody else is seen
    frames[14] = []
    with pytest.raises(InputError, match=r"^video_path=a.mp4: .* frames 0-2, 8-11 of 20, more than max_gap 2 in a row"):
        track_face(frames, max_gap=2, field="video_path", value="a.mp4")
    for num_frames in (0, 4):
        with pytest.raises(InputError, match=f"no face was found in any of {num_frames} frames"):
            track_face([[]] * num_frames, max_gap=12)


def test_following_real_detections(analyzer, caplog):
    caplog.set_level(logging.INFO)
    images, truths = [], []
    for i in range(6):
        image, (ours, _) = picture(((120 + 8 * i, 240), 80 - 4 * i), ((390, 240), 50 + 6 * i))
        images.append(image)
        truths.append(ours)
    kps, filled = track_face(map(analyzer.detect, images), max_gap=0)
    np.testing.assert_allclose(kps, truths, atol=1.5)
    assert filled == []


# Choosing -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("choose", "x"), [("largest", 300), ("leftmost", 100), (0, 100), (1, 300), (2, 420)]
)  # fmt: skip
def test_the_person_to_follow_can_be_chosen_and_is_told(caplog, choose, x):
    caplog.set_level(logging.INFO)
    frames = [[face_at(300 + i, side=90), face_at(420 + i, side=60), face_at(100 + i, side=50)] for i in range(5)]
    kps, filled = track_face(frames, max_gap=0, field="video_path", value="a.mp4", choose=choose)
    np.testing.assert_allclose(kps[:, 2, 0], x + np.arange(5))
    [record] = caplog.records
    assert "`video_path` a.mp4: frame 0 shows 3 faces" in record.getMessage() and f"x = {x}" in record.getMessage()


def test_a_single_face_is_no_choice_to_tell(caplog):
    caplog.set_level(logging.INFO)
    track_face([[face_at(100)]] * 3, max_gap=0)
    assert not caplog.records


def test_one_who_was_seen_before_the_others_came_is_followed_back():
    ours, theirs = [face_at(300 + i, side=50) for i in range(6)], face_at(100)
    frames = [[face] if i < 3 else [theirs, face] for i, face in enumerate(ours)]
    kps, filled = track_face(frames, max_gap=0, choose=1)
    np.testing.assert_allclose(kps, np.stack([face.kps for face in ours]))
    assert filled == []


def test_impossible_choices_are_named():
    for choose in ("rightmost", -1, 1.5, True):
        with pytest.raises(InputError, match="^face=.*must be largest, leftmost or a number"):
            track_face([[face_at(100)]], max_gap=0, choose=choose)
    with pytest.raises(InputError, match="^face=2: .* at most 2"):
        track_face([[face_at(100)], [face_at(100), face_at(300)]], max_gap=5, choose=2)


def test_repeated_frames_are_not_looked_at_again(analyzer, monkeypatch):
    one, other = (picture(((200 + 50 * i, 240), 90))[0] for i in range(2))
    frames = [one, one, one.copy(), other, one]
    expected = [analyzer.detect(frame) for frame in frames]
    looked_at, detect = [], FaceAnalyzer.detect
    monkeypatch.setattr(FaceAnalyzer, "detect", lambda self, image: looked_at.append(image) or detect(self, image))
    found = list(analyzer.detect_each(frames))
    for [face], [wanted] in zip(found, expected):
        np.testing.assert_array_equal(face.kps, wanted.kps)
    assert len(looked_at) == 3


# Odd models and pictures ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("size", [(1, 4000), (4000, 1), (1, 1), (2, 200000), (3, 3)])
def test_pictures_of_any_shape_have_no_face_at_worst(analyzer, size):
    assert analyzer.detect(np.zeros((*size, 3), np.uint8)) == []


@pytest.mark.parametrize("name", ["brackets [1]", "a*b?", "ünï"])
def test_folders_may_have_any_name(model_dir, tmp_path, name):
    shutil.copytree(model_dir, tmp_path / name)
    image, (kps,) = picture(((256, 240), 90))
    np.testing.assert_allclose(FaceAnalyzer(tmp_path / name).detect(image)[0].kps, kps, atol=1.5)


class OddNetwork(torch.nn.Module):
    """Gives `num_outputs` outputs of `shape`, filled with `value`, whatever the image."""

    def __init__(self, num_outputs, shape, value):
        super().__init__()
        self.num_outputs, self.shape, self.value = num_outputs, shape, value

    def forward(self, images):
        output = images.mean() * 0 + torch.full(self.shape, self.value)
        return tuple(output + i for i in range(self.num_outputs))


def export(path, network, size):
    torch.onnx.export(
        network, (torch.zeros(1, 3, *size),), str(path), input_names=["input"], dynamo=False, opset_version=17
    )  # fmt: skip


@pytest.mark.parametrize(
    ("num_outputs", "shape", "value"),
    [(5, (4, 1), 1.0), (7, (4, 1), 1.0), (9, (4, 1), 1.0), (9, (8, 3), 1.0), (6, (1,), 1.0), (12, (8, 10), 1.0)],
)
def test_a_detector_with_odd_outputs_is_one_line(tmp_path, num_outputs, shape, value):
    export(tmp_path / "det.onnx", OddNetwork(num_outputs, shape, value), (512, 512))
    with pytest.raises(InputError, match="^insightface_model_path=") as raised:
        FaceAnalyzer(tmp_path).detect(np.zeros((64, 64, 3), np.uint8))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("file", "size"), [("landmark_test", (192, 192)), ("recognition_test", (112, 112))])
@pytest.mark.parametrize("shape", [(1, 7), (3,), (1, 100)])
def test_other_models_with_odd_outputs_are_one_line(model_dir, tmp_path, file, size, shape):
    shutil.copytree(model_dir, tmp_path / "models")
    export(tmp_path / "models" / f"{file}.onnx", OddNetwork(1, shape, 1.0), size)
    with pytest.raises(InputError, match="^insightface_model_path="):
        FaceAnalyzer(tmp_path / "models", modules=MODULES).detect(picture(((256, 240), 90))[0])


def test_faces_with_numbers_that_are_not_finite_are_no_faces(model_dir, tmp_path):
    shutil.copytree(model_dir, tmp_path / "models")
    export(tmp_path / "models" / "recognition_test.onnx", OddNetwork(1, (1, 512), float("nan")), (112, 112))
    assert FaceAnalyzer(tmp_path / "models", modules=MODULES).detect(picture(((256, 240), 90))[0]) == []


def test_onnxruntime_writes_nothing_under_the_home_folder(model_dir, tmp_path):
    program = "import sys; from vexpress.media.faces import FaceAnalyzer; FaceAnalyzer(sys.argv[1])"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "ORT_"))}
    environment |= {"HOME": str(tmp_path), "MPLCONFIGDIR": str(tmp_path.parent)}
    subprocess.run([sys.executable, "-c", program, str(model_dir)], env=environment, check=True, cwd=ROOT)
    assert not [path for path in tmp_path.rglob("*") if "icrosoft" in str(path) or "onnx" in str(path)]
