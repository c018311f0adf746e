"""The service in this process: jobs, errors by field, limits, live streams, restarts; with the embedded model."""

import base64
import io
import json
import shlex
import shutil
import socket
import sqlite3
import threading
import time
import wave
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("fastapi", reason="needs the extra serve")
from starlette.testclient import TestClient  # noqa: E402
from starlette.websockets import WebSocket, WebSocketDisconnect  # noqa: E402

from vexpress.cli import generate  # noqa: E402
from vexpress.cli import serve as serve_program  # noqa: E402
from vexpress.errors import InputError  # noqa: E402
from vexpress.media.keypoints import load_kps  # noqa: E402
from vexpress.model_folder import EMBEDDED_MODEL_DIR  # noqa: E402
from vexpress.options import MotionOptions  # noqa: E402
from vexpress.provenance import read_mark  # noqa: E402
from vexpress.server import portraits  # noqa: E402
from vexpress.server.app import build_app  # noqa: E402
from vexpress.server.engine import Engine  # noqa: E402
from vexpress.server.jobs import Progress, make_video  # noqa: E402
from vexpress.server.requests import VideoRequest  # noqa: E402
from vexpress.server.service import CHECKS_AT_ONCE  # noqa: E402
from vexpress.server.settings import ServeSettings  # noqa: E402
from vexpress.server.turns import StoppedError, Watch  # noqa: E402
from vexpress.server.worker import Worker  # noqa: E402

EXAMPLES = EMBEDDED_MODEL_DIR / "examples"
PORTRAIT = EXAMPLES / "portrait.png"
QUICK = {"num_inference_steps": "1", "fps": "5", "image_width": "64", "image_height": "64", "context_frames": "4",
         "context_overlap": "1", "guidance_scale": "1"}  # fmt: skip
SECONDS = 1.0
LIVE = "ws://localhost:8000/v1/stream"  # by its path alone, the test client asks for another host


def sound(seconds: float = SECONDS, rate: int = 16000) -> bytes:
    """A WAV of noise that swells, as speech does."""
    time_axis = np.arange(round(seconds * rate)) / rate
    samples = np.random.default_rng(0).normal(0, 0.1, len(time_axis)) * (1 + np.sin(2 * np.pi * 3 * time_axis)) / 2
    file = io.BytesIO()
    with wave.open(file, "wb") as target:
        target.setnchannels(1)
        target.setsampwidth(2)
        target.setframerate(rate)
        target.writeframes((samples * 32767).astype("<i2").tobytes())
    return file.getvalue()


def form(portrait: bytes | None = None, audio: bytes | None = None) -> dict:
    return {
        "portrait": ("../../etc/passwd.png", PORTRAIT.read_bytes() if portrait is None else portrait),
        "audio": ("speech.wav", sound() if audio is None else audio),
    }


@pytest.fixture(scope="module")
def engine():
    engine = Engine(EMBEDDED_MODEL_DIR, "cpu")
    engine.warm_up = lambda portrait: None  # costs seconds; a test of its own
    return engine


def serve(engine: Engine, folder: Path, **settings) -> TestClient:
    return TestClient(
        build_app(engine, ServeSettings(data_dir=str(folder), **settings)), base_url="http://localhost:8000"
    )


@pytest.fixture(scope="module")
def client(engine, tmp_path_factory):
    with serve(engine, tmp_path_factory.mktemp("serve"), max_upload_mb=2, max_seconds=20, idle_seconds=5) as client:
        wait_ready(client)
        yield client


def wait_ready(client: TestClient) -> None:
    for _ in range(600):
        if client.get("/readyz").status_code == 200:
            return
        time.sleep(0.1)
    raise AssertionError(client.get("/readyz").json())


def submit(client: TestClient, **options) -> str:
    answer = client.post("/v1/videos", files=form(), data={**QUICK, **options})
    assert answer.status_code == 202, answer.text
    return answer.json()["id"]


def finished(client: TestClient, job_id: str, state: str = "done") -> dict:
    for _ in range(1200):
        job = client.get(f"/v1/videos/{job_id}").json()
        if job["state"] in ("done", "failed", "cancelled"):
            assert job["state"] == state, job
            return job
        time.sleep(0.05)
    raise AssertionError(job)


@pytest.fixture(scope="module")
def job_id(client):
    job_id = submit(client)
    finished(client, job_id)
    return job_id


