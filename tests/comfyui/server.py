"""A real ComfyUI, started for tests: prompts in, events and files out."""

import base64
import contextlib
import json
import os
import secrets
import shutil
import socket
import struct
import subprocess
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
START_SECONDS, RUN_SECONDS = 180, 600


class Server:
    """One ComfyUI on the CPU, at 127.0.0.1, with folders of its own.

    Args:
        comfyui_dir: a checkout of ComfyUI, with its requirements and requirements-comfyui.txt installed for `python`.
        python: the interpreter.
        base_dir: an empty folder for models, inputs, outputs and custom nodes.
        flags: more of ComfyUI's flags.
    """

    def __init__(self, comfyui_dir: Path, python: Path, base_dir: Path, flags: tuple[str, ...] = ()):
        for name in ("models/vexpress", "input", "output", "temp", "custom_nodes"):
            (base_dir / name).mkdir(parents=True, exist_ok=True)
        settings = base_dir / "user" / "default" / "comfy.settings.json"
        settings.parent.mkdir(parents=True, exist_ok=True)
        settings.write_text(
            '{"Comfy.TutorialCompleted": true, "Comfy.Minimap.Visible": false}'
        )  # nothing over the page
        pack = base_dir / "custom_nodes" / "vexpress"
        if not pack.exists():
            pack.symlink_to(ROOT)
        self.base_dir, self.client_id = base_dir, secrets.token_hex(8)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.log_path = base_dir / "server.log"
        command = [str(python), "main.py", "--cpu", "--listen", "127.0.0.1", "--port", str(self.port)]
        command += ["--disable-api-nodes", "--base-directory", str(base_dir), *flags]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
        with self.log_path.open("w") as log:
            self.process = subprocess.Popen(command, cwd=comfyui_dir, stdout=log, stderr=log, env=environment)
        self.events: list[dict[str, Any]] = []
        self.num_previews = 0
        try:
            self._wait_until_it_answers()
        except BaseException:
            self.stop()
            raise
        threading.Thread(target=self._listen, daemon=True).start()

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=30) as answer:
            return json.loads(answer.read())

    def post(self, path: str, content: Any = None) -> tuple[int, Any]:
        """HTTP status and answer."""
        body = json.dumps(content or {}).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", body, {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                status, text = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            status, text = error.code, error.read()
        return status, json.loads(text) if text else None

    def submit(self, prompt: dict) -> str:
        """Queues a prompt that has to be valid; its id."""
        status, answer = self.post("/prompt", {"prompt": prompt, "client_id": self.client_id})
        assert status == 200, answer
        return answer["prompt_id"]

    def wait(self, prompt_id: str) -> dict:
        """What ComfyUI remembers of a prompt once it is over, however it ended."""
        end = time.monotonic() + RUN_SECONDS
        while time.monotonic() < end:
            history = self.get(f"/history/{prompt_id}")
            if prompt_id in history:
                return history[prompt_id]
            time.sleep(0.1)
        raise TimeoutError(f"prompt {prompt_id} takes longer than {RUN_SECONDS} s")

    def run(self, prompt: dict) -> dict[str, Any]:
        """Runs a prompt that has to succeed; node -> what it shows."""
        history = self.wait(self.submit(prompt))
        assert history["status"]["status_str"] == "success", error_of(history)
        return history["outputs"]

    def shown_file(self, shown: dict) -> Path:
        """The file of something that a node shows."""
        return self.base_dir / shown["type"] / shown["subfolder"] / shown["filename"]

    def upload(self, source: Path, name: str | None = None) -> str:
        """Puts a file into the input folder."""
        shutil.copy(source, self.base_dir / "input" / (name or source.name))
        return name or source.name

    def resident_mib(self) -> float:
        """Memory of the server's process."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def _wait_until_it_answers(self) -> None:
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise RuntimeError(f"ComfyUI ended: {self.log()[-2000:]}")
            with contextlib.suppress(OSError):
                self.get("/system_stats")
                return
            time.sleep(0.3)
        raise TimeoutError(self.log()[-2000:])

    def _listen(self) -> None:
        """Collects the events of the websocket; previews are only counted."""
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port)) as link:
            key = base64.b64encode(secrets.token_bytes(16)).decode()
            lines = [f"GET /ws?clientId={self.client_id} HTTP/1.1", "Host: 127.0.0.1", "Upgrade: websocket"]
            lines += ["Connection: Upgrade", f"Sec-WebSocket-Key: {key}", "Sec-WebSocket-Version: 13", "", ""]
            link.sendall("\r\n".join(lines).encode())
            stream = link.makefile("rb")
            while stream.readline().strip():
                pass
            while head := stream.read(2):
                size = head[1] & 127
                if size == 126:
                    size = struct.unpack(">H", stream.read(2))[0]
                elif size == 127:
                    size = struct.unpack(">Q", stream.read(8))[0]
                content = stream.read(size)
                if head[0] & 15 == 1:
                    self.events.append(json.loads(content) | {"time": time.monotonic()})
                elif head[0] & 15 == 2:
                    self.num_previews += 1


def error_of(history: dict) -> str:
    """The message of the node that failed."""
    for kind, content in history["status"]["messages"]:
        if kind == "execution_error":
            return content["exception_message"].strip()
    return history["status"]["status_str"]
