"""Where the face is in a portrait, before a video is made of it."""

from pathlib import Path
from typing import Any

import numpy as np
from fastapi import Request
from starlette.concurrency import run_in_threadpool

from vexpress.media.faces import head_and_shoulders_box
from vexpress.request import ADVISED_PORTRAIT_PX
from vexpress.server.problems import Problem
from vexpress.server.requests import load_portrait
from vexpress.server.service import Service
from vexpress.server.uploads import read_json, receive_request


async def look_at_portrait(request: Request, service: Service) -> dict[str, Any]:
    """Reads a request with a picture, and finds the face.

    Raises:
        InputError: no picture, or no face.
        Problem: there is no room for files.
    """
    with service.coming():
        await run_in_threadpool(service.check_room)  # before anything is read
        with service.passing_folder() as folder:
            form = await receive_request(request, folder, service.settings)
            async with service.checks:
                return await run_in_threadpool(_look, folder, form, service)


def _look(folder: Path, form: dict[str, str] | None, service: Service) -> dict[str, Any]:
    values = read_json(folder, service.settings) if form is None else form
    path = folder / "portrait"
    if not path.is_file():
        path = service.examples.path("portrait", str(values.get("portrait_example", "")))
    return find_face(path, service)


def find_face(path: Path, service: Service) -> dict[str, Any]:
    """Size of the picture, the box of the face and the crop around it; x1 y1 x2 y2 in px."""
    image = load_portrait(path)
    faces = service.engine.detector.detect(np.asarray(image))
    if not faces:
        raise Problem(422, "no face was found; give a picture with one clear frontal face", "portrait")
    box, options = faces[0].bbox, service.engine.defaults
    framing = ADVISED_PORTRAIT_PX, options.crop_scale, options.crop_face_height
    return {
        "width": image.width,
        "height": image.height,
        "num_faces": len(faces),
        "face": [round(float(value), 1) for value in box],
        "crop": list(head_and_shoulders_box(box, image.width, image.height, *framing)),
    }
