"""Two replicas by Ray Serve on this machine: requests spread, one replica is killed, nothing is lost.

Needs `pip install "ray[serve]"`, which is large; skipped without.
"""

import collections
import io
import json
import os
import signal
import socket
import sqlite3
import time
from pathlib import Path

import av
import httpx
import pytest

ray = pytest.importorskip("ray", reason="needs ray[serve]")
from ray import serve  # noqa: E402

from tests.integration.test_server import PNG, QUICK, sound  # noqa: E402
from vexpress.server.ray_app import build  # noqa: E402

ROOT = Path(__file__).parents[2]
NUM_JOBS = 24


@pytest.fixture
def address(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": environment})
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    settings = {"replicas": "2", "data_dir": str(tmp_path), "max_streams": "0", "max_queue": "100"}
    serve.run(build(settings), name="vexpress", route_prefix="/")
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()
    ray.shutdown()


def test_nothing_is_lost_with_a_replica(address, tmp_path):
    def rows(query: str) -> list[tuple]:
        with sqlite3.connect(tmp_path / "jobs.sqlite", timeout=30) as database:
            return database.execute(query).fetchall()

    def submit(client: httpx.Client, seed: int) -> str:
        data = {**QUICK, "seed": str(seed), "num_inference_steps": "8"}
        answer = client.post("/v1/videos", files={"portrait": ("p", PNG), "audio": ("a", sound(2.0))}, data=data)
        assert answer.status_code == 202, answer.text
        return answer.json()["id"]

    with httpx.Client(base_url=address, timeout=120) as client:
        ids = [submit(client, seed) for seed in range(NUM_JOBS)]
        while len(running := rows("SELECT owner, id FROM jobs WHERE state = 'running'")) < 2:
            time.sleep(0.1)
        owner, of_the_dead = running[0]
        os.kill(int(owner.split("-")[1]), signal.SIGKILL)
        states = collections.Counter()
        for seed, job_id in enumerate(ids):
            while (job := client.get(f"/v1/videos/{job_id}").json())["state"] in ("queued", "running"):
                time.sleep(0.2)
            states[job["state"]] += 1
            with av.open(io.BytesIO(client.get(f"/v1/videos/{job_id}/content").content)) as container:
                assert json.loads(container.metadata["comment"])["settings"]["seed"] == seed
    assert states == {"done": NUM_JOBS}
    assert rows(f"SELECT attempts FROM jobs WHERE id = '{of_the_dead}'") == [(2,)]
    assert len(rows("SELECT DISTINCT owner FROM jobs")) >= 2
