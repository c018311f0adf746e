"""Work for worker processes. This file imports little, since each worker imports it."""

import os
from dataclasses import dataclass
from pathlib import Path

from vexpress.errors import InputError


@dataclass(frozen=True)
class WriteNames:
    """Work that writes a file per source, and does not survive the source "crash"."""

    folder: Path
    error: str | None = None

    def load_models(self):
        if self.error:
            raise InputError(self.error)

    def prepare(self, source, models, on_clip):
        if source.name == "crash":
            os._exit(7)
        (self.folder / source.name).touch()
        on_clip()

    def record_failure(self, source, detail):
        (self.folder / f"failed {source.name}").write_text(detail)
