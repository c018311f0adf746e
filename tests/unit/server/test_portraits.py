"""Requests about a portrait leave nothing behind, and count against the room for files as others do."""

import asyncio
import os
import time

import pytest

pytest.importorskip("fastapi", reason="needs the extra serve")
from fastapi import Request  # noqa: E402

from vexpress.model_folder import EMBEDDED_MODEL_DIR  # noqa: E402
from vexpress.server.engine import Engine  # noqa: E402
from vexpress.server.portraits import look_at_portrait  # noqa: E402
from vexpress.server.problems import Problem  # noqa: E402
from vexpress.server.service import Service  # noqa: E402
from vexpress.server.settings import ServeSettings  # noqa: E402
from vexpress.server.worker import ABANDONED_SECONDS  # noqa: E402

BODY = b'{"portrait": "' + b"A" * 100_000


@pytest.fixture
def service(tmp_path):
    settings = ServeSettings(data_dir=str(tmp_path), max_data_gb=0.001, max_upload_mb=1)
    service = Service(Engine(EMBEDDED_MODEL_DIR, "cpu"), settings)
    yield service
    service.store.close()


def everything(service: Service) -> set[str]:
    return {os.path.join(folder, name) for folder, _, names in os.walk(service.data_dir) for name in names}


async def half_a_request(service: Service, look) -> None:
    """Sends the half of a request, calls `look`, and goes away."""
    asked = asyncio.Event()

    async def receive():
        if asked.is_set():
            await asyncio.Event().wait()
        asked.set()
        return {"type": "http.request", "body": BODY, "more_body": True}

    scope = {"type": "http", "method": "POST", "headers": [(b"content-type", b"application/json")]}
    task = asyncio.create_task(look_at_portrait(Request(scope, receive), service))
    while service._kept_bytes() < len(BODY) and not task.done():
        await asyncio.sleep(0.01)
    look()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def test_what_is_coming_in_is_counted_and_is_gone_with_its_client(service):
    before = everything(service)

    def look():
        assert service._kept_bytes() == len(BODY)
        assert service.num_coming == 1
        with service.coming(), pytest.raises(Problem, match="files are kept already"):
            service.check_room()

    asyncio.run(asyncio.wait_for(half_a_request(service, look), 20))
    assert everything(service) == before
    assert service.num_coming == 0


def test_without_room_nothing_is_read(service):
    (service.new_folder()[1] / "portrait").write_bytes(bytes(1_000_000))
    with pytest.raises(Problem) as problem:
        asyncio.run(look_at_portrait(Request({"type": "http", "method": "POST", "headers": []}), service))
    assert problem.value.status == 507


def test_what_a_killed_service_left_is_swept(service):
    killed = service.passing_folder()  # never left
    folder = killed.__enter__()
    (folder / "portrait").write_bytes(b"a face")
    service.worker.sweep()
    assert folder.is_dir()  # of a replica that lives, perhaps
    os.utime(folder, (time.time() - 2 * ABANDONED_SECONDS,) * 2)
    service.worker.sweep()
    assert not folder.exists()
