"""Keypoints in nodes, with the embedded model's face detector."""

import numpy as np
import pytest
import torch

from vexpress.comfyui import keypoints
from vexpress.errors import InputError
from vexpress.media.faces import FaceAnalyzer
from vexpress.media.images import load_image
from vexpress.media.keypoints import KpsSequence, load_kps, render_v_kps
from vexpress.media.random_access import count_frames
from vexpress.model_folder import EMBEDDED_MODEL_DIR

EXAMPLES = EMBEDDED_MODEL_DIR / "examples"


@pytest.fixture(scope="module")
def analyzer() -> FaceAnalyzer:
    return FaceAnalyzer(EMBEDDED_MODEL_DIR / "insightface_models")


def test_a_video_gives_keypoints_of_every_frame_at_its_own_rate(analyzer):
    told = []
    found = keypoints.kps_of_video(EXAMPLES / "driving.mp4", analyzer, 12, lambda *values: told.append(values))
    expected = load_kps(EXAMPLES / "driving_kps.npz")
    assert len(found.kps) == count_frames(EXAMPLES / "driving.mp4") and found.fps == expected.fps
    scale = torch.tensor([found.width / expected.width, found.height / expected.height])
    assert (found.kps - expected.kps[: len(found.kps)] * scale).abs().mean() < 0.01 * found.width
    assert told[0][0] == 0 and told[-1] == (len(found.kps), len(found.kps)) and len(told) == len(found.kps) + 1


def test_a_report_may_end_the_work(analyzer):
    def stop(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        keypoints.kps_of_video(EXAMPLES / "driving.mp4", analyzer, 12, stop)


def test_a_picture_gives_one_frame(analyzer):
    picture = load_image(EXAMPLES / "portrait.png")
    found = keypoints.kps_of_picture(picture, analyzer)
    assert found.kps.shape == (1, 3, 2) and found.fps is None and (found.width, found.height) == picture.size


def test_a_picture_without_a_face_is_refused(analyzer):
    with pytest.raises(InputError, match="^image: no face"):
        keypoints.kps_of_picture(load_image(EXAMPLES / "portrait.png").resize((8, 8)).resize((96, 96)), analyzer)


def test_a_crop_is_square_and_holds_the_face(analyzer):
    crop = keypoints.crop_portrait(load_image(EXAMPLES / "portrait.png"), analyzer)
    assert crop.width == crop.height and len(analyzer.detect(np.asarray(crop))) == 1


def test_motion_is_carried_over_to_a_portrait_of_another_size():
    driving = KpsSequence(
        torch.tensor([[[20.0, 20], [40, 20], [30, 30]], [[22, 20], [42, 20], [32, 30]]]), 25.0, 60, 60
    )
    portrait = KpsSequence(torch.tensor([[[200.0, 200], [400, 200], [300, 300]]]), None, 600, 600)
    moved = keypoints.carry_over(driving, portrait, "naive_retarget", 1.0)
    assert torch.allclose(moved.kps, driving.kps * 10) and (moved.fps, moved.height, moved.width) == (25.0, 600, 600)


@pytest.mark.parametrize("strategy", ["relative_retarget", "auto"])
def test_motion_is_carried_over_relative_to_rest(strategy):
    driving = KpsSequence(torch.tensor([[20.0, 20], [40, 20], [30, 30]]).expand(30, -1, -1), 25.0, 60, 60)
    portrait = KpsSequence(torch.tensor([[[30.0, 30], [44, 30], [37, 40]]]), None, 60, 60)
    moved = keypoints.carry_over(driving, portrait, strategy, 1.0)
    assert torch.allclose(moved.kps, portrait.kps.expand_as(moved.kps), atol=1e-3) and moved.kps.dtype == torch.float32


def test_pictures_of_keypoints_are_the_models_own():
    sequence = KpsSequence(torch.tensor([[[20.0, 20], [40, 20], [30, 30]]]), 25.0, 60, 60)
    assert torch.equal(
        keypoints.render_sequence(sequence, 0, 0)[0].mul(255).byte(),
        torch.from_numpy(render_v_kps(sequence.kps[0], 60, 60)),
    )
    assert keypoints.render_sequence(sequence, 120, 240).shape == (1, 120, 240, 3)


def test_files_rates_can_be_replaced():
    path = EXAMPLES / "driving_kps.npz"
    assert keypoints.kps_of_file(path, 0).fps == load_kps(path).fps
    assert keypoints.kps_of_file(path, 12.5).fps == 12.5
