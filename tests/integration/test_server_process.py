"""The service as a real process: restarts, signals, clients that are slow or go away, players."""

import asyncio
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import httpx
import pytest

pytest.importorskip("fastapi", reason="needs the extra serve")
websockets = pytest.importorskip("websockets", reason="needs the extra serve")

from tests.integration.server_process import ROOT, ServerProcess  # noqa: E402
from tests.integration.test_server import EXAMPLES, QUICK, form, sound  # noqa: E402
from vexpress.media.audio import load_audio  # noqa: E402


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    server = ServerProcess(folder, "--idle_seconds", "2", "--max_streams", "1").start()
    wait(lambda: "live:" in server.log())
    yield server
    server.stop()


def wait(condition, seconds: float = 180):
    for _ in range(int(seconds * 20)):
        if value := condition():
            return value
        time.sleep(0.05)
    raise AssertionError("it did not happen")


def submit(server: ServerProcess, **options) -> str:
    answer = httpx.post(f"{server.url}/v1/videos", files=form(), data={**QUICK, **options}, timeout=60)
    assert answer.status_code == 202, answer.text
    return answer.json()["id"]


def job(server: ServerProcess, job_id: str) -> dict:
    return httpx.get(f"{server.url}/v1/videos/{job_id}").json()


def num_streams(server: ServerProcess) -> float:
    text = httpx.get(f"{server.url}/metrics").text
    return float(next(line.split()[1] for line in text.splitlines() if line.startswith("vexpress_streams ")))


def test_a_video_with_ranges_and_events(server):
    job_id = submit(server)
    with httpx.stream("GET", f"{server.url}/v1/videos/{job_id}/events", timeout=60) as answer:
        text = answer.read().decode()
    assert "event: done" in text
    whole = httpx.get(f"{server.url}/v1/videos/{job_id}/content").content
    part = httpx.get(f"{server.url}/v1/videos/{job_id}/content", headers={"Range": "bytes=100-"})
    assert part.status_code == 206
    assert part.content == whole[100:]


