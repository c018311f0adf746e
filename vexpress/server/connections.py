"""Connections: clients that send no request, or read no answer, are given up, so that they cannot take them all."""

import asyncio
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol


class PatientProtocol(AutoHTTPProtocol):
    """Uvicorn's HTTP, with limits to how long a request's head may take, and a client that reads nothing.

    Uvicorn's own `timeout_keep_alive`, which is the limit here as well, is for whole requests that are followed by
    nothing: one byte ends it, and a new connection does not begin it.
    """

    _head_timer: asyncio.TimerHandle | None = None
    _reading_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        """As uvicorn's; the first head has to come."""
        super().connection_made(transport)
        self._expect_head()

    def on_response_complete(self) -> None:
        """As uvicorn's; the next head has to come."""
        super().on_response_complete()
        self._expect_head()

    def handle_websocket_upgrade(self, *event: Any) -> None:
        """As uvicorn's; from here on another protocol has the connection."""
        self._end_timers()
        super().handle_websocket_upgrade(*event)

    def pause_writing(self) -> None:
        """As uvicorn's; the client has to go on reading."""
        super().pause_writing()
        self._reading_timer = self.loop.call_later(self.timeout_keep_alive, self.transport.abort)

    def resume_writing(self) -> None:
        """As uvicorn's; the client has read."""
        if self._reading_timer is not None:
            self._reading_timer.cancel()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """As uvicorn's."""
        self._end_timers()
        super().connection_lost(exc)

    def _expect_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
        self._head_timer = self.loop.call_later(self.timeout_keep_alive, self._give_up, self.cycle)

    def _give_up(self, last: Any) -> None:
        """Closes the connection if no head has come after the `last` request; None is the beginning."""
        if self.cycle is last and (last is None or last.response_complete):
            self.transport.abort()  # what is left of the last answer has not been read in this time, either

    def _end_timers(self) -> None:
        for timer in (self._head_timer, self._reading_timer):
            if timer is not None:
                timer.cancel()
