"""Connections that send no request or read no answer are closed; those that work are not."""

import asyncio
import contextlib

import pytest

pytest.importorskip("uvicorn", reason="needs the extra serve")
import uvicorn  # noqa: E402
from uvicorn.server import ServerState  # noqa: E402

from vexpress.server.connections import PatientProtocol  # noqa: E402

PATIENCE = 0.2  # s
GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
LARGE = 64 * 2**20  # more than the system keeps for a client that does not read


async def app(scope, receive, send):
    """A slow answer on /slow, a large one on /large, else a short one."""
    if scope["path"] == "/slow":
        await asyncio.sleep(4 * PATIENCE)
    body = bytes(LARGE if scope["path"] == "/large" else 2)
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for start in range(0, len(body), 2**20):
        part = body[start : start + 2**20]
        await send({"type": "http.response.body", "body": part, "more_body": start + len(part) < len(body)})


def run(use) -> object:
    """Serves one client, who gets a reader, a writer and what the server knows of its connections."""

    async def serve():
        config, state = uvicorn.Config(app, log_config=None, lifespan="off"), ServerState()
        config.load()
        config.timeout_keep_alive = PATIENCE
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: PatientProtocol(config, state, {}), "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        try:
            return await asyncio.wait_for(use(reader, writer, state), 30)
        finally:
            writer.close()
            server.close()

    return asyncio.run(serve())


async def answer_of(reader) -> bytes:
    return await reader.readexactly(len((await reader.readuntil(b"\r\n\r\n")) and b"\0\0"))


@pytest.mark.parametrize("sent", [b"", b"G", GET[:-2]])
def test_a_connection_without_a_request_is_closed(sent):
    async def use(reader, writer, state):
        writer.write(sent)
        return await reader.read()

    assert run(use) == b""


def test_a_connection_whose_next_request_does_not_come_is_closed():
    async def use(reader, writer, state):
        writer.write(GET)
        await answer_of(reader)
        writer.write(GET[:5])  # which ends uvicorn's own timer
        return await reader.read()

    assert run(use) == b""


def test_requests_that_come_in_time_and_slow_answers_are_served():
    async def use(reader, writer, state):
        answers = []
        for path in (b"/", b"/slow", b"/"):
            writer.write(GET.replace(b"/ ", path + b" "))
            answers.append(await answer_of(reader))
        writer.write(GET + GET.replace(b"/ ", b"/slow ") + GET)  # at once
        return answers + [await answer_of(reader) for _ in range(3)]

    assert run(use) == [b"\0\0"] * 6


def test_a_client_that_reads_nothing_is_given_up():
    async def use(reader, writer, state):
        writer.transport.pause_reading()
        writer.write(GET.replace(b"/ ", b"/large "))
        await asyncio.sleep(0)
        while not state.connections:
            await asyncio.sleep(0.01)
        while state.connections or state.tasks:
            await asyncio.sleep(0.01)
        return True

    with contextlib.suppress(ConnectionError):
        assert run(use)


def test_one_that_reads_gets_all():
    async def use(reader, writer, state):
        writer.write(GET.replace(b"/ ", b"/large "))
        await reader.readuntil(b"\r\n\r\n")
        return len(await reader.readexactly(LARGE))

    assert run(use) == LARGE
