"""Errors of the service: a status, the field that is to blame, and one line."""

import re
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
SERVER_PATH = re.compile(r"(?<![\w.:])/(?!v1/info\b)(?:(?:[^/:;,]|[:;,](?!\s))+/)+(?:[^\s/:;,]|[:;,](?!\s|$))*")
"""An absolute path but our own /v1/info; its folders may have names of any kind. Once a folder is found nothing can
fail any more, so a search takes time in proportion to the text."""
MAX_VALUE_CHARACTERS = 200
MAX_LINE_CHARACTERS = 1000


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
        self.status, self.message, self.field, self.headers = (
            status,
            _sendable(message),
            _sendable(field),
            headers or {},
        )

    def as_json(self) -> dict[str, Any]:
        """The body of the answer."""
        return {"error": {"field": self.field or None, "message": self.message}}

    @classmethod
    def of(cls, error: InputError, status: int = 422) -> "Problem":
        """A user's mistake, in the words of requests: paths of this machine are nobody's business."""
        field = name_of(error.field)
        line = InputError(error.problem, error.field, _shown(error.value)).worded(name_of)[:MAX_LINE_CHARACTERS]
        return cls(status, SERVER_PATH.sub("the file", line), field)


def _shown(value: object) -> object:
    """A value as an answer repeats it: short; None, which is left out, where it is a path or has parts."""
    if not isinstance(value, str | bool | int | float):
        return None
    text = str(value)[:MAX_VALUE_CHARACTERS]
    return None if SERVER_PATH.search(text) else text


def _sendable(text: str) -> str:
    """A text that UTF-8 can carry: JSON can name halves of characters, which no answer may hold."""
    return text.encode("utf-8", "replace").decode()


def name_of(field: str) -> str:
    """What a request calls a field of the package."""
    return FIELD_NAMES.get(field, field)
