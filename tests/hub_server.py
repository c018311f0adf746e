"""A Hugging Face Hub on 127.0.0.1 with just the answers that a download needs, and faults on demand."""

import hashlib
import http.server
import json
import re
import threading
from dataclasses import dataclass, field
from http import HTTPStatus
from types import TracebackType
from urllib.parse import unquote, urlsplit

from huggingface_hub.utils.sha import git_hash

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class HubServer:
    """Serves model repositories over HTTP while it is entered as a context manager."""

    repositories: dict[str, dict[str, bytes]]
    """Repository -> path in it -> content. Content of `large_suffixes` is listed and served as large-file storage."""

    large_suffixes: tuple[str, ...] = (".bin", ".onnx", ".safetensors")
    cut_after: dict[str, int] = field(default_factory=dict)
    """Path -> bytes of the body after which the connection breaks, once; later requests of that path get a 503."""

    stall_after: dict[str, int] = field(default_factory=dict)
    """Path -> bytes of the body after which nothing comes any more, until the client is gone; once."""

    sent_instead: dict[str, bytes] = field(default_factory=dict)
    """Path -> what is sent in place of the content that the listing describes."""

    downloads: list[tuple[str, str | None]] = field(default_factory=list)
    """(path, Range header) of every GET of a file's content, in order."""

    headers_seen: list[dict[str, str]] = field(default_factory=list)
    """Headers of every request, with names in lower case."""

    def __enter__(self) -> "HubServer":
        hub = self

        class Handler(_HubHandler):
            server_of_files = hub

        self._http_server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http_server.daemon_threads = True
        self._thread = threading.Thread(target=self._http_server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._http_server.shutdown()
        self._http_server.server_close()
        self._thread.join()

    @property
    def endpoint(self) -> str:
        """What --endpoint takes."""
        return f"http://127.0.0.1:{self._http_server.server_port}"

    def describe(self, repository: str) -> dict:
        """The Hub's answer about a repository, with the sizes and checksums of its files."""
        siblings = []
        for path, content in self.repositories[repository].items():
            sibling = {"rfilename": path, "size": len(content), "blobId": git_hash(content)}
            if path.endswith(self.large_suffixes):
                sha256 = hashlib.sha256(content).hexdigest()
                sibling["blobId"] = git_hash(sha256.encode())  # git keeps a pointer to the content, not the content
                sibling["lfs"] = {"size": len(content), "sha256": sha256, "pointerSize": 134}
            siblings.append(sibling)
        return {"id": repository, "sha": COMMIT, "siblings": siblings}


class _HubHandler(http.server.BaseHTTPRequestHandler):
    server_of_files: HubServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else every answer waits 40 ms

    def do_GET(self) -> None:
        hub = self.server_of_files
        hub.headers_seen.append({name.lower(): value for name, value in self.headers.items()})
        path = unquote(urlsplit(self.path).path)
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            self._answer_api(*match.groups())
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            repository, revision, file_path = match.groups()
            if revision != COMMIT or file_path not in hub.repositories.get(repository, {}):
                self._refuse("EntryNotFound")
            elif file_path.endswith(hub.large_suffixes):  # the Hub sends the client on to its storage
                self._send(HTTPStatus.FOUND, b"", Location=f"{hub.endpoint}/storage/{repository}/{file_path}")
            else:
                self._send_file(repository, file_path)
        elif match := re.fullmatch(r"/storage/([^/]+/[^/]+)/(.+)", path):
            self._send_file(*match.groups())
        else:
            self._refuse("EntryNotFound")

    def _answer_api(self, repository: str, revision: str | None) -> None:
        if repository not in self.server_of_files.repositories:
            self._refuse("RepoNotFound")
        elif revision not in (None, "main", COMMIT):
            self._refuse("RevisionNotFound")
        else:
            description = json.dumps(self.server_of_files.describe(repository)).encode()
            self._send(HTTPStatus.OK, description, **{"Content-Type": "application/json"})

    def _send_file(self, repository: str, path: str) -> None:
        hub = self.server_of_files
        content = hub.sent_instead.get(path, hub.repositories[repository][path])
        asked_range = self.headers["Range"]
        hub.downloads.append((path, asked_range))
        num_bytes_to_send = hub.cut_after.get(path)
        if path in hub.stall_after:
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: hub.stall_after.pop(path)])
            self.connection.recv(1)  # returns when the other side ends
            self.close_connection = True
        elif num_bytes_to_send == 0:
            self._send(HTTPStatus.SERVICE_UNAVAILABLE, b"")
        elif num_bytes_to_send is not None:
            hub.cut_after[path] = 0
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[:num_bytes_to_send])
            self.close_connection = True
        elif asked_range:
            start = int(re.fullmatch(r"bytes=(\d+)-", asked_range)[1])
            content_range = f"bytes {start}-{len(content) - 1}/{len(content)}"
            self._send(HTTPStatus.PARTIAL_CONTENT, content[start:], **{"Content-Range": content_range})
        else:
            self._send(HTTPStatus.OK, content)

    def _refuse(self, error_code: str) -> None:
        self._send(HTTPStatus.NOT_FOUND, b"", **{"X-Error-Code": error_code})

    def _send(self, status: HTTPStatus, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Keeps the tests' output free of one line per request."""
