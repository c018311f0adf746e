"""What all answers have in common: headers for browsers, and one form of errors, whoever they are from."""

import logging
from http import HTTPStatus

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vexpress.server.problems import Problem
from vexpress.server.settings import ServeSettings

logger = logging.getLogger(__name__)

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


class Answers:
    """Gives every answer the headers that browsers ask for, and every error the form `{"error": ...}`.

    The gate's errors are among them, and those of libraries, which are plain texts: a range that cannot be served, a
    bug. It also answers what a browser asks before a call of the allowed origin, which brings no token.

    Args:
        app: what makes the answers.
        settings: the allowed origin.
    """

    def __init__(self, app: ASGIApp, settings: ServeSettings):
        self.app, self.allowed = app, settings.allow_origin

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {**PAGE_HEADERS, **self._origin_headers(scope)}
        has_begun, is_replaced = False, False

        async def answer(message: Message) -> None:
            nonlocal has_begun, is_replaced
            if message["type"] != "http.response.start":
                if not is_replaced:
                    await send(message)
                return
            has_begun = True
            own = MutableHeaders(raw=list(message["headers"]))
            if message["status"] >= 400 and own.get("content-type", "").startswith("text/plain"):
                is_replaced = True
                await _error(message["status"], own, headers)(scope, receive, send)
                return
            for name, value in headers.items():
                own.setdefault(name, value)
            await send({**message, "headers": own.raw})

        try:
            if self._asks_before(scope):
                await Response(status_code=204)(scope, receive, answer)
            else:
                await self.app(scope, receive, answer)
        except ClientDisconnect:
            pass  # nobody hears an answer
        except Exception as error:
            if has_begun:
                raise
            logger.exception("a request failed")
            problem = Problem(500, f"an error of the server ({type(error).__name__})")
            await JSONResponse(problem.as_json(), problem.status)(scope, receive, answer)

    def _is_allowed(self, scope: Scope) -> bool:
        return self.allowed is not None and Headers(scope=scope).get("origin") == self.allowed

    def _asks_before(self, scope: Scope) -> bool:
        is_question = scope["method"] == "OPTIONS" and "access-control-request-method" in Headers(scope=scope)
        return is_question and self._is_allowed(scope)

    def _origin_headers(self, scope: Scope) -> dict[str, str]:
        """For the one origin that may call from a browser, if there is one."""
        if not self._is_allowed(scope):
            return {}
        return {
            "access-control-allow-origin": self.allowed,
            "access-control-allow-headers": "authorization, content-type, range",
            "access-control-allow-methods": "GET, POST, DELETE",
            "access-control-expose-headers": "content-range, location, retry-after, x-job",
            "cross-origin-resource-policy": "cross-origin",
            "vary": "origin",
        }


def _error(status: int, own: Headers, headers: dict[str, str]) -> JSONResponse:
    """An error in our form in place of a library's text, with what its headers say beside the text."""
    kept = {name: own[name] for name in ("content-range", "allow", "retry-after") if name in own}
    problem = Problem(status, HTTPStatus(status).phrase.lower())
    return JSONResponse(problem.as_json(), status, {**headers, **kept})
