"""A service as a process of its own, on a free port of 127.0.0.1."""

import atexit
import contextlib
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx

ROOT = Path(__file__).parents[2]
STARTS_SECONDS = 180


class ServerProcess:
    """`vexpress serve` with the embedded model.

    Args:
        folder: for its data and its log.
        flags: of the program.
    """

    def __init__(self, folder: Path, *flags: str):
        self.folder, self.flags = folder, flags
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen | None = None

    def start(self) -> "ServerProcess":
        """Starts it, and waits until the model is loaded."""
        command = [sys.executable, "-m", "vexpress", "serve", "--port", str(self.port)]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "--data_dir", str(self.folder / "data"), *self.flags],
                stderr=log,
                cwd=ROOT,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        atexit.register(self.process.kill)  # after a failed test, too
        for _ in range(STARTS_SECONDS * 10):
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{self.url}/readyz").status_code == 200:
                    return self
            assert self.process.poll() is None, self.log()
            time.sleep(0.1)
        raise AssertionError(self.log())

    def log(self) -> str:
        """What it has said."""
        return (self.folder / "log").read_text()

    def resident_mb(self) -> float:
        """Memory."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6

    def kill(self) -> None:
        """As the out-of-memory killer does."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """As an operator does; its exit code."""
        self.process.terminate()
        return self.process.wait(60)
