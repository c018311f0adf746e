"""A live stream's first message, and who leaves or says nothing meanwhile."""

import asyncio
import base64
import io
import time

import av
import numpy as np
import pytest

pytest.importorskip("fastapi", reason="needs the extra serve")
from vexpress.errors import InputError  # noqa: E402
from vexpress.model_folder import EMBEDDED_MODEL_DIR  # noqa: E402
from vexpress.server.engine import Engine  # noqa: E402
from vexpress.server.live import LiveSession  # noqa: E402
from vexpress.server.service import Service  # noqa: E402
from vexpress.server.settings import ServeSettings  # noqa: E402
from vexpress.server.sockets import _receive  # noqa: E402
from vexpress.server.turns import StoppedError  # noqa: E402

DRIVING = EMBEDDED_MODEL_DIR / "examples" / "driving.mp4"


@pytest.fixture
def service(tmp_path):
    settings = ServeSettings(data_dir=str(tmp_path), max_seconds=20, max_stream_seconds=5)
    service = Service(Engine(EMBEDDED_MODEL_DIR, "cpu"), settings)
    yield service
    service.store.close()


def session(service: Service, **first) -> LiveSession:
    async def make():
        return LiveSession(service, {"portrait_example": "portrait.png", **first})

    return asyncio.run(make())


def long_video() -> str:
    """Base64 of an MP4 of 30 s."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=1)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for _ in range(30):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")))
        container.mux(stream.encode(None))
    return base64.b64encode(file.getvalue()).decode()


def test_a_driving_video_is_as_long_as_that_of_a_job_may_be(service):
    with pytest.raises(InputError, match="lasts longer than 20 s"):
        session(service, driving_video=long_video()).prepare()


def test_preparation_ends_when_the_client_is_gone(service):
    stream = session(service, motion_example=DRIVING.name)
    looked = []

    def detect(image):
        looked.append(1)
        stream._gone.set()
        return []

    service.engine.detector.detect = detect
    with pytest.raises(StoppedError):
        stream.prepare()
    assert len(looked) == 1


def test_a_stream_lasts_so_long_whatever_sound_comes(service):
    stream = session(service)
    stream._check()
    stream._began = time.monotonic() - 6
    with pytest.raises(StoppedError, match="a stream may last 5 s"):
        stream._check()


def test_empty_messages_are_no_sound(service):
    class Socket:
        """A client that says nothing, and leaves."""

        messages = [{"bytes": b""}] * 100 + [{"bytes": b"\0\0"}, {"text": "hello"}, {"type": "websocket.disconnect"}]

        async def receive(self):
            return {"type": "websocket.receive", **self.messages.pop(0)}

    async def use():
        stream = LiveSession(service, {"portrait_example": "portrait.png"})
        await asyncio.wait_for(_receive(Socket(), stream), 10)
        return stream.inbox._items.qsize()

    assert asyncio.run(use()) == 2  # one piece, and the end


def test_a_stream_needs_no_speech_beforehand(service):
    """Of a model without example sounds, either."""
    service.examples.files["audio"].clear()
    stream = session(service, motion_example=DRIVING.name, image_width=64, image_height=64)
    stream.prepare()
    assert stream.portrait.size == (64, 64)
    assert len(stream.kps) > 1
