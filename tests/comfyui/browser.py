"""Chromium, driven over WebDriver's HTTP: open ComfyUI's page, run JavaScript in it, take pictures."""

import base64
import contextlib
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

DRIVER = shutil.which("chromedriver")
ARGUMENTS = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1600,1150"]
START_SECONDS, SCRIPT_SECONDS = 60, 300


class Browser:
    """A headless Chromium that shows one page."""

    def __init__(self):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.process = subprocess.Popen([DRIVER, f"--port={self.port}"], stdout=subprocess.DEVNULL)
        self.session = ""
        try:
            end = time.monotonic() + START_SECONDS
            while not self.session and time.monotonic() < end:
                with contextlib.suppress(OSError):
                    options = {"browserName": "chrome", "goog:chromeOptions": {"args": ARGUMENTS}}
                    answer = self._post("/session", {"capabilities": {"alwaysMatch": options}})
                    self.session = f"/session/{answer['sessionId']}"
                time.sleep(0.2)
            self._post("/timeouts", {"script": 1000 * SCRIPT_SECONDS, "pageLoad": 1000 * SCRIPT_SECONDS})
        except BaseException:
            self.stop()
            raise

    def open(self, url: str) -> None:
        self._post("/url", {"url": url})

    def script(self, code: str, *arguments: Any) -> Any:
        """Runs the body of an async function; its arguments are `args`."""
        wrapped = (
            "const done = arguments[arguments.length - 1], args = [...arguments].slice(0, -1);"
            f"(async () => {{ {code} }})().then(done, error => done({{scriptError: String(error.stack || error)}}));"
        )
        answer = self._post("/execute/async", {"script": wrapped, "args": list(arguments)})
        assert not (isinstance(answer, dict) and "scriptError" in answer), answer
        return answer

    def screenshot(self, path: Path) -> None:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{self.session}/screenshot", timeout=60) as answer:
            path.write_bytes(base64.b64decode(json.loads(answer.read())["value"]))

    def stop(self) -> None:
        with contextlib.suppress(OSError):
            request = urllib.request.Request(f"http://127.0.0.1:{self.port}{self.session}", method="DELETE")
            urllib.request.urlopen(request, timeout=20)
        self.process.terminate()
        self.process.wait(20)

    def _post(self, path: str, content: Any) -> Any:
        url = f"http://127.0.0.1:{self.port}{self.session if path != '/session' else ''}{path}"
        request = urllib.request.Request(url, json.dumps(content).encode(), {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=SCRIPT_SECONDS + 30) as answer:
                return json.loads(answer.read())["value"]
        except urllib.error.HTTPError as error:
            raise RuntimeError(error.read().decode()[:2000]) from error


def open_comfyui(browser: Browser, port: int) -> None:
    """Opens ComfyUI's page, and waits until it has read all nodes."""
    browser.open(f"http://127.0.0.1:{port}")
    browser.script(
        "for (let i = 0; i < 600; i++) {"
        "  if (window.app?.graph && window.LiteGraph?.registered_node_types?.VExpress_Sample) return true;"
        "  await new Promise(resolve => setTimeout(resolve, 200));"
        "} throw new Error('the page has not started');"
    )
