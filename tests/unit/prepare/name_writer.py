"""Work for worker processes. This file imports little, since each worker imports it."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from vexpress.errors import InputError
from vexpress.prepare.workers import SourceFailed


@dataclass(frozen=True)
class WriteNames:
    """Work that writes a file per source, and does not survive the source "crash".

    Of `attempt`, "killed once" is killed and "fails once" fails, each the first time.
    """

    folder: Path
    error: str | None = None
    seconds: float = 0

    def load_models(self):
        if self.error:
            raise InputError(self.error)

    def prepare(self, source, models, on_clip):
        if source.name == "crash":
            os._exit(7)
        (self.folder / source.name).touch()
        on_clip()

    def attempt(self, source, models, on_clip):
        if (self.folder / source.name).exists():
            return
        time.sleep(self.seconds)
        if source.name.endswith("once") and not (before := self.folder / f".{source.name}").exists():
            before.touch()
            if source.name.startswith("fails"):
                raise SourceFailed("OSError: the network is down")
            os.kill(os.getpid(), signal.SIGKILL)  # as the system does where memory is short
        self.prepare(source, models, on_clip)
        with open(self.folder / ".done", "a") as log:
            log.write(f"{source.name}\n")

    def record_failure(self, source, detail):
        (self.folder / f"failed {source.name}").write_text(detail)