def test_a_job_becomes_a_video_that_says_how_it_was_made(client, job_id, tmp_path):
    job = client.get(f"/v1/videos/{job_id}").json()
    assert job["video"]["num_frames"] == 5
    assert "--context_frames 4" in job["command"]
    assert job["command"].startswith("vexpress generate --reference_image_path portrait.png --audio_path audio.wav")
    assert "-F fps=5" in job["api_call"]
    content = client.get(f"/v1/videos/{job_id}/content")
    assert content.headers["content-type"] == "video/mp4"
    path = tmp_path / "video.mp4"
    path.write_bytes(content.content)
    with av.open(str(path)) as container:
        mark = read_mark(container.metadata)
        assert sum(1 for _ in container.decode(video=0)) == 5
    assert mark["model"] == "demo_pack"
    assert mark["settings"]["num_inference_steps"] == 1
    assert str(tmp_path) not in str(mark)
    assert client.get(f"/v1/videos/{job_id}/files/sheet").content.startswith(b"\x89PNG")
    assert client.get(f"/v1/videos/{job_id}/files/portrait").content == PORTRAIT.read_bytes()
    assert client.get(f"/v1/videos/{job_id}/files/kps").status_code == 404


def test_ranges(client, job_id):
    url = f"/v1/videos/{job_id}/content"
    whole = client.get(url).content
    part = client.get(url, headers={"Range": "bytes=10-99"})
    assert part.status_code == 206
    assert part.headers["content-range"] == f"bytes 10-99/{len(whole)}"
    assert part.content == whole[10:100]
    beyond = client.get(url, headers={"Range": f"bytes={len(whole)}-"})
    assert beyond.status_code == 416
    assert beyond.json()["error"]["message"]


def test_events_end_with_the_state(client):
    job_id = submit(client)
    with client.stream("GET", f"/v1/videos/{job_id}/events") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        text = "".join(answer.iter_text())
    events = [line[7:] for line in text.splitlines() if line.startswith("event: ")]
    assert events[-1] == "done"
    assert json.loads(text.strip().splitlines()[-1][6:])["video"]["num_frames"] == 5


def test_the_growing_stream_is_a_video_with_sound(client):
    with client.stream("POST", "/v1/stream", files=form(), data=QUICK) as answer:
        assert answer.status_code == 200
        data = b"".join(answer.iter_bytes())
    with av.open(io.BytesIO(data)) as container:
        frames = [frame.time for frame in container.decode(video=0)]
    with av.open(io.BytesIO(data)) as container:
        seconds = sum(frame.samples / frame.sample_rate for frame in container.decode(audio=0))
    np.testing.assert_allclose(frames, np.arange(5) / 5, atol=1e-3)
    assert abs(seconds - SECONDS) < 0.1
    again = client.get(f"/v1/videos/{answer.headers['x-job']}/stream").content
    assert again == data


def test_json_with_base64_makes_the_same_video(client, job_id):
    numbers = {"num_inference_steps": 1, "fps": 5.0, "image_width": 64, "image_height": 64, "context_frames": 4}
    body = {
        "portrait": base64.b64encode(PORTRAIT.read_bytes()).decode(),
        "audio": base64.b64encode(sound()).decode(),
        **numbers,
        "context_overlap": 1,
        "guidance_scale": 1,
    }
    answer = client.post("/v1/videos", json=body)
    assert answer.status_code == 202, answer.text
    finished(client, answer.json()["id"])
    first = client.get(f"/v1/videos/{job_id}/content").content
    assert client.get(f"/v1/videos/{answer.json()['id']}/content").content == first


def test_examples_and_driving_video(client):
    data = {**QUICK, "portrait_example": "portrait.png", "audio_example": "voice-2", "motion_example": "driving.mp4",
            "retarget_strategy": "offset_retarget"}  # fmt: skip
    answer = client.post("/v1/videos", data=data, files={"kps": ("", b"")})
    assert answer.status_code == 202, answer.text
    job = finished(client, answer.json()["id"])
    assert "--kps_path kps.npz" in job["command"]
    kps = client.get(f"/v1/videos/{job['id']}/files/kps")
    assert kps.content[:2] == b"PK"


def npz(**arrays) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("/tmp/vexpress_evil_pickle"),))


def pickled() -> bytes:
    file = io.BytesIO()
    torch.save(Evil(), file)
    return file.getvalue()


def zip_of(name: str, size: int) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, bytes(size))
    return file.getvalue()


