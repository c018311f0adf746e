"""From a request's files to what the pipeline takes: what is too long is refused before it fills the memory."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("fastapi", reason="needs the extra serve")
from vexpress.errors import InputError  # noqa: E402
from vexpress.media.faces import Face, FaceDetector  # noqa: E402
from vexpress.model_folder import EMBEDDED_MODEL_DIR  # noqa: E402
from vexpress.options import MotionOptions, SamplingOptions  # noqa: E402
from vexpress.request import prepare_request  # noqa: E402
from vexpress.server import requests  # noqa: E402
from vexpress.server.jobs import command_line  # noqa: E402
from vexpress.server.requests import VideoRequest, check_files  # noqa: E402
from vexpress.server.settings import ServeSettings  # noqa: E402

EXAMPLES = EMBEDDED_MODEL_DIR / "examples"
RATE_HZ = 8000
SHORT, LONG = 0, 1  # tracks


@pytest.fixture(scope="module")
def two_tracks(tmp_path_factory) -> Path:
    """A file with a track of 1 s and one of 10 s."""
    path = tmp_path_factory.mktemp("sound") / "two.mka"
    with av.open(str(path), "w") as container:
        tracks = [container.add_stream("pcm_s16le", rate=RATE_HZ, layout="mono") for _ in range(2)]
        for track, seconds in zip(tracks, (1, 10)):
            for start in range(0, seconds * RATE_HZ, RATE_HZ):
                samples = np.random.default_rng(start).integers(-3000, 3000, (1, RATE_HZ), np.int16)
                frame = av.AudioFrame.from_ndarray(samples, "s16", "mono")
                frame.sample_rate, frame.pts, frame.time_base = RATE_HZ, start, Fraction(1, RATE_HZ)
                container.mux(track.encode(frame))
            container.mux(track.encode(None))
    return path


def asks_for(audio: Path, **motion) -> VideoRequest:
    return VideoRequest(
        SamplingOptions(), MotionOptions(**motion), {"portrait": EXAMPLES / "portrait.png", "audio": audio}
    )


def test_the_limit_is_that_of_the_track_that_is_heard(two_tracks, monkeypatch):
    settings = ServeSettings(max_seconds=3)
    check_files(asks_for(two_tracks), settings)
    check_files(asks_for(two_tracks, audio_track=SHORT), settings)
    monkeypatch.setattr(requests, "load_audio", lambda *args, **kwargs: pytest.fail("it is decoded"))
    with pytest.raises(InputError, match="lasts longer than 3 s, the limit of this service"):
        check_files(asks_for(two_tracks, audio_track=LONG), settings)


def test_packets_may_lie_about_their_length(two_tracks, tmp_path):
    """What is decoded counts, each time that it is."""
    wanted = asks_for(two_tracks, audio_track=LONG)
    with pytest.raises(InputError, match="lasts longer than"):
        wanted.prepared_without_motion(ServeSettings(max_seconds=3))
    with pytest.raises(InputError, match="lasts longer than"):
        wanted.prepared(tmp_path, None, lambda: None, ServeSettings(max_seconds=3))
    assert asks_for(two_tracks).prepared_without_motion(ServeSettings(max_seconds=3)).audio.duration_seconds == 1
    assert wanted.prepared_without_motion(ServeSettings(max_seconds=10)).audio.duration_seconds == 10


def test_speech_is_held_as_so_many_samples(tmp_path):
    """Silence in many channels at a high rate: some KB that would need GB."""
    path, rate = tmp_path / "many.flac", 384_000
    with av.open(str(path), "w") as container:
        track = container.add_stream("flac", rate=rate, layout="7.1")
        track.format = "s16"
        for number in range(3):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 8 * rate), np.int16), "s16", "7.1")
            frame.sample_rate, frame.pts, frame.time_base = rate, number * rate, Fraction(1, rate)
            container.mux(track.encode(frame))
        container.mux(track.encode(None))
    assert path.stat().st_size < 10_000
    with pytest.raises(InputError, match="is longer than the .* s that are held of 8 channel"):
        asks_for(path).prepared_without_motion(ServeSettings(max_seconds=3))
    assert asks_for(path).prepared_without_motion(ServeSettings(max_seconds=60)).audio.samples.shape == (8, 3 * rate)


class WideFace(FaceDetector):
    """A face in the middle of any picture."""

    def detect(self, image):
        height, width = image.shape[:2]
        kps = np.float32([[0.45, 0.45], [0.55, 0.45], [0.5, 0.5], [0.46, 0.55], [0.54, 0.55]]) * (width, height)
        return [Face(np.float32([0.4, 0.4, 0.6, 0.6]) * (width, height, width, height), kps.astype(np.float32), 0.9)]


class NoFace(FaceDetector):
    def detect(self, image):
        return []


@pytest.mark.parametrize(("size", "video_size"), [((2048, 1024), (512, 256)), ((400, 300), (400, 300))])
def test_the_whole_picture_becomes_no_larger_a_video_than_any(tmp_path, two_tracks, size, video_size):
    Image.new("RGB", size, "grey").save(tmp_path / "picture.png")
    files = {"portrait": tmp_path / "picture.png", "audio": two_tracks}
    options, settings = SamplingOptions(image_width=64, image_height=64, fps=5.0), ServeSettings(max_px=512)
    wanted = VideoRequest(options, MotionOptions(paste_back=True), files)
    for request in (
        wanted.prepared_without_motion(settings),
        wanted.prepared(tmp_path, WideFace(), lambda: None, settings),
    ):
        assert prepare_request(request, options, WideFace).video_size == video_size


def test_natural_motion_passes_the_check_and_not_beside_a_strategy(tmp_path, two_tracks):
    class Resting:
        def make(self, audio, num_frames, *_):
            return torch.zeros(num_frames, 6)

    Image.new("RGB", (64, 64), "grey").save(tmp_path / "picture.png")
    files = {"portrait": tmp_path / "picture.png", "audio": two_tracks}
    options = SamplingOptions(image_width=64, image_height=64, fps=5.0)

    def check(**motion) -> int:
        wanted = VideoRequest(options, MotionOptions(**motion), files).prepared_without_motion(ServeSettings())
        return len(prepare_request(wanted, options, WideFace, Resting).kps)

    assert check(motion="natural") == check(motion="still") == check()
    with pytest.raises(InputError, match="leave one of them out"):
        check(motion="natural", retarget_strategy="fix_face")


def test_a_line_of_pixels_that_is_made_smaller_shows_no_face(tmp_path, two_tracks):
    Image.new("RGB", (5000, 2), "grey").save(tmp_path / "line.png")
    files = {"portrait": tmp_path / "line.png", "audio": two_tracks}
    wanted = VideoRequest(SamplingOptions(), MotionOptions(paste_back=True), files)
    with pytest.raises(InputError, match="no face"):
        prepare_request(wanted.prepared_without_motion(ServeSettings()), wanted.options, NoFace)


def test_the_command_of_a_job_has_no_option_that_the_program_refuses(two_tracks):
    def words(has_natural_motion: bool = True, guidance_scale: float = 1.0, **motion) -> list[str]:
        wanted = asks_for(two_tracks, **motion)
        options = SamplingOptions(crop_scale=3.0, guidance="audio", guidance_scale=guidance_scale)
        wanted = VideoRequest(options, wanted.motion, wanted.files)
        line = command_line(wanted, EMBEDDED_MODEL_DIR, SamplingOptions(), has_natural_motion)
        return [word for word in line.split() if word.startswith("--")]

    common = ["--reference_image_path", "--audio_path", "--guidance_scale", "--output_path"]
    assert words(motion="still", motion_strength=2.0, kps_extend="hold") == [*common[:3], "--motion", common[3]]
    assert words(False, motion_strength=2.0) == common
    assert {"--crop_scale", "--motion_strength"} <= {*words(auto_crop=True, motion_strength=2.0)}
    assert "--guidance" in words(guidance_scale=2.0)
