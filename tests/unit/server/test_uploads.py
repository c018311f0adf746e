"""Bodies of requests: slow ones need no memory, and are given up in each version of Python."""

import asyncio
import json
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="needs the extra serve")
from fastapi import Request  # noqa: E402

from vexpress.errors import InputError  # noqa: E402
from vexpress.server.problems import Problem  # noqa: E402
from vexpress.server.settings import ServeSettings  # noqa: E402
from vexpress.server.uploads import read_json, receive_request  # noqa: E402

SETTINGS = ServeSettings(idle_seconds=1)


def request(receive, kind: str = "application/json") -> Request:
    return Request({"type": "http", "method": "POST", "headers": [(b"content-type", kind.encode())]}, receive)


def test_json_that_comes_slowly_lies_on_the_disk(tmp_path):
    """Of each part, the folder holds it before the next one is asked for."""
    body, seen = json.dumps({"portrait": "eHg=", "fps": 5.0}).encode(), []

    async def receive():
        seen.append((tmp_path / "body.json").stat().st_size)
        number = len(seen) - 1
        return {"type": "http.request", "body": body[number : number + 1], "more_body": number + 1 < len(body)}

    assert asyncio.run(receive_request(request(receive), tmp_path, SETTINGS)) is None
    assert seen == list(range(len(body)))
    assert read_json(tmp_path, SETTINGS) == {"fps": 5.0}
    assert [path.name for path in tmp_path.iterdir()] == ["portrait"]
    assert (tmp_path / "portrait").read_bytes() == b"xx"


def test_what_is_no_json_is_said(tmp_path):
    (tmp_path / "body.json").write_bytes(b"[1]")
    with pytest.raises(InputError, match="must be a JSON object"):
        read_json(tmp_path, SETTINGS)


@pytest.mark.parametrize("kind", ["application/json", "multipart/form-data; boundary=abc"])
def test_a_client_that_stops_is_given_up_in_python_3_10_too(tmp_path, monkeypatch, kind):
    class OldTimeoutError(Exception):
        """What `asyncio.wait_for` raises there is no TimeoutError."""

    async def wait_for(awaitable, timeout):
        awaitable.close() if hasattr(awaitable, "close") else None
        raise OldTimeoutError

    monkeypatch.setattr(asyncio, "TimeoutError", OldTimeoutError)
    monkeypatch.setattr(asyncio, "wait_for", wait_for)

    async def receive():
        return {"type": "http.request", "body": b"x", "more_body": True}

    with pytest.raises(Problem) as problem:
        asyncio.run(receive_request(request(receive, kind), Path(tmp_path), SETTINGS))
    assert problem.value.status == 408
