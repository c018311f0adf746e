"""A live stream's WebSocket: one coroutine reads, one writes, and a thread makes frames; each waits for the others."""

import asyncio
import contextlib
import json
import logging
import threading

from starlette.concurrency import run_in_threadpool
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from vexpress.errors import InputError
from vexpress.server.live import LiveSession
from vexpress.server.problems import Problem
from vexpress.server.service import Service
from vexpress.server.streaming import MIME
from vexpress.server.turns import StoppedError

MAX_PIECE_BYTES = 400_000
MAX_REASON_BYTES = 123  # of the frame that closes a WebSocket
NORMAL, BAD_DATA, SERVER_ERROR, TRY_LATER = 1000, 1007, 1011, 1013

logger = logging.getLogger(__name__)


async def serve_socket(socket: WebSocket, service: Service) -> None:
    """A client's stream, from its first message to its end; its slot is free before the client hears of that."""
    await socket.accept()
    if not service.engine.is_ready:
        await _refuse(socket, Problem(503, service.failure or "the model is being loaded"), TRY_LATER)
        return
    if service.settings.max_streams == 0 or not service.streams.acquire(blocking=False):
        service.metrics.refused.labels("429").inc()
        await _refuse(socket, Problem(429, f"{service.settings.max_streams} streams are open already"), TRY_LATER)
        return
    service.num_streams += 1
    is_sent, refusal = False, None
    try:
        is_sent = await _serve(socket, service)
    except WebSocketDisconnect:
        pass
    except Problem as problem:
        refusal = problem, BAD_DATA
    except InputError as error:
        refusal = Problem.of(error), BAD_DATA
    except StoppedError as stopped:  # while it was prepared
        if stopped.reason:
            refusal = Problem(408, stopped.reason), TRY_LATER
    except Exception as error:  # a bug, or a full disk; the client must hear of it
        logger.exception("a live stream failed")
        refusal = Problem(500, f"an error of the server ({type(error).__name__})"), SERVER_ERROR
    finally:
        service.num_streams -= 1
        service.streams.release()
    if refusal is not None:
        await _refuse(socket, *refusal)
    elif is_sent and socket.client_state == WebSocketState.CONNECTED:
        with contextlib.suppress(RuntimeError, WebSocketDisconnect):  # gone already
            await socket.close(NORMAL)


async def _refuse(socket: WebSocket, problem: Problem, code: int) -> None:
    if socket.application_state == WebSocketState.CONNECTED and socket.client_state == WebSocketState.CONNECTED:
        with contextlib.suppress(RuntimeError, WebSocketDisconnect):  # gone already
            await socket.send_json({"type": "error", **problem.as_json()})
            await socket.close(code, problem.message.encode()[:MAX_REASON_BYTES].decode(errors="ignore"))


async def _serve(socket: WebSocket, service: Service) -> bool:
    """Whether all was sent."""
    idle = service.settings.idle_seconds
    try:
        message = await asyncio.wait_for(socket.receive(), idle)
    except asyncio.TimeoutError as error:  # which is no TimeoutError in Python 3.10
        raise Problem(408, f"nothing was sent for {idle:g} s") from error
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message.get("code", NORMAL))
    try:
        start = json.loads(message.get("text") or "")
        if not isinstance(start, dict):
            raise ValueError
    except (ValueError, RecursionError) as error:
        raise Problem(400, "the first message must be a JSON object") from error
    if start.pop("type", "start") != "start":
        raise Problem(400, "the first message must be of type start", "type")
    session = LiveSession(service, start)
    receiver = asyncio.create_task(_receive(socket, session))  # hears at any time that the client is gone
    try:
        await run_in_threadpool(session.prepare)
        return await _run(socket, session, service)
    finally:
        receiver.cancel()
        await session.leave()


async def _run(socket: WebSocket, session: LiveSession, service: Service) -> bool:
    options = session.request.options
    await socket.send_json(
        {
            "type": "ready",
            "mime": MIME if session.output == "mp4" else "image/jpeg",
            "width": options.image_width,
            "height": options.image_height,
            "fps": options.fps,
            "expected_factor": service.engine.speed.factor,
        }
    )
    thread = threading.Thread(target=session.run, name="live", daemon=True)
    thread.start()
    try:
        return await _send(socket, session, service.settings.idle_seconds)
    finally:
        await session.leave()
        await run_in_threadpool(thread.join)


async def _receive(socket: WebSocket, session: LiveSession) -> None:
    while True:
        message = await socket.receive()
        if message["type"] == "websocket.disconnect":
            await session.leave()
            return
        piece = message.get("bytes")
        if piece:  # an empty one is no sound, and no sign of a client that speaks
            if len(piece) > MAX_PIECE_BYTES:
                await session.inbox.put(InputError(f"pieces may have {MAX_PIECE_BYTES} bytes", "audio"))
                return
            await session.inbox.put(piece)
        elif (message.get("text") or "") and '"end"' in message["text"]:
            await session.inbox.put(None)


async def _send(socket: WebSocket, session: LiveSession, idle: float) -> bool:
    """Whether all was sent, and not to a client that is gone or reads nothing."""
    while (item := await session.outbox.get()) is not None:
        sending = socket.send_bytes(item) if isinstance(item, bytes) else socket.send_json(item)
        try:
            await asyncio.wait_for(sending, idle)
        except (asyncio.TimeoutError, RuntimeError, WebSocketDisconnect):
            return False
    return True
