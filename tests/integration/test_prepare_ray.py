"""Preparation on a Ray cluster of two nodes on this machine, whose workers, nodes and head are killed in mid-run.

Needs `pip install ray`, which is large; skipped without. All are slow: run them by hand.
"""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

ray = pytest.importorskip("ray", reason="needs ray")

from tests.integration.prepare_runs import LIMITS, arguments_of, make_video, run_script, write_models  # noqa: E402
from tests.integration.test_prepare_store import contents  # noqa: E402
from tests.unit.prepare.name_writer import WriteNames  # noqa: E402
from vexpress.errors import InputError  # noqa: E402
from vexpress.prepare.ray_runner import run_on_ray  # noqa: E402

pytestmark = pytest.mark.long
ROOT = Path(__file__).parents[2]
STORE_BYTES = 80 * 2**20
OWN_CLUSTER = {"RAY_AUTH_MODE": "disabled"}  # Ray 2.60 asks for tokens that a second process of this machine has not
DEADLINE_SECONDS = 900


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for place in sockets:
        place.bind(("127.0.0.1", 0))
    ports = [place.getsockname()[1] for place in sockets]
    for place in sockets:
        place.close()
    return ports


def node_options(**more) -> dict:
    """Ports are given, since a node whose agent is slow to choose its own gives up after 15 s."""
    names = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port", "runtime_env_agent_port")
    return {"num_cpus": 1, "object_store_memory": STORE_BYTES, **dict(zip(names, free_ports(len(names)))), **more}


@pytest.fixture
def cluster(monkeypatch):
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    cluster = Cluster(initialize_head=True, head_node_args=node_options(include_dashboard=False))
    yield cluster
    cluster.shutdown()


def test_killed_workers_and_a_killed_node_lose_nothing(cluster, tmp_path):
    """Sources that fail or are killed once are tried again; one that kills each worker is poison, and recorded."""
    node = cluster.add_node(**node_options())
    names = [f"{number:02}" for number in range(16)]
    names[3:3] = ["crash", "killed once", "fails once"]
    events = []

    def show(event):
        events.append(event)
        if events.count("source") == 6 and event == "source":
            cluster.remove_node(node, allow_graceful=False)

    run_on_ray(WriteNames(tmp_path, seconds=0.3), [Path(name) for name in names], cluster.address, None, True, show)
    names.remove("crash")
    assert sorted(name for name in os.listdir(tmp_path) if name[0] != ".") == sorted([*names, "failed crash"])
    assert sorted((tmp_path / ".done").read_text().split()) == sorted("\n".join(names).split())  # each once
    assert (tmp_path / "failed crash").read_text() == "its worker ended: the process is gone"
    assert events.count("source") == len(names) + 1
    assert events.count("clip") == len(names)


def test_an_error_of_a_worker_reaches_the_user(cluster, tmp_path):
    with pytest.raises(InputError, match="^no such model$"):
        run_on_ray(WriteNames(tmp_path, "no such model"), [Path("a")], cluster.address, None, True, print)


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """Flags, and the folder that a local run made of six videos, one of which is broken."""
    folder = tmp_path_factory.mktemp("local")
    for number in range(5):
        make_video(folder / "raw" / f"{number}.mp4", 4)
    (folder / "raw" / "broken.mp4").write_bytes(b"no video" * 100)
    flags = {**LIMITS, **write_models(folder / "models"), "input_dir": folder / "raw", "device": "cpu"}
    assert run_script("prepare_dataset", **flags, output_dir=folder / "out") == 0
    return flags, folder / "out"


def test_models_on_a_gpu_and_workers_on_cpus_give_what_one_process_gives(cluster, local, tmp_path, monkeypatch):
    """The GPU is one by name only, so that the same code runs on the same CPU: the files are the same bytes."""
    flags, expected = local
    cluster.add_node(**node_options(num_gpus=1))
    del (flags := dict(flags))["device"]
    flags |= {"runner": "ray", "ray_address": cluster.address, "output_dir": tmp_path / "out"}
    assert run_script("prepare_dataset", **flags) == 0
    assert contents(tmp_path / "out") == contents(expected)


def ray_start(*arguments: str) -> subprocess.Popen:
    """A node of its own, which lives as long as the process."""
    ports = free_ports(4)
    names = (
        "dashboard-agent-grpc-port",
        "metrics-export-port",
        "dashboard-agent-listen-port",
        "runtime-env-agent-port",
    )
    flags = [f"--{name}={port}" for name, port in zip(names, ports)]
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--num-cpus=1", *arguments, *flags]
    command += [f"--object-store-memory={STORE_BYTES}", "--include-dashboard=false"]
    environment = os.environ | OWN_CLUSTER | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)


def end(process: subprocess.Popen) -> None:
    """Kills a node with all that it started."""
    if process.poll() is None:
        for part in [*psutil.Process(process.pid).children(recursive=True), process]:
            part.kill()
        process.wait()


def test_the_head_is_killed_and_started_again_and_the_run_resumed(local, tmp_path):
    flags, expected = local
    [port] = free_ports(1)
    flags = flags | {"runner": "ray", "ray_address": f"127.0.0.1:{port}", "output_dir": tmp_path / "out"}
    command = [sys.executable, str(ROOT / "scripts/prepare_dataset/prepare_dataset.py"), *arguments_of(flags)]
    environment = os.environ | OWN_CLUSTER | {"PYTHONPATH": str(ROOT), "RAY_gcs_rpc_server_reconnect_timeout_s": "5"}
    counts = []
    for is_killed in (True, False):
        head = ray_start("--head", f"--port={port}")
        try:
            process = wait_and_start(command, environment, port, head)
            deadline = time.monotonic() + DEADLINE_SECONDS
            while is_killed and not any((tmp_path / "out").glob("clips/[!.]*/record.json")):
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.05)
            if is_killed:
                end(head)
                counts.append(len(list((tmp_path / "out").glob("clips/[!.]*/record.json"))))
            code = process.wait(DEADLINE_SECONDS)
            assert (code != 0) == is_killed
        finally:
            end(head)
            process.kill()
    assert 0 < counts[0] < 6
    assert contents(tmp_path / "out") == contents(expected)


def wait_and_start(command, environment, port, head) -> subprocess.Popen:
    """Starts a run when the head answers."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while True:
        assert head.poll() is None and time.monotonic() < deadline
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return subprocess.Popen(command, env=environment)
        time.sleep(0.5)
