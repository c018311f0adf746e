"""From a request's files to what the pipeline takes: what is too long is refused before it fills the memory."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

pytest.importorskip("fastapi", reason="needs the extra serve")
from vexpress.errors import InputError  # noqa: E402
from vexpress.model_folder import EMBEDDED_MODEL_DIR  # noqa: E402
from vexpress.options import MotionOptions, SamplingOptions  # noqa: E402
from vexpress.server import requests  # noqa: E402
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
        wanted.prepared_without_motion(3)
    with pytest.raises(InputError, match="lasts longer than"):
        wanted.prepared(tmp_path, None, lambda: None, 3)
    assert asks_for(two_tracks).prepared_without_motion(3).audio.duration_seconds == 1
    assert wanted.prepared_without_motion(10).audio.duration_seconds == 10
