"""One model, several users: who computes now. A live stream goes before jobs, which give way between two windows."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator


class StoppedError(Exception):
    """A job or stream ends early.

    Attributes:
        reason: one line; empty where whoever asked knows why.
    """

    def __init__(self, reason: str = ""):
        super().__init__(reason)
        self.reason = reason


class Turns:
    """Lets one thread compute at a time."""

    def __init__(self):
        self._changed = threading.Condition()
        self._busy = False
        self._num_live_waiting = 0

    def take(self, live: bool = False) -> None:
        """Waits for a turn."""
        with self._changed:
            self._num_live_waiting += live
            self._changed.wait_for(lambda: not self._busy and (live or not self._num_live_waiting))
            self._num_live_waiting -= live
            self._busy = True

    def give(self) -> None:
        """Ends a turn."""
        with self._changed:
            self._busy = False
            self._changed.notify_all()

    def give_way(self) -> None:
        """Lets a live stream go first, if one waits; called by a job that has the turn."""
        if self._num_live_waiting:
            self.give()
            self.take()

    @contextlib.contextmanager
    def turn(self, live: bool = False) -> Iterator[None]:
        """A turn as a block."""
        self.take(live)
        try:
            yield
        finally:
            self.give()

    def each(self, items: Iterator, live: bool = False) -> Iterator:
        """Passes items on; computes each in a turn, and waits for the reader outside of it."""
        while True:
            with self.turn(live):
                item = next(items, self)
            if item is self:
                return
            yield item


class Watch:
    """What the pipeline reports of its work; also ends it. In place of the pipeline's progress bar.

    Args:
        between: called after each window of a step and each frame, by who has the turn; may raise `StoppedError`.
        check: the same for work before, by who has none; called between its pieces.
    """

    def __init__(self, between: Callable[[], None] = lambda: None, check: Callable[[], None] = lambda: None):
        self._between, self.check = between, check
        self.stage, self.done, self.total = "preparing", 0, 0
        self._started = time.monotonic()

    def begin(self, total: int | None) -> "Watch":
        """A new part of the work, of `total` pieces; None where nobody knows."""
        self.done, self.total = 0, total or 0
        self._started = time.monotonic()
        self._between()
        return self

    def __enter__(self) -> "Watch":
        return self

    def __exit__(self, *exception) -> None:
        pass

    def set_description(self, text: str, *args, **kwargs) -> None:
        """Names the part."""
        self.stage = text

    def set_postfix_str(self, text: str, *args, **kwargs) -> None:
        """Details, which nobody shows."""

    def update(self, count: int = 1) -> None:
        """So many more pieces are done."""
        self.done += count
        self._between()

    @property
    def seconds_left(self) -> float | None:
        """Of the present part, by its speed so far."""
        done, total = self.done, self.total  # another thread counts on
        if not done or not total:
            return None
        return (time.monotonic() - self._started) / done * max(0, total - done)
