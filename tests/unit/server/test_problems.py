"""Errors as answers: no path of the server, nothing long, nothing that UTF-8 cannot carry."""

import json

import pytest

from vexpress.errors import InputError
from vexpress.server.problems import SERVER_PATH, Problem

FOLDERS = (
    "/srv/vexpress",
    "/srv/v+express",
    "/srv/data (new)",
    "/srv/data@host",
    "/srv/[data]",
    "/srv/a,b:c",
    "/srv/häuser",
)


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_part_of_a_path_of_the_server_is_told(folder):
    path = f"{folder}/jobs/0a/audio.wav"
    for line in (f"{path} has 1 audio track(s): allowed are 0 to 0", f"{path}: has no sound", f"see {path}, and more"):
        message = Problem.of(InputError(line, "audio_track", 5)).message
        assert "the file" in message
        assert not any(part in message for part in ("/", "srv", "jobs", "0a", "audio.wav", "new", "host", "[data]"))
        assert message.endswith(("0 to 0", "has no sound", "and more"))
    assert Problem.of(InputError("cannot be read", "audio_path", path)).message == "audio: cannot be read"


def test_our_own_addresses_and_fractions_are_no_paths():
    line = "is no voice of this server; /v1/info lists them, see docs/serve.md and 1/2"
    assert Problem.of(InputError(line, "voice")).message == f"voice: {line}"


def test_a_search_for_paths_takes_no_longer_than_the_text():
    """Each of these kept the event loop for minutes while the pattern was quadratic."""
    for text in ("/ " * 200_000, "/a" * 200_000, "/" * 400_000, "/" + "a" * 400_000, "/a: " * 100_000):
        SERVER_PATH.sub("the file", text)


@pytest.mark.parametrize("value", ["x" * 10**6, "/ " * 10**6, ["x"] * 10**6, {"x": 10**6 * "y"}, 10**4000, "\ud800"])
def test_what_was_given_is_not_sent_back_at_length(value):
    problem = Problem.of(InputError("must be one of a, b", "preset", value))
    assert len(problem.message) <= 1000
    assert problem.field == "preset"


def test_half_characters_can_be_answered():
    problem = Problem(422, "is no field: \ud800", "\udfff")
    assert json.dumps(problem.as_json(), ensure_ascii=False).encode()
