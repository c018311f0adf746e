"""A drawn film that speaks another speech: the meter reads the new mouths, and all else is bit for bit the film's."""

import numpy as np
import pytest
from PIL import Image

from scripts.demo.clip_figures import best_lag, correlation_or_zero
from scripts.demo.drawn_people import random_motion, random_person
from scripts.demo.drawn_scene import Shot, random_wall, render_scene
from scripts.demo.measure_dubbing import measure, mouths, speech
from scripts.demo.mouth_meter import measure_mouth
from tests.demo.pack import PACK_DIR, options, pipeline  # noqa: F401
from vexpress.media.faces import FaceAnalyzer
from vexpress.model_folder import LAYOUT, ModelPaths
from vexpress.options import CALL, MotionOptions
from vexpress.request import Request, SpeechMotion, prepare_request

# ruff: noqa: F811 - fixtures


@pytest.fixture(scope="module")
def detector() -> FaceAnalyzer:
    return FaceAnalyzer(PACK_DIR / LAYOUT["insightface_model_path"])


@pytest.mark.long
@pytest.mark.parametrize("fps", [30.0, 60.0])
def test_new_mouths_follow_the_new_speech_and_nothing_else_changes(tmp_path, pipeline, options, detector, fps):
    how = {"fps": fps, "num_frames": round(1.6 * fps)}
    tracks, film = measure(tmp_path, pipeline, detector, options, seed=1, clips=(1, 4), **how)
    assert film["num_tracks"] == 2
    assert film["pixels_changed_outside_masks"] == film["frames_without_face_changed"] == 0
    for track in tracks:
        assert track["aperture_r"] >= 0.85 and abs(track["lag_frames"]) <= fps / 30
        assert track["aperture_r"] - track["aperture_r_old_speech"] > 0.4
        assert track["kps_error_px"] < 1.5


@pytest.mark.long
def test_a_portrait_in_a_large_picture_speaks_in_it(pipeline, options, detector):
    """With motion from speech, in a picture of 4K."""
    rng = np.random.default_rng(4)
    wall = np.asarray(Image.fromarray(random_wall(rng, 480, 270)).resize((3840, 2160)))
    size = 1200
    still = Shot(wall, 1, random_person(rng), random_motion(rng, 1, 30.0, 0.0), np.array([[0.0, 0.5]]), size, 900)
    picture, sound = render_scene(still, 0), speech(2)
    request = Request(Image.fromarray(picture.pixels), sound, motion=MotionOptions(paste_back=True))
    motion = SpeechMotion(ModelPaths.from_model_dir(PACK_DIR))
    inputs = prepare_request(request, options, lambda: detector, lambda: motion)
    num_frames = 40
    arguments = inputs.pipeline_arguments(pipeline.audio_processor.sampling_rate)
    made = pipeline(**arguments, **options.values_at(CALL), output_type="generator").frames
    box, frames = inputs.whole.box, []
    for _, frame in zip(range(num_frames), inputs.finished(made)):
        assert frame.shape == (2160, 3840, 3)
        outside = np.ones(frame.shape[:2], bool)
        outside[box.top : box.top + box.height, box.left : box.left + box.width] = False
        assert np.array_equal(frame[outside], picture.pixels[outside])
        frames.append(frame[box.top : box.top + box.height, box.left : box.left + box.width])
    kps = inputs.video_kps[:num_frames].numpy() - [box.left, box.top]
    mouth = measure_mouth(np.stack(frames), kps)
    true = mouths(sound, inputs.num_frames, 30.0)[:num_frames]
    assert correlation_or_zero(mouth[:, 0], true[:, 0]) >= 0.85
    assert abs(best_lag(mouth[:, 0], true[:, 0])) <= 1
