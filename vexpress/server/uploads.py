"""Requests with files: streamed to the disk, counted, and kept under names of ours."""

import asyncio
import base64
import binascii
import shutil
import time
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from fastapi import Request
from python_multipart.exceptions import FormParserError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from vexpress.errors import InputError
from vexpress.server.problems import Problem
from vexpress.server.schema import FILE_FIELDS, MAX_TEXT_BYTES, read_json_object
from vexpress.server.settings import ServeSettings

MAX_FIELDS = 64
MAX_PART_IN_MEMORY = 64 * 1024
BASE64_GROWTH = 1.4  # of a file's size, with some line breaks
BYTES_PER_MB = 1_000_000
MAX_UPLOAD_SECONDS = 900
JSON_BODY = "body.json"


async def limited(request: Request, max_bytes: int, idle_seconds: float) -> AsyncIterator[bytes]:
    """A request's body, as long as it is not too large and goes on coming.

    Raises:
        Problem: it is too large (413), or its client has stopped sending (408).
    """
    declared = request.headers.get("content-length", "0")
    too_large = Problem(413, f"the request is larger than {max_bytes / BYTES_PER_MB:g} MB, the limit of this service")
    if declared.isdecimal() and int(declared) > max_bytes:
        raise too_large
    stream, received, deadline = request.stream(), 0, time.monotonic() + MAX_UPLOAD_SECONDS
    while True:
        try:
            part = await asyncio.wait_for(anext(stream), min(idle_seconds, deadline - time.monotonic()))
        except StopAsyncIteration:
            return
        except asyncio.TimeoutError as error:  # which is no TimeoutError in Python 3.10
            raise Problem(
                408, f"nothing was sent for {idle_seconds:g} s, or not all in {MAX_UPLOAD_SECONDS} s"
            ) from error
        received += len(part)
        if received > max_bytes:
            raise too_large
        yield part


async def receive_request(request: Request, folder: Path, settings: ServeSettings) -> dict[str, str] | None:
    """Takes a request's body to the disk, so that those that come slowly, however many, need no memory.

    The files of a form go into `folder`, each under the name of its field; JSON as it is, for `read_json`, which needs
    memory and so is called by few at a time.

    Returns:
        Texts of a form's other fields; None for JSON.

    Raises:
        Problem: too large, too slow, or of another type.
        InputError: no valid form.
    """
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    max_bytes = _max_bytes(settings)
    if kind == "multipart/form-data":
        return await _read_form(request, folder, limited(request, max_bytes, settings.idle_seconds))
    if kind != "application/json":
        raise Problem(415, "send multipart/form-data or application/json")
    with (folder / JSON_BODY).open("xb", buffering=0) as file:
        async for part in limited(request, int(max_bytes * BASE64_GROWTH), settings.idle_seconds):
            await run_in_threadpool(file.write, part)
    return None


def read_json(folder: Path, settings: ServeSettings) -> dict[str, Any]:
    """Reads the JSON that `receive_request` has left; its files go into `folder`, each under the name of its field.

    Returns:
        Values of all fields but files.

    Raises:
        Problem: a file is too large.
        InputError: no valid JSON, or no base64.
    """
    path = folder / JSON_BODY
    values = read_json_object(path.read_bytes())
    path.unlink()
    save_base64_files(values, folder, _max_bytes(settings))
    return values


def _max_bytes(settings: ServeSettings) -> int:
    return int(settings.max_upload_mb * BYTES_PER_MB)


async def _read_form(request: Request, folder: Path, body: AsyncIterator[bytes]) -> dict[str, str]:
    parser = MultiPartParser(
        request.headers, body, max_files=len(FILE_FIELDS), max_fields=MAX_FIELDS, max_part_size=MAX_TEXT_BYTES
    )
    parser.spool_max_size = MAX_PART_IN_MEMORY  # larger parts are kept in files without a name
    try:
        form = await parser.parse()
    except (MultiPartException, FormParserError, KeyError, UnicodeDecodeError, ValueError) as error:
        raise InputError("the body is no valid form") from error
    values: dict[str, str] = {}
    seen: set[str] = set()
    try:
        for name, value in form.multi_items():
            if name in seen:
                raise InputError("is given twice", name[:100])
            seen.add(name)
            if not isinstance(value, UploadFile):
                values[name] = value
            elif name not in FILE_FIELDS:
                raise InputError(f"is no file of a request; there are {', '.join(FILE_FIELDS)}", name[:100])
            elif value.size:
                await run_in_threadpool(_save, value.file, folder / name)
            elif value.filename:
                raise InputError("the file is empty", name)
    finally:
        await form.close()
    for name in FILE_FIELDS:
        if values.pop(name, ""):
            raise InputError("must be a file", name)
    return values


def _save(file: Any, path: Path) -> None:
    with path.open("xb") as target:
        shutil.copyfileobj(file, target)


def save_base64_files(values: dict[str, Any], folder: Path, max_bytes: int) -> None:
    """Takes the files out of a JSON request's values, and writes them into `folder` under the names of their fields.

    Raises:
        InputError: no base64.
        Problem: too large.
    """
    for name in FILE_FIELDS:
        text = values.pop(name, None)
        if text is None:
            continue
        try:
            content = base64.b64decode(text) if isinstance(text, str) else b""
        except (binascii.Error, ValueError) as error:
            raise InputError("must be a file in base64", name) from error
        if not content:
            raise InputError("must be a file in base64", name)
        if len(content) > max_bytes:
            raise Problem(413, f"is larger than {max_bytes / BYTES_PER_MB:g} MB", name)
        (folder / name).write_bytes(content)


def name_kps(path: Path) -> Path:
    """Gives a file of keypoints the suffix of what it holds, by which it is read; returns its new name.

    Raises:
        InputError: it is of no kind that holds keypoints.
    """
    with path.open("rb") as file:
        start = file.read(9)
    if start[:2] == b"PK":
        try:
            with zipfile.ZipFile(path) as archive:
                suffix = ".npz" if any(name.endswith(".npy") for name in archive.namelist()) else ".pth"
        except (zipfile.BadZipFile, ValueError, OSError) as error:
            raise InputError("is damaged", "kps_path") from error
    elif start[8:9] == b"{":
        suffix = ".safetensors"
    else:
        raise InputError("must be a file .npz, .safetensors or .pth", "kps_path")
    return path.rename(path.with_name(f"kps{suffix}"))
