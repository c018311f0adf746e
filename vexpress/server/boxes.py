"""What passes between an event loop and a thread, with room for a little: whoever is fast waits for whoever is slow."""

import asyncio
import contextlib
import queue
import threading
import time

from vexpress.server.turns import StoppedError

INBOX_PIECES, OUTBOX_PIECES = 64, 64


class Inbox:
    """Sound from the client's coroutine to the thread that makes frames; full if that thread is late."""

    def __init__(self):
        self._room, self._items = asyncio.Semaphore(INBOX_PIECES), queue.Queue()
        self._loop = asyncio.get_running_loop()

    async def put(self, item: bytes | None | Exception) -> None:
        """Waits for room. None ends the sound, an exception the stream."""
        if not isinstance(item, Exception):
            await self._room.acquire()
        self._items.put((time.monotonic(), item))

    def get(self, timeout: float) -> tuple[float, bytes | None]:
        """The next piece, and when it came; called by the thread.

        Raises:
            StoppedError: nothing came.
        """
        try:
            moment, item = self._items.get(timeout=timeout)
        except queue.Empty as error:
            raise StoppedError(f"no sound came for {timeout:g} s") from error
        if isinstance(item, Exception):
            raise item
        self._loop.call_soon_threadsafe(self._room.release)
        return moment, item


class Outbox:
    """Bytes and messages from the thread to the client's coroutine; the thread waits while the client reads slowly."""

    def __init__(self, idle_seconds: float):
        self._room, self._items = threading.Semaphore(OUTBOX_PIECES), asyncio.Queue()
        self._loop, self._idle_seconds = asyncio.get_running_loop(), idle_seconds
        self._closed = False

    def put(self, item: bytes | dict) -> None:
        """Waits for room; called by the thread.

        Raises:
            StoppedError: the client does not read, or is gone.
        """
        if self._closed or not self._room.acquire(timeout=self._idle_seconds) or self._closed:
            raise StoppedError
        self._loop.call_soon_threadsafe(self._items.put_nowait, item)

    def end(self) -> None:
        """No more comes; called by the thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            self._loop.call_soon_threadsafe(self._items.put_nowait, None)

    def close(self) -> None:
        """Nobody reads any more; called by the event loop."""
        self._closed = True
        self._room.release()
        self._items.put_nowait(None)

    async def get(self) -> bytes | dict | None:
        """The next one; None is the end."""
        item = await self._items.get()
        self._room.release()
        return item
