"""The list of jobs: order, room, owners that die, restarts."""

import threading
import time

import pytest

from vexpress.server import store as states
from vexpress.server.store import JobStore, QueueFullError, new_job_id


@pytest.fixture
def store(tmp_path):
    store = JobStore(tmp_path / "jobs.sqlite")
    yield store
    store.close()


def add(store: JobStore, count: int = 1, room: int = 100) -> list[str]:
    ids = [new_job_id() for _ in range(count)]
    for job_id in ids:
        store.add(job_id, {"number": job_id}, room)
    return ids


def test_first_come_first_served(store):
    ids = add(store, 3)
    assert [store.position(job_id) for job_id in ids] == [0, 1, 2]
    taken = store.take()
    assert (taken.id, taken.state, taken.attempts, taken.request) == (ids[0], states.RUNNING, 1, {"number": ids[0]})
    assert [store.position(job_id) for job_id in ids[1:]] == [1, 2]
    assert store.end(ids[0], states.DONE, result={"num_frames": 5}, as_owner=True)
    assert store.get(ids[0]).result == {"num_frames": 5}
    assert not store.end(ids[0], states.CANCELLED)  # has ended
    assert store.seconds_per_job() < 5


def test_there_is_no_room_beyond_the_limit_for_many_at_once(tmp_path):
    stores = [JobStore(tmp_path / "jobs.sqlite") for _ in range(4)]
    refused = []

    def fill(store: JobStore) -> None:
        for _ in range(10):
            try:
                add(store, room=7)
            except QueueFullError:
                refused.append(1)

    threads = [threading.Thread(target=fill, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert stores[0].count(states.QUEUED) == 7
    assert len(refused) == 33
    taken = [store.take().id for store in stores]
    assert len(set(taken)) == 4  # no job has two owners


def test_a_job_of_a_silent_owner_waits_again_and_the_old_owner_is_told(tmp_path, monkeypatch):
    one, other = JobStore(tmp_path / "jobs.sqlite"), JobStore(tmp_path / "jobs.sqlite")
    [job_id] = add(one)
    one.take()
    assert one.keep(job_id, {"share": 0.5})
    assert other.get(job_id).progress == {"share": 0.5}
    other.take_up()
    assert other.take() is None  # its owner was heard
    monkeypatch.setattr(states, "LEASE_SECONDS", -1.0)
    other.take_up()
    assert other.take().attempts == 2
    assert not one.keep(job_id, {})
    assert not one.end(job_id, states.DONE, as_owner=True)
    one.put_back(job_id)
    assert other.get(job_id).state == states.RUNNING
    assert other.end(job_id, states.DONE, as_owner=True)


def test_what_brings_processes_down_fails_in_the_end(tmp_path, monkeypatch):
    store = JobStore(tmp_path / "jobs.sqlite")
    [job_id] = add(store)
    monkeypatch.setattr(states, "LEASE_SECONDS", -1.0)
    for _ in range(states.MAX_ATTEMPTS):
        assert store.take().id == job_id
        store.take_up()
    assert store.get(job_id).state == states.FAILED
    assert "stopped 3 times" in store.get(job_id).error["message"]


def test_owners_of_this_machine_that_are_gone_are_seen_at_once(store):
    [job_id] = add(store)
    store.owner = f"{states.HOST}-999999999-00000000"
    store.take()
    store.take_up()
    assert store.get(job_id).state == states.QUEUED


def test_ended_jobs_are_found_by_age(store):
    old, new = add(store, 2)
    store.take()
    store.end(old, states.FAILED, error={"field": None, "message": "no"})
    assert store.ended_before(time.time() + 1) == [old]
    assert store.ended_before(time.time() - 10) == []
    store.remove(old)
    assert store.ids() == {new}
