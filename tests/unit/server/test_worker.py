"""The worker's two threads and its files: what goes wrong around a job loses neither."""

import os
import sqlite3
import threading
import time
from types import SimpleNamespace

import pytest

pytest.importorskip("fastapi", reason="needs the extra serve")
from vexpress.errors import InputError  # noqa: E402
from vexpress.model_folder import EMBEDDED_MODEL_DIR  # noqa: E402
from vexpress.options import MotionOptions, SamplingOptions  # noqa: E402
from vexpress.server import store as states  # noqa: E402
from vexpress.server import worker as worker_module  # noqa: E402
from vexpress.server.engine import Engine  # noqa: E402
from vexpress.server.problems import Problem  # noqa: E402
from vexpress.server.requests import VideoRequest  # noqa: E402
from vexpress.server.service import Service  # noqa: E402
from vexpress.server.settings import ServeSettings  # noqa: E402
from vexpress.server.turns import Turns  # noqa: E402

REQUEST = VideoRequest(SamplingOptions(), MotionOptions(), {}).as_json()
FACTS = {"num_frames": 1, "seconds_per_frame": 0.1}


@pytest.fixture
def service(tmp_path, monkeypatch):
    """A service whose jobs take no time, and whose threads are begun by the tests that need them."""
    monkeypatch.setattr(worker_module, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(worker_module, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(worker_module, "HEARTBEAT_SECONDS", 0.01)
    monkeypatch.setattr(worker_module, "make_video", lambda *args: FACTS)
    service = Service(Engine(EMBEDDED_MODEL_DIR, "cpu"), ServeSettings(data_dir=str(tmp_path / "data")))
    service.worker.engine = SimpleNamespace(is_ready=True, turns=Turns())
    yield service
    service.worker.stop()
    service.store.close()


def add(service: Service) -> str:
    job_id, folder = service.new_folder()
    (folder / "portrait").write_bytes(b"x")
    service.store.add(job_id, REQUEST, 100)
    return job_id


def wait(condition) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)


def fail_first(monkeypatch, owner: object, name: str, error: Exception, count: int = 3) -> list[int]:
    """Lets the first calls of a method fail; gives a list with an item per failure."""
    works, failures = getattr(owner, name), []

    def method(*args, **kwargs):
        if len(failures) < count:
            failures.append(1)
            raise error
        return works(*args, **kwargs)

    monkeypatch.setattr(owner, name, method)
    return failures


BUG = RuntimeError("a bug")
FULL, LOCKED = sqlite3.OperationalError("database or disk is full"), sqlite3.OperationalError("database is locked")


@pytest.mark.parametrize(
    ("name", "error"),
    [("take", LOCKED), ("end", FULL), ("get", LOCKED), ("keep", FULL), ("keep", BUG), ("take", BUG)],
)
def test_errors_of_the_list_of_jobs_end_no_thread_and_lose_no_job(service, monkeypatch, name, error):
    began, failures = threading.Event(), []

    def make(*args):
        began.set()
        if name == "keep":  # the heart beats while a job runs
            wait(lambda: len(failures) == 3)
        return FACTS

    monkeypatch.setattr(worker_module, "make_video", make)
    job_ids = [add(service) for _ in range(2)]
    failures = fail_first(monkeypatch, service.store, name, error)
    service.worker.start()
    wait(lambda: len(failures) == 3 and all(service.store.get(job_id).state == states.DONE for job_id in job_ids))
    assert service.worker.is_alive
    assert began.is_set()


def test_a_sweep_that_fails_ends_no_thread(service, monkeypatch):
    service.worker.start()
    monkeypatch.setattr(worker_module, "SWEEP_SECONDS", 0)
    failures = fail_first(monkeypatch, service.worker, "sweep", LOCKED)
    job_id = add(service)
    wait(lambda: len(failures) == 3 and service.store.get(job_id).state == states.DONE)
    assert service.worker.is_alive


def test_a_thread_that_is_gone_is_seen(service):
    assert not service.worker.is_alive  # not begun yet
    service.worker.start()
    assert service.worker.is_alive
    service.worker.stop()
    assert not service.worker.is_alive


def test_cancelling_what_has_ended_deletes_nothing(service):
    job_id = add(service)
    running = service.store.take()
    assert service.store.end(job_id, states.DONE, result=FACTS, as_owner=True)  # meanwhile
    assert service.worker.cancel(job_id) is False
    assert service.delete(running) == states.DONE
    assert (service.worker.folder(job_id) / "portrait").is_file()
    assert service.delete(service.store.get(job_id)) == "deleted"
    assert not service.worker.folder(job_id).exists()
    assert service.worker.cancel(job_id) is False  # there is no such job any more
    assert service.delete(running) == "deleted"


def test_cancelling_what_waits_deletes_its_files(service):
    job_id = add(service)
    assert service.delete(service.store.get(job_id)) == states.CANCELLED
    assert service.store.get(job_id).state == states.CANCELLED
    assert not service.worker.folder(job_id).exists()


def test_a_job_that_is_forgotten_as_it_is_taken_ends_nothing(service):
    job_id = add(service)
    job = service.store.take()
    service.store.remove(job_id)
    service.worker._do(job)
    assert not service.worker.folder(job_id).exists()


def test_failed_jobs_keep_no_files(service, monkeypatch):
    def refuse(*args):
        raise InputError("no face was found", "reference_image_path")

    monkeypatch.setattr(worker_module, "make_video", refuse)
    job_id = add(service)
    service.worker._do(service.store.take())
    assert service.store.get(job_id).error["field"] == "portrait"
    assert not service.worker.folder(job_id).exists()


def test_a_sweep_deletes_only_what_is_ours(service):
    long_ago = time.time() - 10 * worker_module.ABANDONED_SECONDS
    ours, others = service.new_folder()[1], []
    for name in ("2019", "thesis", "a" * 33, "A" * 32, f"{'0' * 32}.old"):
        folder = service.jobs_dir / name
        folder.mkdir()
        (folder / "chapter.txt").write_text("x")
        others.append(folder)
    uploading = service.new_folder()[1]
    os.utime(uploading, (time.time() - 1000,) * 2)  # of a client that has sent for as long as it may
    for folder in (ours, *others):
        os.utime(folder, (long_ago, long_ago))
    service.worker.sweep()
    assert not ours.exists()
    assert uploading.is_dir()
    assert all((folder / "chapter.txt").is_file() for folder in others)


def test_what_earlier_versions_left_beside_the_jobs_is_deleted(service):
    def folder(name: str, file: str, seconds: float):
        path = service.data_dir / name
        path.mkdir()
        (path / file).write_text("x")
        os.utime(path, (time.time() - seconds,) * 2)
        return path

    long = 10 * worker_module.ABANDONED_SECONDS
    ours = [folder("tmp0aw_9xyz", "portrait", long), folder("tmpabcdefgh", "kps.npz", long)]
    others = [
        folder("tmpabcd1234", "portrait.png", long),
        folder("tmp_of_mine", "chapter.txt", long),
        folder("tmp", "portrait", long),
        folder("tmp01234567", "portrait", 1000),
    ]
    (service.data_dir / "tmpfile0123").write_text("x")
    (service.data_dir / "tmplink0123").symlink_to(others[0])
    service.worker.start()
    assert not any(path.exists() for path in ours)
    assert all(any(path.iterdir()) for path in others)
    assert (service.data_dir / "tmpfile0123").exists() and (service.data_dir / "tmplink0123").is_symlink()


def test_the_mode_of_a_folder_that_was_there_stays(tmp_path):
    def modes(folder):
        service = Service(Engine(EMBEDDED_MODEL_DIR, "cpu"), ServeSettings(data_dir=str(folder)))
        service.store.close()
        return [path.stat().st_mode & 0o777 for path in (folder, folder / "jobs", folder / "jobs.sqlite")]

    shared = tmp_path / "shared"
    shared.mkdir(mode=0o755)
    shared.chmod(0o755)
    assert modes(shared) == [0o755, 0o700, 0o600]
    assert modes(tmp_path / "new" / "data") == [0o700, 0o700, 0o600]


def test_there_is_room_for_so_many_bytes(tmp_path):
    settings = ServeSettings(data_dir=str(tmp_path), max_data_gb=0.001)
    service = Service(Engine(EMBEDDED_MODEL_DIR, "cpu"), settings)
    service.num_coming = 1
    service.check_room()
    service.num_coming = 2  # the other may bring as much as all there is
    with pytest.raises(Problem):
        service.check_room()
    service.num_coming = 1
    (service.new_folder()[1] / "portrait").write_bytes(bytes(1_000_000))
    with pytest.raises(Problem) as problem:
        service.check_room()
    assert problem.value.status == 507
    service.store.close()


@pytest.mark.parametrize("is_cancelled", [True, False])
def test_a_job_ends_while_it_is_prepared(service, monkeypatch, is_cancelled):
    """Without giving a turn away that it does not have."""

    def prepare(request, folder, engine, progress, settings):
        if is_cancelled:
            assert service.worker.cancel(folder.name)
        else:
            monkeypatch.setattr(time, "monotonic", lambda: float("inf"))
        with engine.turns.turn(live=True):
            progress.watch.check()

    monkeypatch.setattr(worker_module, "make_video", prepare)
    monkeypatch.setattr(service.worker.engine.turns, "give_way", lambda: pytest.fail("there is no turn to give"))
    job_id = add(service)
    service.worker._do(service.store.take())
    job = service.store.get(job_id)
    assert job.state == (states.CANCELLED if is_cancelled else states.FAILED)
    assert is_cancelled or "the limit of this service" in job.error["message"]
    assert not service.worker.folder(job_id).exists()
