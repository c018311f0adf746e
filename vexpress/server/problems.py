"""Errors of the service: a status, the field that is to blame, and one line."""

import re
from pathlib import Path
from typing import Any

from vexpress.errors import InputError

FIELD_NAMES = {
    "reference_image_path": "portrait",
    "reference_image": "portrait",
    "audio_path": "audio",
    "audio_waveform": "audio",
    "audio_chunks": "audio",
    "kps_path": "kps",
    "kps_sequence": "kps",
    "video_path": "driving_video",
    "video": "driving_video",
}
"""What the package calls a field -> what a request calls it."""
SERVER_PATH = re.compile(r"(?<![\w.:])/(?:[\w.\- ]+/)+[\w.\-]+")


class Problem(Exception):
    """Something that ends a request.

    Args:
        status: of HTTP.
        message: one line.
        field: name in the request; empty where none is to blame.
        headers: of the answer.
    """

    def __init__(self, status: int, message: str, field: str = "", headers: dict[str, str] | None = None):
        super().__init__(message)
        self.status, self.message, self.field, self.headers = status, message, field, headers or {}

    def as_json(self) -> dict[str, Any]:
        """The body of the answer."""
        return {"error": {"field": self.field or None, "message": self.message}}

    @classmethod
    def of(cls, error: InputError, status: int = 422) -> "Problem":
        """A user's mistake, in the words of requests: paths of this machine are nobody's business."""
        field = name_of(error.field)
        value = error.value
        if isinstance(value, Path) or (isinstance(value, str) and SERVER_PATH.search(value)):
            value = None
        line = InputError(error.problem, error.field, value).worded(name_of)
        return cls(status, SERVER_PATH.sub("the file", line), field)


def name_of(field: str) -> str:
    """What a request calls a field of the package."""
    return FIELD_NAMES.get(field, field)
