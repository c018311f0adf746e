"""Jobs over HTTP: make a video, follow its progress, fetch it."""

import asyncio
import json
from collections.abc import AsyncIterator
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi import Path as PathParameter
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.concurrency import run_in_threadpool

from vexpress.errors import InputError
from vexpress.server import store as states
from vexpress.server.jobs import STREAM, VIDEO, api_call, command_line, download_name, file_of
from vexpress.server.openapi import ANSWERS
from vexpress.server.problems import Problem
from vexpress.server.requests import VideoRequest
from vexpress.server.service import Service
from vexpress.server.store import Job
from vexpress.server.uploads import receive_request

POLL_SECONDS = 0.1
KEEP_ALIVE_SECONDS = 15
CHUNK_BYTES = 64 * 1024

router = APIRouter(prefix="/v1", tags=["videos"], responses=ANSWERS)


async def _service(request: Request) -> Service:
    return request.app.state.service


OwnService = Annotated[Service, Depends(_service)]
JobId = Annotated[str, PathParameter(pattern="^[0-9a-f]{32}$", description="id of the job")]


class JobFile(str, Enum):
    """A file of a job beside its video."""

    portrait = "portrait"
    audio = "audio"
    kps = "kps"
    sheet = "sheet"


async def _find(service: Service, job_id: str) -> Job:
    job = await run_in_threadpool(service.store.get, job_id)
    if job is None:
        raise Problem(404, "there is no such job, or its time is over", "id")
    return job


async def _create(service: Service, request: Request) -> Job:
    with service.coming():
        await run_in_threadpool(service.check_queue)  # before anything is read
        await run_in_threadpool(service.check_room)
        job_id, folder = await run_in_threadpool(service.new_folder)
        try:
            form = await receive_request(request, folder, service.settings)
            async with service.checks:
                return await run_in_threadpool(service.submit, job_id, folder, form)
        except BaseException as error:  # a client that goes away, too
            service.discard(folder)
            if isinstance(error, InputError):
                raise Problem.of(error) from error
            raise


@router.post("/videos", status_code=202, summary="Ask for a video")
async def post_video(request: Request, service: OwnService) -> JSONResponse:
    """Checks the request and puts it into the queue."""
    job = await _create(service, request)
    body = await run_in_threadpool(service.describe, job)
    return JSONResponse(body, 202, {"Location": f"/v1/videos/{job.id}"})


@router.post("/stream", summary="Ask for a video and play it while it is made")
async def post_stream(request: Request, service: OwnService) -> StreamingResponse:
    """As /v1/videos, but answers with fragmented MP4; whoever goes away before its end cancels the job."""
    job = await _create(service, request)
    return StreamingResponse(
        _tail(service, job.id, cancels=True),
        media_type="video/mp4",
        headers={"X-Job": job.id, "Cache-Control": "no-store"},
    )


@router.get("/videos/{job_id}", summary="State of a job")
async def get_video(job_id: JobId, request: Request, service: OwnService) -> dict[str, Any]:
    """State, place in the queue, progress, error; when done, facts and how to make the same video again."""
    job = await _find(service, job_id)
    body = await run_in_threadpool(service.describe, job)
    if job.state == states.DONE:
        wanted = VideoRequest.from_json(job.request, service.worker.folder(job.id))
        base = str(request.base_url).rstrip("/")
        engine = service.engine
        body["command"] = command_line(wanted, engine.model_dir, engine.defaults, engine.has_natural_motion)
        body["api_call"] = api_call(wanted, base, engine.defaults)
    return body


@router.delete("/videos/{job_id}", summary="Cancel or forget a job")
async def delete_video(job_id: JobId, service: OwnService) -> dict[str, str]:
    """Cancels a job that waits or runs, within one window; forgets one that has ended. Its files are deleted."""
    job = await _find(service, job_id)
    return {"id": job.id, "state": await run_in_threadpool(service.delete, job)}


