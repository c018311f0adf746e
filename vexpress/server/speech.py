"""Text to speech by espeak-ng, where it is installed."""

import functools
import re
import shutil
import subprocess
from pathlib import Path

from vexpress.errors import InputError

PROGRAM = "espeak-ng"
MAX_RUN_SECONDS = 30
DEFAULT_VOICE = "en-us"
VOICE_NAME = re.compile(r"[a-z0-9-]{2,20}")


@functools.cache
def voices() -> tuple[str, ...]:
    """Names of the languages that can be spoken here; none without espeak-ng."""
    program = shutil.which(PROGRAM)
    if program is None:
        return ()
    result = subprocess.run([program, "--voices"], capture_output=True, text=True, timeout=MAX_RUN_SECONDS)
    names = [line.split()[1] for line in result.stdout.splitlines()[1:] if len(line.split()) > 1]
    return tuple(sorted({name for name in names if VOICE_NAME.fullmatch(name)}))


def speak(text: str, voice: str | None, path: Path, max_length: int) -> None:
    """Writes a text, spoken, as WAV.

    Args:
        text: given to the program on its standard input, so that nothing in it is an option.
        voice: one of `voices()`; None takes English.
        path: file to write.
        max_length: characters allowed.

    Raises:
        InputError: no espeak-ng, no such voice, or a text that cannot be spoken.
    """
    if not voices():
        raise InputError("this server has no espeak-ng: send speech in `audio`", "text")
    voice = voice or (DEFAULT_VOICE if DEFAULT_VOICE in voices() else voices()[0])
    if voice not in voices():
        raise InputError("is no voice of this server; /v1/info lists them", "voice", voice[:40])
    if len(text) > max_length:
        raise InputError(f"has {len(text)} characters; up to {max_length} are spoken", "text")
    if not any(character.isalnum() for character in text) or "\0" in text:
        raise InputError("holds nothing to speak", "text")
    try:
        result = subprocess.run(
            [shutil.which(PROGRAM), "-v", voice, "-w", str(path), "--stdin"],
            input=text.encode("utf-8", "replace"),
            capture_output=True,
            timeout=MAX_RUN_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise InputError("takes too long to speak", "text") from error
    if result.returncode or not path.is_file():
        raise InputError("cannot be spoken", "text")