@pytest.mark.skipif(shutil.which("ffprobe") is None, reason="needs ffprobe")
def test_the_growing_stream_is_read_by_ffmpeg(server):
    job_id = submit(server, fps="10")
    wanted = ["-count_frames", "-select_streams", "v", "-show_entries", "stream=nb_read_frames", "-of", "csv=p=0"]
    command = ["ffprobe", "-v", "error", *wanted, f"{server.url}/v1/videos/{job_id}/stream"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.stdout.strip() == "10", result.stderr


def test_half_an_upload_leaves_nothing(server):
    before = set((server.folder / "data" / "jobs").iterdir())
    for goes_away in (True, False):
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            head = (
                f"POST /v1/videos HTTP/1.1\r\nHost: localhost:{server.port}\r\nContent-Length: 5000\r\n"
                "Content-Type: multipart/form-data; boundary=abc\r\n\r\n--abc\r\n"
                'Content-Disposition: form-data; name="audio"; filename="a.wav"\r\n\r\nhello'
            )
            connection.sendall(head.encode())
            if not goes_away:
                connection.settimeout(20)
                assert b" 408 " in connection.recv(1000).split(b"\r\n")[0]
    wait(lambda: set((server.folder / "data" / "jobs").iterdir()) == before, 20)


def test_slow_readers_do_not_hold_others_up(server):
    slow = submit(server)
    wait(lambda: job(server, slow)["state"] == "done")
    connections = []
    for path in (f"/v1/videos/{slow}/content", f"/v1/videos/{slow}/events", f"/v1/videos/{slow}/stream") * 10:
        connection = socket.create_connection(("127.0.0.1", server.port))
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost:{server.port}\r\n\r\n".encode())
        connections.append(connection)  # and never read
    started = time.monotonic()
    assert httpx.get(f"{server.url}/healthz", timeout=10).status_code == 200
    assert time.monotonic() - started < 5
    other = submit(server)
    wait(lambda: job(server, other)["state"] == "done")
    for connection in connections:
        connection.close()


def test_whoever_leaves_a_stream_cancels_its_job(server):
    options = {**QUICK, "num_inference_steps": "100", "fps": "25"}
    with httpx.stream("POST", f"{server.url}/v1/stream", files=form(), data=options, timeout=60) as answer:
        job_id = answer.headers["x-job"]
        wait(lambda: job(server, job_id)["state"] == "running")
    wait(lambda: job(server, job_id)["state"] == "cancelled", 30)


FIRST = {
    "portrait_example": "portrait.png",
    "fps": 5.0,
    "num_inference_steps": 1,
    "image_width": 64,
    "image_height": 64,
}


def live(server: ServerProcess, use) -> object:
    async def run():
        async with websockets.connect(f"ws://127.0.0.1:{server.port}/v1/stream", max_queue=4) as connection:
            await connection.send(json.dumps(FIRST))
            first = json.loads(await connection.recv())
            assert first["type"] == "ready", first
            return await use(connection)

    return asyncio.run(run())


def test_live_clients_that_leave_or_sleep_free_their_slot(server):
    async def leave(connection):
        await connection.send(sound(1.0)[44:])
        connection.transport.abort()

    async def send_nothing(connection):
        async for message in connection:
            if isinstance(message, str) and "error" in message:
                return json.loads(message)
        return None

    live(server, leave)
    wait(lambda: num_streams(server) == 0, 30)
    message = live(server, send_nothing)  # for longer than idle_seconds
    assert "no sound came" in message["error"]["message"]
    wait(lambda: num_streams(server) == 0, 30)


def test_a_live_client_that_sends_faster_than_frames_are_made_is_held_back(server):
    """Ten seconds of sound at once: sending waits, memory stays, and every frame comes."""
    before = server.resident_mb()

    async def flood(connection):
        async def send():
            for _ in range(100):
                await connection.send(sound(0.1)[44:])
            await connection.send('{"type": "end"}')

        task = asyncio.create_task(send())
        async for message in connection:
            if isinstance(message, str) and '"end"' in message:
                await task
                return json.loads(message)["num_frames"]
        return 0

    assert live(server, flood) == 50
    assert server.resident_mb() - before < 200


def test_jobs_survive_a_killed_process(tmp_path):
    server = ServerProcess(tmp_path, "--max_streams", "0").start()
    ids = [submit(server, num_inference_steps="12"), submit(server), submit(server)]
    wait(lambda: job(server, ids[0])["state"] == "running")
    server.kill()
    server.start()
    for job_id in ids:
        wait(lambda: job(server, job_id)["state"] == "done")  # noqa: B023
    # a job that was running is taken up by the next process after a proper end, too
    last = submit(server, num_inference_steps="30")
    wait(lambda: job(server, last)["state"] == "running")
    assert server.stop() == 128 + signal.SIGTERM
    assert "Traceback" not in server.log()
    server.start()
    assert wait(lambda: job(server, last)["state"] == "done")
    server.stop()


def test_the_client_of_the_docs_runs_as_written(server, tmp_path, monkeypatch):
    text = (ROOT / "docs" / "serve.md").read_text(encoding="utf-8")
    [code] = re.findall(r"<!-- run by .*? -->\n```python\n(.*?)```", text, re.DOTALL)
    (tmp_path / "vexpress").symlink_to(ROOT / "vexpress")
    code = code.replace("http://127.0.0.1:8000", server.url)
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    num_frames = round(load_audio(EXAMPLES / "speech.wav").duration_seconds * 10)
    assert result.stdout.startswith(f"done {{'num_frames': {num_frames}")
    assert (tmp_path / "talking.mp4").stat().st_size > 5000


def test_the_flags_of_the_docs_exist():
    text = (ROOT / "docs" / "serve.md").read_text(encoding="utf-8")
    flags = set(re.findall(r"`(--\w+)", text)) - {"--no_metadata"}
    help_text = subprocess.run(
        [sys.executable, "-m", "vexpress", "serve", "--help"], capture_output=True, text=True
    ).stdout
    assert flags <= set(re.findall(r"--\w+", help_text))