@router.get("/videos/{job_id}/content", summary="The video", response_class=FileResponse)
async def get_content(job_id: JobId, service: OwnService) -> FileResponse:
    """MP4 with sound; ranges are served."""
    job = await _find(service, job_id)
    if job.state != states.DONE:
        raise Problem(409, f"the job is {job.state}; there is no video", "id")
    return _file(service.worker.folder(job.id) / VIDEO, "video/mp4", f"talking-{job.id[:8]}.mp4")


@router.get("/videos/{job_id}/stream", summary="The video while it is made")
async def get_stream(job_id: JobId, service: OwnService) -> StreamingResponse:
    """Fragmented MP4, from the first frame on, which grows as frames are made."""
    job = await _find(service, job_id)
    if job.state in (states.FAILED, states.CANCELLED):
        raise Problem(409, f"the job is {job.state}; there is no video", "id")
    return StreamingResponse(_tail(service, job.id), media_type="video/mp4", headers={"Cache-Control": "no-store"})


@router.get("/videos/{job_id}/events", summary="Progress as server-sent events")
async def get_events(job_id: JobId, service: OwnService) -> StreamingResponse:
    """An event `progress` at each change, then one of `done`, `failed` and `cancelled`."""
    await _find(service, job_id)
    return StreamingResponse(
        _events(service, job_id), media_type="text/event-stream", headers={"Cache-Control": "no-store"}
    )


@router.get("/videos/{job_id}/files/{name}", summary="Other files of a job", response_class=FileResponse)
async def get_file(job_id: JobId, name: JobFile, service: OwnService) -> FileResponse:
    """What went in, keypoints of a driving video, and the contact sheet."""
    job = await _find(service, job_id)
    folder = service.worker.folder(job.id)
    wanted = VideoRequest.from_json(job.request, folder)
    try:
        path = file_of(name.value, wanted, folder)
    except KeyError:
        path = Path("/nothing")
    if name is JobFile.sheet:
        return _file(path, "image/png", "sheet.png")
    return _file(path, "application/octet-stream", download_name(name.value, wanted))


async def _events(service: Service, job_id: str) -> AsyncIterator[str]:
    last, quiet = None, 0.0
    while True:
        job = await run_in_threadpool(service.store.get, job_id)
        if job is None:
            yield _event("cancelled", {"id": job_id, "state": states.CANCELLED})
            return
        body = await run_in_threadpool(service.describe, job)
        if job.state in states.ENDED:
            yield _event(job.state, body)
            return
        if body != last:
            yield _event("progress", body)
            last, quiet = body, 0.0
        elif quiet > KEEP_ALIVE_SECONDS:
            yield ": still here\n\n"
            quiet = 0.0
        await asyncio.sleep(POLL_SECONDS)
        quiet += POLL_SECONDS


async def _tail(service: Service, job_id: str, cancels: bool = False) -> AsyncIterator[bytes]:
    """A job's growing file."""
    path, position, ended = service.worker.folder(job_id) / STREAM, 0, False
    try:
        while True:
            job = await run_in_threadpool(service.store.get, job_id)
            last_look = job is None or job.state in states.ENDED
            while part := await run_in_threadpool(_read_part, path, position):
                position += len(part)
                yield part
            if last_look:
                ended = True
                return
            await asyncio.sleep(POLL_SECONDS / 2)
    finally:
        if cancels and not ended:
            # In a thread, as another process may hold the list of jobs; not awaited, as this task is being ended.
            asyncio.get_running_loop().run_in_executor(None, service.worker.cancel, job_id)


def _read_part(path: Path, position: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(position)
            return file.read(CHUNK_BYTES)
    except FileNotFoundError:
        return b""


def _file(path: Path, kind: str, name: str) -> Response:
    if not path.is_file():
        raise Problem(404, "there is no such file", "name")
    return FileResponse(path, media_type=kind, filename=name, content_disposition_type="inline")


def _event(name: str, body: dict[str, Any]) -> str:
    return f"event: {name}\ndata: {json.dumps(body)}\n\n"