PNG = PORTRAIT.read_bytes()
MALFORMED = {
    "no portrait": ("portrait", {"portrait": None}, {}),
    "no audio": ("audio", {"audio": None}, {}),
    "empty portrait": ("portrait", {"portrait": b""}, {}),
    "empty audio": ("audio", {"audio": b""}, {}),
    "text as portrait": ("portrait", {"portrait": b"hello"}, {}),
    "half a portrait": ("portrait", {"portrait": PNG[: len(PNG) // 2]}, {}),
    "too many pixels": ("portrait", {"portrait": "huge"}, {}),
    "eps as png": ("portrait", {"portrait": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"}, {}),
    "svg": ("portrait", {"portrait": b"<svg xmlns='http://www.w3.org/2000/svg'/>"}, {}),
    "grey picture without a face": ("portrait", {"portrait": "grey"}, {}),
    "text as audio": ("audio", {"audio": b"hello"}, {}),
    "picture as audio": ("audio", {"audio": PNG}, {}),
    "half a wav header": ("audio", {"audio": sound()[:20]}, {}),
    "wav without samples": ("audio", {"audio": sound()[:44]}, {}),
    "too long": ("audio", {"audio": "long"}, {}),
    "text as kps": ("kps", {"kps": b"hello, world"}, {}),
    "kps of another shape": ("kps", {"kps": npz(kps=np.zeros((3, 4)))}, {}),
    "kps that are not finite": ("kps", {"kps": npz(kps=np.full((4, 3, 2), np.nan))}, {}),
    "npz with another name": ("kps", {"kps": npz(other=np.zeros((4, 3, 2)))}, {}),
    "npz with objects": ("kps", {"kps": npz(kps=np.array([Evil()], dtype=object))}, {}),
    "pickle": ("kps", {"kps": pickled()}, {}),
    "cut zip": ("kps", {"kps": npz(kps=np.zeros((4, 3, 2)))[:60]}, {}),
    "zip bomb": ("kps", {"kps": zip_of("kps.npy", 2**27)}, {}),
    "zip without arrays": ("kps", {"kps": zip_of("readme.txt", 9)}, {}),
    "safetensors header of 2^60": ("kps", {"kps": (2**60).to_bytes(8, "little") + b"{}"}, {}),
    "safetensors header that is no JSON": ("kps", {"kps": (9).to_bytes(8, "little") + b"{not json"}, {}),
    "text as driving video": ("driving_video", {"driving_video": b"hello"}, {}),
    "sound as driving video": ("driving_video", {"driving_video": sound()}, {}),
    "kps and driving video": ("driving_video", {"driving_video": b"x", "kps": npz(kps=np.zeros((4, 3, 2)))}, {}),
    "unknown file": ("shell", {"shell": b"x"}, {}),
    "unknown field": ("colour", {}, {"colour": "red"}),
    "steps 0": ("num_inference_steps", {}, {"num_inference_steps": "0"}),
    "steps beyond this service": ("num_inference_steps", {}, {"num_inference_steps": "1000"}),
    "steps a text": ("num_inference_steps", {}, {"num_inference_steps": "many"}),
    "steps 1.5": ("num_inference_steps", {}, {"num_inference_steps": "1.5"}),
    "steps huge": ("num_inference_steps", {}, {"num_inference_steps": "9" * 5000}),
    "seed negative": ("seed", {}, {"seed": "-1"}),
    "fps nan": ("fps", {}, {"fps": "nan"}),
    "fps infinite": ("fps", {}, {"fps": "inf"}),
    "fps 0": ("fps", {}, {"fps": "0"}),
    "width 100": ("image_width", {}, {"image_width": "100"}),
    "width too large": ("image_width", {}, {"image_width": "2048"}),
    "scheduler unknown": ("scheduler", {}, {"scheduler": "../../x"}),
    "guidance unknown": ("guidance", {}, {"guidance": "<script>"}),
    "dtype is the server's": ("dtype", {}, {"dtype": "bf16"}),
    "overlap above window": ("context_overlap", {}, {"context_frames": "4", "context_overlap": "4"}),
    "crop maybe": ("auto_crop", {}, {"auto_crop": "maybe"}),
    "strategy without kps": ("retarget_strategy", {}, {"retarget_strategy": "naive_retarget"}),
    "preset unknown": ("preset", {}, {"preset": "x"}),
    "example unknown": ("portrait_example", {"portrait": None}, {"portrait_example": "../../etc/passwd"}),
    "example and file": ("portrait_example", {}, {"portrait_example": "portrait.png"}),
    "text and file": ("text", {}, {"text": "hello"}),
    "nul in a field": ("scheduler", {}, {"scheduler": "ddim\0"}),
}


def grey() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (128, 128), (120, 120, 120)).save(file, "PNG")
    return file.getvalue()


def huge() -> bytes:
    """51 megapixels in some kilobytes."""
    file = io.BytesIO()
    Image.new("1", (7200, 7200)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_uploads_name_the_field(client, name):
    field, changes, data = MALFORMED[name]
    made = {"grey": grey, "huge": huge, "long": lambda: sound(30)}
    changes = {key: made[value]() if isinstance(value, str) else value for key, value in changes.items()}
    parts = form() | {key: (f"{key}.bin", value) for key, value in changes.items() if value is not None}
    parts = {key: value for key, value in parts.items() if changes.get(key, b"") is not None}
    answer = client.post("/v1/videos", files=parts, data={**QUICK, **data})
    assert 400 <= answer.status_code < 500, answer.text
    error = answer.json()["error"]
    assert error["field"] == field, error
    assert "\n" not in error["message"]
    assert str(client.app.state.service.data_dir) not in error["message"]
    assert not Path("/tmp/vexpress_evil_pickle").exists()


def test_no_folder_is_left_of_refused_requests(client):
    service = client.app.state.service
    folders = {path.name for path in service.jobs_dir.iterdir()}
    assert folders <= service.store.ids()


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"{", "application/json", 422),
        (b"[]", "application/json", 422),
        (b"[" * 100_000, "application/json", 422),
        (b'{"portrait": 5}', "application/json", 422),
        (b'{"portrait": "@@@"}', "application/json", 422),
        (b"\xff\xfe", "application/json", 422),
        (b'{"\\ud800": 1}', "application/json", 422),
        (b'{"preset": "\\ud800"}', "application/json", 422),
        (b'{"portrait_example": "\\udfff", "audio_example": "voice-2"}', "application/json", 422),
        (b'{"guidance_scale": -1' + b"0" * 400 + b"}", "application/json", 422),
        (b'{"preset": "' + b"/ " * 10_000 + b'"}', "application/json", 422),
        (b'{"smile": "' + b"0," * 10_000 + b'0"}', "application/json", 422),
        (
            b'--abc\r\ncontent-disposition: form-data; name="\\ud800"\r\n\r\nx\r\n--abc--\r\n',
            "multipart/form-data; boundary=abc; charset=unicode_escape",
            422,
        ),
        (b"x", "text/plain", 415),
        (b"", "multipart/form-data", 422),
        (b"x", "multipart/form-data; boundary=abc", 422),
        (b"--abc\r\n\r\n", "multipart/form-data; boundary=abc", 422),
        (b"x" * 3_000_000, "multipart/form-data; boundary=abc", 413),
        (b"x" * 3_000_000, "application/json", 413),
    ],
)
def test_bodies_that_are_nothing(client, body, kind, status):
    answer = client.post("/v1/videos", content=body, headers={"content-type": kind})
    assert answer.status_code == status, answer.text
    assert 0 < len(answer.json()["error"]["message"]) < 1000


def test_portraits_are_looked_at_by_few_at_a_time(client, monkeypatch):
    lock, at_once, most = threading.Lock(), 0, 0

    def look(path, service):
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        time.sleep(0.05)
        with lock:
            at_once -= 1
        return {}

    monkeypatch.setattr(portraits, "find_face", look)
    with ThreadPoolExecutor(8) as pool:
        sent = [pool.submit(client.post, "/v1/portrait", files={"portrait": ("p", PNG)}) for _ in range(8)]
    assert [answer.result().status_code for answer in sent] == [200] * 8
    assert most <= CHECKS_AT_ONCE


def test_portraits_have_so_many_pixels_and_errors_that_can_be_sent(client):
    answer = client.post("/v1/portrait", files={"portrait": ("p", huge())})
    assert "too many pixels; allowed are 50000000" in answer.json()["error"]["message"]
    body = b'{"portrait_example": "\\ud800"}'
    answer = client.post("/v1/portrait", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 422
    assert answer.json()["error"]["field"] == "portrait_example"


def test_a_full_disk_is_told_as_such(client, monkeypatch):
    def fail(*args):
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(client.app.state.service.store, "count", fail)
    answer = client.post("/v1/videos", files=form(), data=QUICK)
    assert answer.status_code == 507
    assert "disk is full" in answer.json()["error"]["message"]


def test_readiness_ends_with_a_thread(client, monkeypatch):
    monkeypatch.setattr(Worker, "is_alive", False)
    answer = client.get("/readyz")
    assert answer.status_code == 503
    assert "start the service again" in answer.json()["error"]["message"]


def test_a_job_can_be_ended_while_it_is_prepared(client, tmp_path):
    """By the watch's `check`, from the first frame of the driving video on."""
    calls, engine = [], client.app.state.service.engine
    files = {"portrait": PORTRAIT, "audio": EXAMPLES / "speech.wav", "driving_video": EXAMPLES / "driving.mp4"}
    request = VideoRequest(engine.defaults, MotionOptions(retarget_strategy="offset_retarget"), files)
    for last in (1, 5):

        def check(last=last):
            calls.append(1)
            if len(calls) == last:
                raise StoppedError("it is late")

        calls.clear()
        with pytest.raises(StoppedError, match="it is late"):
            make_video(request, tmp_path, engine, Progress(Watch(check=check)), ServeSettings())
        assert len(calls) == last
    assert not list(tmp_path.iterdir())
    with pytest.raises(StoppedError):  # and by the pipeline's encoding of the speech
        pipeline = engine.pipeline("ddim", Watch(check=check))
        calls[:] = [1] * 4
        pipeline.encode_speech(torch.zeros(16000))


def test_too_large_without_a_length_is_refused_while_it_comes(client):
    def parts():
        yield b'--abc\r\ncontent-disposition: form-data; name="audio"; filename="a"\r\n\r\n'
        for _ in range(100):
            yield bytes(100_000)

    answer = client.post("/v1/videos", content=parts(), headers={"content-type": "multipart/form-data; boundary=abc"})
    assert answer.status_code == 413


def test_ids_are_no_paths(client):
    for job_id in ("..%2f..%2fetc", "x" * 32, "0" * 32, "A" * 32):
        for ending in ("", "/content", "/events", "/stream", "/files/portrait"):
            assert client.get(f"/v1/videos/{job_id}{ending}").status_code in (404, 422)
    assert client.get("/v1/examples/portrait/..%2fportrait.png").status_code == 404
    assert client.get("/static/..%2fapp.py").status_code == 404


def test_cancel_ends_a_running_job_within_a_window(client):
    slow = {"image_width": "256", "image_height": "256", "context_frames": "16"}  # a window outlasts a request
    job_id = submit(client, num_inference_steps="100", fps="25", **slow)
    for _ in range(400):
        progress = client.get(f"/v1/videos/{job_id}").json()["progress"]
        if progress and progress["share"] > 0:
            break
        time.sleep(0.02)
    watch = client.app.state.service.worker.progress[job_id].watch
    before = watch.done
    assert client.delete(f"/v1/videos/{job_id}").json()["state"] == "cancelled"
    for _ in range(400):
        if job_id not in client.app.state.service.worker.progress:
            break
        time.sleep(0.02)
    assert watch.done - before <= 2
    finished(client, job_id, "cancelled")
    assert client.get(f"/v1/videos/{job_id}/content").status_code == 409
    assert not client.app.state.service.worker.folder(job_id).exists()
    assert client.delete(f"/v1/videos/{job_id}").json()["state"] == "deleted"
    assert client.get(f"/v1/videos/{job_id}").status_code == 404


def test_operations(client, job_id):
    assert client.get("/healthz").json() == {"status": "ok"}
    text = client.get("/metrics").text
    for name in ("vexpress_jobs_total", "vexpress_queue", "vexpress_seconds_per_frame_bucket", "vexpress_memory_bytes"):
        assert name in text
    schema = client.get("/openapi.json").json()
    body = schema["paths"]["/v1/videos"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body["properties"]["num_inference_steps"]["minimum"] == 1
    assert body["properties"]["image_width"]["default"] == client.app.state.service.engine.defaults.image_width
    docs = client.get("/docs").text
    assert "guidance_scale" in docs
    assert "http://" not in docs.replace("http://localhost", "")
    assert "https://" not in docs


def test_the_page_loads_nothing_from_elsewhere(client):
    answer = client.get("/")
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    for path in ("/", "/static/app.js", "/static/style.css", "/static/live.js", "/static/inputs.js"):
        text = client.get(path).text
        assert "http" not in text.replace("http://www.w3.org", "").replace("https:", "", 1).lower() or path != "/"
        assert "//cdn" not in text


def test_other_pages_and_other_names_are_turned_away(client):
    other = {"origin": "https://evil.example"}
    assert client.post("/v1/videos", files=form(), data=QUICK, headers=other).status_code == 403
    assert client.get("/v1/info", headers={"host": "evil.example"}).status_code == 421
    with pytest.raises(WebSocketDisconnect):
        client.websocket_connect(LIVE, headers=other).__enter__()
    assert "access-control-allow-origin" not in client.get("/v1/info", headers=other).headers


def stream(client: TestClient, seconds: float = SECONDS, **first) -> tuple[list[dict], list[bytes]]:
    """A live stream of some seconds of sound in pieces of 100 ms; what came of it."""
    numbers = {name: float(value) if "." in value else int(value) for name, value in QUICK.items()}
    messages, pieces = [], []
    pcm = np.frombuffer(sound(seconds)[44:], "<i2")
    with client.websocket_connect(LIVE) as socket:
        socket.send_json({"type": "start", "portrait_example": "portrait.png", **numbers, **first})
        messages.append(socket.receive_json())
        if messages[0]["type"] == "error":
            return messages, pieces
        for part in np.array_split(pcm, round(seconds * 10)):
            socket.send_bytes(part.tobytes())
        socket.send_json({"type": "end"})
        while not messages or messages[-1]["type"] not in ("end", "error"):
            message = socket.receive()
            if message.get("bytes") is not None:
                pieces.append(message["bytes"])
            elif message.get("text") is not None:
                messages.append(json.loads(message["text"]))
            else:
                break
    return messages, pieces


def test_a_live_stream_is_a_video_as_long_as_the_sound(client):
    messages, pieces = stream(client, 2.0)
    assert messages[0]["type"] == "ready"
    assert messages[-1]["type"] == "end", messages
    assert messages[-1]["num_frames"] == 10
    with av.open(io.BytesIO(b"".join(pieces))) as container:
        assert read_mark(container.metadata)["model"] == "demo_pack"
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == 10
    assert np.abs(frames[0].astype(int) - frames[-1]).mean() > 0.1  # it moves


def test_a_live_stream_as_pictures_with_times(client):
    messages, pieces = stream(client, output="jpeg", motion_example="driving.mp4", retarget_strategy="offset_retarget")
    assert messages[-1]["type"] == "end"
    times = [np.frombuffer(piece[:8], "<f8")[0] for piece in pieces]
    np.testing.assert_allclose(times, np.arange(5) / 5)
    assert all(piece[8:10] == b"\xff\xd8" for piece in pieces)


def test_a_live_stream_closes_its_eyes_when_asked(client):
    def first_picture(**attributes: str) -> np.ndarray:
        _, pieces = stream(client, output="jpeg", **attributes)
        return np.asarray(Image.open(io.BytesIO(pieces[0][8:]))).astype(int)

    plain, again, closed = (first_picture(blink=lids) for lids in ("1", "1", "0"))
    assert np.array_equal(plain, again)
    assert np.abs(plain - closed).max() > 20


@pytest.mark.parametrize(
    ("first", "field"),
    [
        ({"output": "avi"}, "output"),
        ({"smile": "wide"}, "smile"),
        ({"encoding": "mp3"}, "encoding"),
        ({"sampling_rate": 1}, "sampling_rate"),
        ({"channels": 9}, "channels"),
        ({"portrait_example": "x"}, "portrait_example"),
        ({"num_inference_steps": "3"}, "num_inference_steps"),
        ({"portrait": "@"}, "portrait"),
        ({"motion": "natural"}, "motion"),
        ({"text": "hello"}, "text"),
        ({"voice": "en-us"}, "voice"),
        ({"audio": base64.b64encode(b"sound").decode()}, "audio"),
        ({"audio_example": "speech.wav"}, "audio_example"),
        ({"\ud800": 1}, "?"),
        ({"output": "\ud800"}, "output"),
        ({"guidance_scale": -(10**400)}, "guidance_scale"),
    ],
)
def test_live_streams_name_the_field(client, first, field):
    messages, _ = stream(client, **first)
    assert messages[0]["error"]["field"] == field


def test_slots_come_back(client):
    service = client.app.state.service
    for _ in range(3):  # clients that go away in the middle
        with client.websocket_connect(LIVE) as socket:
            socket.send_json({"portrait_example": "portrait.png", "fps": 5.0})
            assert socket.receive_json()["type"] == "ready"
            with client.websocket_connect(LIVE) as second:
                assert second.receive_json()["error"]["message"].startswith("1 streams")
            socket.send_bytes(bytes(3200))
    with client.websocket_connect(LIVE) as socket:
        socket.send_text("no json")
        assert socket.receive_json()["type"] == "error"
    for _ in range(100):
        if service.num_streams == 0:
            break
        time.sleep(0.05)
    assert service.num_streams == 0
    assert stream(client)[0][-1]["type"] == "end"


def test_a_slot_is_free_before_its_client_hears_of_the_end(client, monkeypatch):
    service, closes, taken = client.app.state.service, WebSocket.close, []

    async def close(socket, *args, **kwargs):
        taken.append(service.num_streams)
        await closes(socket, *args, **kwargs)

    monkeypatch.setattr(WebSocket, "close", close)
    numbers = {name: float(value) if "." in value else int(value) for name, value in QUICK.items()}
    for first, code in (({**numbers, "fps": 5.0}, 1000), ({"output": "avi"}, 1007)):
        with client.websocket_connect(LIVE) as socket:
            socket.send_json({"portrait_example": "portrait.png", **first})
            socket.send_bytes(sound(0.2)[44:])
            socket.send_json({"type": "end"})
            while (message := socket.receive())["type"] != "websocket.close":
                pass
        assert message["code"] == code
        with client.websocket_connect(LIVE) as socket:  # at once
            socket.send_text("no json")
            assert "JSON" in socket.receive_json()["error"]["message"]
    assert set(taken) == {0}


def test_opus_packets(client):
    pcm = np.frombuffer(sound(1.0, 48000)[44:], "<i2")
    encoder = av.CodecContext.create("libopus", "w")
    encoder.sample_rate, encoder.layout, encoder.format = 48000, "mono", "s16"
    packets = []
    for start in range(0, len(pcm) - 959, 960):
        frame = av.AudioFrame.from_ndarray(pcm[None, start : start + 960], format="s16", layout="mono")
        frame.sample_rate, frame.pts = 48000, start
        packets += [bytes(packet) for packet in encoder.encode(frame)]
    with client.websocket_connect(LIVE) as socket:
        socket.send_json({"portrait_example": "portrait.png", "encoding": "opus", "output": "jpeg", "fps": 5.0,
                          "num_inference_steps": 1, "image_width": 64, "image_height": 64})  # fmt: skip
        assert socket.receive_json()["type"] == "ready"
        for packet in packets:
            socket.send_bytes(packet)
        socket.send_json({"type": "end"})
        num_frames = 0
        while (message := socket.receive()).get("bytes") is not None or '"end"' not in message.get("text", '"end"'):
            num_frames += message.get("bytes") is not None
    assert num_frames in (4, 5)


def test_a_token_is_asked_for(engine, tmp_path):
    token = "correct horse battery"
    with serve(engine, tmp_path, token=token, max_streams=0) as client:
        assert client.get("/").status_code == 200
        assert client.get("/healthz").status_code == 200
        for path in ("/v1/info", "/metrics", "/openapi.json", "/docs", f"/v1/videos/{'0' * 32}"):
            assert client.get(path).status_code == 401
            assert client.get(path, headers={"authorization": "Bearer wrong"}).status_code == 401
        assert client.get("/v1/info", headers={"authorization": f"Bearer {token}"}).status_code == 200
        assert client.post("/v1/login", content="wrong").status_code == 401
        answer = client.post("/v1/login", content=token)
        assert answer.status_code == 204
        assert "HttpOnly" in answer.headers["set-cookie"]
        assert "samesite=strict" in answer.headers["set-cookie"].lower()
        assert client.get("/v1/info").status_code == 200


def test_a_full_queue_says_when_to_come_back(engine, tmp_path):
    with serve(engine, tmp_path, max_queue=2, max_streams=0) as client:
        wait_ready(client)
        with engine.turns.turn():  # nothing gets on
            answers = [client.post("/v1/videos", files=form(), data=QUICK) for _ in range(4)]
        codes = [answer.status_code for answer in answers]
        assert codes[:2] == [202, 202]
        assert codes[-1] == 429
        assert int(answers[-1].headers["retry-after"]) >= 1
        for answer in answers[:3]:
            if answer.status_code == 202:
                finished(client, answer.json()["id"])


def test_jobs_survive_a_restart(engine, tmp_path):
    with serve(engine, tmp_path, max_streams=0) as client:
        wait_ready(client)
        with engine.turns.turn():
            ids = [submit(client) for _ in range(2)]
            assert client.get(f"/v1/videos/{ids[1]}").json()["queue_position"] in (0, 1, 2)
            stopping = client.app.state.service.worker
            stopping._stopping.set()  # as a signal does, while the first one runs
    with serve(engine, tmp_path, max_streams=0) as client:
        wait_ready(client)
        for job_id in ids:
            finished(client, job_id)


def test_jobs_survive_a_move_of_their_folder(engine, tmp_path):
    with serve(engine, tmp_path / "one", max_streams=0) as client:
        wait_ready(client)
        done = submit(client)
        finished(client, done)
        with engine.turns.turn():
            waiting = [submit(client) for _ in range(2)]
            client.app.state.service.worker._stopping.set()
    (tmp_path / "one").rename(tmp_path / "two")
    with sqlite3.connect(tmp_path / "two" / "jobs.sqlite") as jobs:  # one as earlier versions kept it
        [[kept]] = jobs.execute("SELECT request FROM jobs WHERE id = ?", waiting[-1:])
        request = json.loads(kept)
        assert "/" not in str(request["files"])
        request["files"] = {
            name: f"{tmp_path}/one/jobs/{waiting[-1]}/{file}" for name, file in request["files"].items()
        }
        jobs.execute("UPDATE jobs SET request = ? WHERE id = ?", (json.dumps(request), waiting[-1]))
    jobs.close()
    with serve(engine, tmp_path / "two", max_streams=0) as client:
        wait_ready(client)
        for job_id in (done, *waiting):
            finished(client, job_id)
            assert client.get(f"/v1/videos/{job_id}/files/portrait").content == PNG
            assert client.get(f"/v1/videos/{job_id}/content").status_code == 200


def test_old_jobs_are_deleted(engine, tmp_path):
    with serve(engine, tmp_path, max_streams=0, keep_hours=0.001) as client:
        wait_ready(client)
        job_id = submit(client)
        finished(client, job_id)
        time.sleep(4)
        worker = client.app.state.service.worker
        worker.sweep()
        assert not worker.folder(job_id).exists()
        assert client.get(f"/v1/videos/{job_id}").status_code == 404


def test_a_job_has_a_time_limit(engine, tmp_path):
    with serve(engine, tmp_path, max_streams=0, max_job_seconds=1) as client:
        wait_ready(client)
        job_id = submit(client, num_inference_steps="100", fps="60")
        assert "limit of this service" in finished(client, job_id, "failed")["error"]["message"]


@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="needs espeak-ng")
def test_text_is_spoken(client):
    files = {"portrait": ("p.png", PNG)}
    answer = client.post(
        "/v1/videos", files=files, data={**QUICK, "text": "-x; $(touch /tmp/no) hello", "voice": "en-us"}
    )
    assert answer.status_code == 202, answer.text
    job = finished(client, answer.json()["id"])
    assert job["video"]["num_frames"] > 3
    for data, field in (
        ({"text": "!!!"}, "text"),
        ({"text": "x" * 5000}, "text"),
        ({"text": "a", "voice": "-v"}, "voice"),
    ):
        answer = client.post("/v1/videos", files=files, data={**QUICK, **data})
        assert answer.status_code == 422
        assert answer.json()["error"]["field"] == field


def test_keypoints_of_a_driving_video_are_those_of_the_program(client, tmp_path):
    kps = load_kps(EXAMPLES / "driving_kps.npz")
    from vexpress.server.requests import follow_face

    found = follow_face(EXAMPLES / "driving.mp4", client.app.state.service.engine.detector)
    assert found.fps == kps.fps
    assert len(found.kps) == len(kps.kps)
    assert (found.kps - kps.kps).abs().max() < 1.0


def mark_of(path: Path) -> dict:
    with av.open(str(path)) as container:
        return read_mark(container.metadata)


def test_the_command_of_a_job_makes_the_same_file(client, tmp_path, monkeypatch):
    data = {**QUICK, "seed": "7", "guidance_scale": "2.5", "auto_crop": "true", "median_filter": "true",
            "motion_example": "driving.mp4", "retarget_strategy": "offset_retarget"}  # fmt: skip
    job_id = client.post("/v1/videos", files=form(), data=data).json()["id"]
    job = finished(client, job_id)
    words = shlex.split(job["command"])
    for flag, name in (("--reference_image_path", "portrait"), ("--audio_path", "audio"), ("--kps_path", "kps")):
        content = client.get(f"/v1/videos/{job_id}/files/{name}").content
        (tmp_path / words[words.index(flag) + 1]).write_bytes(content)
    monkeypatch.chdir(tmp_path)
    generate.main(words[2:])
    (tmp_path / "job.mp4").write_bytes(client.get(f"/v1/videos/{job_id}/content").content)
    assert mark_of(tmp_path / "talking.mp4") == mark_of(tmp_path / "job.mp4")
    assert (tmp_path / "talking.mp4").read_bytes() == (tmp_path / "job.mp4").read_bytes()
    # and so does the call of the API
    words = shlex.split(job["api_call"])
    parts = [words[i + 1].partition("=")[::2] for i, word in enumerate(words) if word == "-F"]
    files = {name: (value, (tmp_path / value[1:]).read_bytes()) for name, value in parts if value.startswith("@")}
    again = client.post("/v1/videos", files=files, data={n: v for n, v in parts if not v.startswith("@")}).json()["id"]
    finished(client, again)
    content = client.get(f"/v1/videos/{job_id}/content").content
    assert client.get(f"/v1/videos/{again}/content").content == content


@pytest.mark.parametrize(
    ("flags", "field"),
    [
        (["--token", "short"], "token"),
        (["--max_queue", "0"], "max_queue"),
        (["--model_dir", "no"], "model_dir"),
        (["--data_dir", "/proc/no"], "data_dir"),
        (["--c2pa_key", "no.pem"], "c2pa_certificate"),
        (["--host", "no.such.host.invalid"], "host"),
        (["--port", "taken"], "port"),
    ],
)
def test_mistakes_on_the_command_line_name_the_flag(flags, field, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        flags = [str(taken.getsockname()[1]) if flag == "taken" else flag for flag in flags]
        if "--port" not in flags:
            flags += ["--port", "0"]
        with pytest.raises(InputError) as error:
            serve_program.main(flags)
    assert error.value.field == field or f"`{field}`" in error.value.problem
