"""Which motion a request gets: driving keypoints as they are or carried over, a still head, or motion from speech."""

import logging

import numpy as np
import pytest
import torch
from PIL import Image

from vexpress.errors import InputError
from vexpress.media.audio import Audio
from vexpress.media.faces import Face, FaceDetector
from vexpress.media.keypoints import KpsSequence
from vexpress.media.retargeting import measure_pose, relative_retarget
from vexpress.options import MotionOptions, SamplingOptions
from vexpress.request import Request, prepare_portrait, prepare_request

SIZE_PX = 128
FACE = torch.tensor([[45.0, 50.0], [80.0, 52.0], [64.0, 75.0]])
OPTIONS = SamplingOptions(image_width=SIZE_PX, image_height=SIZE_PX, fps=25.0, seed=5)
PICTURE = Image.new("RGB", (SIZE_PX, SIZE_PX), "grey")
SPEECH = Audio(np.zeros((1, 32000), np.float32), 16000)
NUM_FRAMES = 50


class OneFace(FaceDetector):
    def detect(self, image):
        kps = np.concatenate([FACE.numpy(), FACE.numpy()[:2] + [0, 40]]).astype(np.float32)
        return [Face(np.float32([30, 30, 100, 110]), kps, 0.9)]


class NoFace(FaceDetector):
    def detect(self, image):
        return []


class Nod:
    """In place of `SpeechMotion`: a head that goes down and up."""

    def make(self, audio, num_frames, options, strength, check):
        check()
        motion = torch.zeros(num_frames, 6, dtype=torch.float64)
        motion[:, 1] = strength * 0.1 * torch.sin(torch.arange(num_frames) / 5 + options.seed)
        return motion


def driving(shift: float = 0.0) -> KpsSequence:
    """Keypoints of the face of the picture, moved sideways, at another size."""
    kps = FACE.repeat(NUM_FRAMES, 1, 1) + shift
    kps[:, :, 0] += torch.sin(torch.arange(NUM_FRAMES) / 4)[:, None]
    return KpsSequence(kps, 25.0, SIZE_PX, SIZE_PX)


def prepared(kps=None, detector=OneFace, build_motion=Nod, **motion):
    request = Request(PICTURE, SPEECH, kps, MotionOptions(**motion))
    return prepare_request(request, OPTIONS, detector, build_motion).kps


# Motion from speech ---------------------------------------------------------------------------------------------------
def test_without_keypoints_the_head_moves_by_itself_where_the_model_can(caplog):
    with caplog.at_level(logging.INFO):
        kps = prepared()
    assert "`motion` still holds it" in caplog.text
    assert kps.shape == (NUM_FRAMES, 3, 2) and kps.dtype == torch.float32
    distance = (FACE[1] - FACE[0]).norm()
    expected = 0.1 * distance * torch.sin(torch.arange(NUM_FRAMES) / 5 + 5)
    torch.testing.assert_close(kps[:, 0, 1] - FACE[0, 1], expected, atol=0.2, rtol=0)


def test_motion_from_speech_and_a_strategy_exclude_each_other():
    with pytest.raises(InputError, match="leave one of them out"):
        prepared(motion="natural", retarget_strategy="fix_face")


@pytest.mark.parametrize("last", [1, 2, 3])
def test_preparation_can_be_ended_between_its_pieces(last):
    calls = []

    def check():
        calls.append(1)
        if len(calls) == last:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_request(Request(PICTURE, SPEECH), OPTIONS, OneFace, Nod, check=check)
    assert len(calls) == last


def test_a_model_without_the_network_keeps_the_head_still():
    assert torch.equal(prepared(build_motion=None), FACE.expand(NUM_FRAMES, 3, 2))
    with pytest.raises(InputError, match="^motion=natural: the model folder has no v-express/head_motion"):
        prepared(build_motion=None, motion="natural")


@pytest.mark.parametrize("motion", [{"motion": "still"}, {"retarget_strategy": "fix_face"}])
def test_who_asks_for_a_still_head_gets_one(motion):
    assert torch.equal(prepared(**motion), FACE.expand(NUM_FRAMES, 3, 2))


