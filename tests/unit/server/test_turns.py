"""Whose turn it is: one at a time, live streams before jobs."""

import threading

import pytest

from vexpress.server.turns import StoppedError, Turns, Watch


def test_live_goes_before_a_job_that_waits():
    turns, order = Turns(), []
    turns.take()

    def wait(name: str, live: bool) -> None:
        with turns.turn(live):
            order.append(name)

    job = threading.Thread(target=wait, args=("job", False))
    live = threading.Thread(target=wait, args=("live", True))
    job.start()
    live.start()
    while not turns._num_live_waiting:
        pass
    turns.give()
    job.join()
    live.join()
    assert order == ["live", "job"]


def test_each_frees_the_turn_between_items_and_after_errors():
    turns = Turns()

    def items():
        yield 1
        raise StoppedError

    passed = turns.each(items())
    assert next(passed) == 1
    with turns.turn():  # free while the reader is busy
        pass
    with pytest.raises(StoppedError):
        next(passed)
    with turns.turn():
        pass


def test_a_watch_counts_and_ends():
    calls = []
    watch = Watch(lambda: calls.append(1))
    with watch.begin(total=4) as bar:
        bar.set_description("denoising windows")
        assert watch.seconds_left is None
        bar.update()
        bar.update(1)
    assert (watch.stage, watch.done, watch.total, len(calls)) == ("denoising windows", 2, 4, 3)
    assert watch.seconds_left >= 0
