"""Who may call: a token, and no other web page's scripts."""

import hmac
import ipaddress
import socket
from urllib.parse import urlsplit

from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from vexpress.server.problems import Problem
from vexpress.server.settings import ServeSettings

COOKIE = "vexpress_token"
OPEN_PATHS = ("/", "/healthz", "/readyz", "/v1/login", "/favicon.ico")
LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")
POLICY_VIOLATION = 1008


def check_caller(connection: HTTPConnection, settings: ServeSettings) -> Problem | None:
    """What forbids a call; None if nothing does.

    A browser on this machine, or within the same network, runs scripts of any page, which could call a service that the
    page's host cannot reach: by a name that leads there (checked by the host's name), or by a form (checked by the
    origin).
    """
    headers = connection.headers
    host = headers.get("host", "")
    if problem := check_host(host, settings):
        return problem
    origin = headers.get("origin")
    is_read = connection.scope["type"] == "http" and connection.scope["method"] in ("GET", "HEAD", "OPTIONS")
    own = origin is None or _host_of(origin) == host or origin == settings.allow_origin
    if not is_read and not own:
        return Problem(403, "other web pages may not call this service")
    path = connection.scope["path"]
    if settings.token is None or path in OPEN_PATHS or path.startswith("/static/"):
        return None
    if is_token(given_token(connection), settings):
        return None
    return Problem(401, "a valid token is missing", headers={"WWW-Authenticate": "Bearer"})


def check_host(host: str, settings: ServeSettings) -> Problem | None:
    """What forbids the name that a service was called by; None if nothing does.

    Whoever owns a name can lead it to any address, and his page's scripts with it: these then have the service's own
    origin. So a local service answers to local names, and one without a token to addresses and to names of this
    machine. The scripts do not have the token, which browsers keep by name.
    """
    name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
    name = name.removeprefix("[").removesuffix("]").lower()
    if name in LOCAL_HOSTS:
        return None
    if settings.host in LOCAL_HOSTS:
        return Problem(421, "this service answers to the name localhost only")
    own_name = socket.gethostname().lower()
    if (
        settings.token is not None
        or name in (settings.host.lower(), own_name, f"{own_name}.local")
        or _is_address(name)
    ):
        return None
    return Problem(421, "without a token this service answers to addresses and this machine's name only")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _host_of(origin: str) -> str | None:
    """Host and port of an origin; None if it is none."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return None


def given_token(connection: HTTPConnection) -> str:
    """The token that a call brings, as a header or as the page's cookie."""
    scheme, _, value = connection.headers.get("authorization", "").partition(" ")
    return value.strip() if scheme.lower() == "bearer" else connection.cookies.get(COOKIE, "")


def is_token(text: str, settings: ServeSettings) -> bool:
    """Whether this is the token, in a time that does not depend on how much of it is right."""
    return settings.token is not None and hmac.compare_digest(text.encode(), settings.token.encode())


class Gate:
    """Turns away whom `check_caller` forbids, before a body is read.

    Args:
        app: what is behind it.
        settings: token and allowed origin.
    """

    def __init__(self, app: ASGIApp, settings: ServeSettings):
        self.app, self.settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_call = scope["type"] in ("http", "websocket")
        problem = check_caller(HTTPConnection(scope), self.settings) if is_call else None
        if problem is None:
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": POLICY_VIOLATION, "reason": problem.message})
        else:
            await JSONResponse(problem.as_json(), problem.status, problem.headers)(scope, receive, send)