def test_strength_of_the_motion():
    moved = [(prepared(motion_strength=strength) - FACE).abs().max() for strength in (0.0, 1.0, 2.0)]
    assert moved[0] < 1e-4 and moved[2] == pytest.approx(2 * moved[1].item(), rel=1e-3)


@pytest.mark.parametrize("motion", ["still", "natural"])
def test_motion_and_keypoints_exclude_each_other(motion):
    with pytest.raises(InputError, match=f"^motion={motion}: is for speech alone.*kps_path"):
        prepared(driving(), motion=motion)


def test_a_face_at_the_border_moves_less_and_stays_within(caplog):
    class AtTheBorder(FaceDetector):
        def detect(self, image):
            return [Face(face.bbox, face.kps - [0, 44], face.det_score) for face in OneFace().detect(image)]

    with caplog.at_level(logging.INFO):
        kps = prepared(detector=AtTheBorder, motion_strength=3.0)
    assert kps.min() >= 0.02 * SIZE_PX - 1e-3 and (kps.max() - kps.min()) > 30
    assert "stays within the frame" in caplog.text


# Portraits ------------------------------------------------------------------------------------------------------------
def test_a_picture_of_a_program_is_taken_as_a_file_is(tmp_path):
    size = (SIZE_PX, SIZE_PX)
    grey = Image.fromarray(np.full(size, 40000, np.uint16))
    for picture in (Image.new("RGBA", size, (200, 0, 0, 0)), Image.new("RGBA", size, (200, 0, 0, 128)), grey):
        picture.save(tmp_path / "portrait.png")
        of_program, of_file = (
            prepare_portrait(Request(given, SPEECH), OPTIONS, OneFace)[0]
            for given in (picture, tmp_path / "portrait.png")
        )
        assert of_program.tobytes() == of_file.tobytes()
    with pytest.raises(InputError, match="^reference_image: cannot be read .pixels of mode F"):
        prepare_portrait(Request(Image.new("F", size), SPEECH), OPTIONS, OneFace)


# Driving keypoints ----------------------------------------------------------------------------------------------------
def test_keypoints_of_the_same_face_are_used_as_they_are(caplog):
    with caplog.at_level(logging.INFO):
        kps = prepared(driving())
    torch.testing.assert_close(kps, driving().kps)
    assert "`retarget_strategy` no_retarget: " in caplog.text


@pytest.mark.parametrize("motion", [{}, {"retarget_strategy": "auto"}, {"retarget_strategy": "relative_retarget"}])
def test_keypoints_of_another_face_are_carried_over(motion, caplog):
    with caplog.at_level(logging.INFO):
        kps = prepared(driving(shift=30), **motion)
    torch.testing.assert_close(kps, relative_retarget(driving(shift=30).kps, FACE))
    assert (measure_pose(kps).median(dim=0).values - measure_pose(FACE)).abs().max() < 1
    assert ("relative_retarget: " in caplog.text) == (motion.get("retarget_strategy") != "relative_retarget")


def test_smoothing_is_an_option():
    noisy = KpsSequence(driving(30).kps + torch.randn(NUM_FRAMES, 3, 2), 25.0, SIZE_PX, SIZE_PX)
    steps = [
        prepared(noisy, retarget_strategy="relative_retarget", kps_smoothing=s).diff(dim=0).norm() for s in (0.0, 1.0)
    ]
    assert steps[1] < steps[0] / 3


def test_a_portrait_without_a_face_takes_keypoints_as_they_are_unless_more_was_asked_for(caplog):
    kps = prepared(driving(shift=30), detector=NoFace)
    torch.testing.assert_close(kps, driving(shift=30).kps)
    assert "no face was found" in caplog.text
    for motion in ({"retarget_strategy": "auto"}, {"auto_crop": True}):
        with pytest.raises(InputError, match="no face was found"):
            prepared(driving(), detector=NoFace, **motion)
    with pytest.raises(InputError, match="no face was found"):
        prepared(detector=NoFace)
