"""Many clients at once: nothing lost, nothing crossed, memory flat. Minutes long: run with VEXPRESS_LOAD=200."""

import io
import json
import os
import random
import threading
import time

import av
import httpx
import pytest

pytest.importorskip("fastapi", reason="needs the extra serve")
from tests.integration.server_process import ServerProcess  # noqa: E402
from tests.integration.test_server import MALFORMED, PNG, QUICK, sound  # noqa: E402

NUM_JOBS = int(os.environ.get("VEXPRESS_LOAD", "0"))
NUM_CLIENTS = 20
FPS = 5
MAX_GROWTH_MB = 60
pytestmark = pytest.mark.skipif(not NUM_JOBS, reason="takes minutes; set VEXPRESS_LOAD to a number of jobs")


class Client(threading.Thread):
    """Makes its share of the jobs; each has a length and a seed of its own, by which its video is known."""

    def __init__(self, server: ServerProcess, number: int):
        super().__init__()
        self.server, self.number = server, number
        self.done, self.waited, self.problems = 0, 0, []

    def run(self) -> None:
        with httpx.Client(base_url=self.server.url, timeout=120) as client:
            for index in range(self.number, NUM_JOBS, NUM_CLIENTS):
                try:
                    self.one(client, index)
                except Exception as error:
                    self.problems.append(f"{index}: {type(error).__name__} {error}")

    def one(self, client: httpx.Client, index: int) -> None:
        num_frames = 2 + index % 5
        files = {"portrait": ("p", PNG), "audio": ("a", sound(num_frames / FPS))}
        while True:
            answer = client.post("/v1/videos", files=files, data={**QUICK, "seed": str(index)})
            if answer.status_code != 429:
                break
            self.waited += 1
            time.sleep(float(answer.headers["retry-after"]) * random.uniform(0.5, 1.5))
        assert answer.status_code == 202, answer.text
        job_id = answer.json()["id"]
        with client.stream("GET", f"/v1/videos/{job_id}/events") as events:
            last = events.read().decode().strip().splitlines()[-1]
        job = json.loads(last.removeprefix("data: "))
        assert job["state"] == "done", job
        with av.open(io.BytesIO(client.get(f"/v1/videos/{job_id}/content").content)) as container:
            made = json.loads(container.metadata["comment"])["settings"]["seed"]
            assert (made, sum(1 for _ in container.decode(video=0))) == (index, num_frames)
        assert client.delete(f"/v1/videos/{job_id}").json()["state"] == "deleted"
        self.done += 1


def test_load(tmp_path):
    server = ServerProcess(tmp_path, "--max_queue", "8", "--max_streams", "0").start()
    started, memory = time.monotonic(), []
    clients = [Client(server, number) for number in range(NUM_CLIENTS)]
    for client in clients:
        client.start()
    while any(client.is_alive() for client in clients):
        memory.append((sum(client.done for client in clients), server.resident_mb()))
        time.sleep(0.5)
    seconds = time.monotonic() - started
    problems = [problem for client in clients for problem in client.problems]
    half = [mb for done, mb in memory if done >= NUM_JOBS // 4]
    print(
        f"\n{sum(c.done for c in clients)} of {NUM_JOBS} jobs in {seconds:.0f} s, {sum(c.waited for c in clients)} x "
        f"429; memory {half[0]:.0f} MB after a quarter, {half[-1]:.0f} MB at the end"
    )
    assert problems == []
    assert sum(client.done for client in clients) == NUM_JOBS
    assert half[-1] - half[0] < MAX_GROWTH_MB
    assert list((tmp_path / "data" / "jobs").iterdir()) == []

    bad = [(n, c) for n, c in MALFORMED.items() if not any(isinstance(v, str) for v in c[1].values())][:50]
    before = server.resident_mb()
    for name, (_, changes, data) in bad:
        parts = {"portrait": PNG, "audio": sound()} | changes
        files = {key: (key, value) for key, value in parts.items() if value is not None}
        answer = httpx.post(f"{server.url}/v1/videos", files=files, data={**QUICK, **data}, timeout=60)
        assert 400 <= answer.status_code < 500, (name, answer.text)
    print(f"{len(bad)} malformed uploads: 4xx each; memory {before:.0f} -> {server.resident_mb():.0f} MB")
    assert list((tmp_path / "data" / "jobs").iterdir()) == []
    assert server.stop() == 143
    assert "Traceback" not in server.log()
