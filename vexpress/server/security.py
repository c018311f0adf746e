"""Who may call: a token, and no other web page's scripts."""

import hmac
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vexpress.server.problems import Problem
from vexpress.server.settings import ServeSettings

COOKIE = "vexpress_token"
OPEN_PATHS = ("/", "/healthz", "/readyz", "/v1/login", "/favicon.ico")
LOCAL_HOSTS = ("127.0.0.1", "localhost", "[::1]", "testserver")
POLICY_VIOLATION = 1008
PAGE_HEADERS = {
    "content-security-policy": (
        "default-src 'self'; img-src 'self' data: blob:; media-src 'self' blob:; style-src 'self'; "
        "script-src 'self'; worker-src 'self' blob:; connect-src 'self' ws: wss:; frame-ancestors 'none'; "
        "base-uri 'none'; form-action 'self'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
    "cross-origin-resource-policy": "same-origin",
}


def check_caller(connection: HTTPConnection, settings: ServeSettings) -> Problem | None:
    """What forbids a call; None if nothing does.

    A browser on this machine runs scripts of any page, which could call a service that listens on 127.0.0.1 only: by a
    name that leads there (checked by the host's name), or by a form (checked by the origin).
    """
    headers = connection.headers
    host = headers.get("host", "")
    name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
    if settings.host in ("127.0.0.1", "localhost", "::1") and name not in LOCAL_HOSTS:
        return Problem(421, "this service answers to the name localhost only")
    origin = headers.get("origin")
    is_read = connection.scope["type"] == "http" and connection.scope["method"] in ("GET", "HEAD", "OPTIONS")
    own = origin is None or urlsplit(origin).netloc == host or origin == settings.allow_origin
    if not is_read and not own:
        return Problem(403, "other web pages may not call this service")
    path = connection.scope["path"]
    if settings.token is None or path in OPEN_PATHS or path.startswith("/static/"):
        return None
    return None if is_token(given_token(connection), settings) else Problem(401, "a valid token is missing")


def given_token(connection: HTTPConnection) -> str:
    """The token that a call brings, as a header or as the page's cookie."""
    scheme, _, value = connection.headers.get("authorization", "").partition(" ")
    return value.strip() if scheme.lower() == "bearer" else connection.cookies.get(COOKIE, "")


def is_token(text: str, settings: ServeSettings) -> bool:
    """Whether this is the token, in a time that does not depend on how much of it is right."""
    return settings.token is not None and hmac.compare_digest(text.encode(), settings.token.encode())


class Gate:
    """Turns away whom `check_caller` forbids, before a body is read, and adds headers for browsers.

    Args:
        app: what is behind it.
        settings: token and allowed origin.
    """

    def __init__(self, app: ASGIApp, settings: ServeSettings):
        self.app, self.settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        problem = check_caller(HTTPConnection(scope), self.settings)
        if problem is None:
            await self.app(scope, receive, lambda message: send(self._with_headers(message, scope)))
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": POLICY_VIOLATION, "reason": problem.message})
        else:
            headers = {"WWW-Authenticate": "Bearer"} if problem.status == 401 else None
            await JSONResponse(problem.as_json(), problem.status, headers)(scope, receive, send)

    def _with_headers(self, message: Message, scope: Scope) -> Message:
        if message["type"] == "http.response.start":
            own = Headers(raw=message["headers"])
            extra = {**PAGE_HEADERS, **self._origin_headers(scope)}
            missing = [(name.encode(), value.encode()) for name, value in extra.items() if name not in own]
            message = {**message, "headers": [*message["headers"], *missing]}
        return message

    def _origin_headers(self, scope: Scope) -> dict[str, str]:
        """For the one origin that may call from a browser, if there is one."""
        allowed = self.settings.allow_origin
        if allowed is None or Headers(scope=scope).get("origin") != allowed:
            return {}
        return {
            "access-control-allow-origin": allowed,
            "access-control-allow-headers": "authorization, content-type",
            "access-control-allow-methods": "GET, POST, DELETE",
            "cross-origin-resource-policy": "cross-origin",
            "vary": "origin",
        }
