"""The application: the page, the API, and what operators look at."""

import logging
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Any

from fastapi import FastAPI, Request, WebSocket
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, PlainTextResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from vexpress.errors import InputError, first_line
from vexpress.fields import kind_of
from vexpress.options import PRESETS, SamplingOptions, preset_values
from vexpress.provenance import software
from vexpress.server.answers import Answers
from vexpress.server.engine import Engine
from vexpress.server.openapi import complete_schema, render_docs
from vexpress.server.portraits import look_at_portrait
from vexpress.server.problems import Problem
from vexpress.server.schema import option_fields, upper_bounds
from vexpress.server.security import COOKIE, Gate, is_token
from vexpress.server.service import Service
from vexpress.server.settings import ServeSettings
from vexpress.server.sockets import serve_socket
from vexpress.server.speech import voices
from vexpress.server.streaming import MIME
from vexpress.server.uploads import limited
from vexpress.server.videos import router as videos

logger = logging.getLogger(__name__)

PAGE_DIR = files("vexpress.server") / "page"
MAX_TOKEN_BYTES = 4096


def build_app(engine: Engine, settings: ServeSettings) -> FastAPI:
    """Makes the application.

    Args:
        engine: the model; loaded when the application starts.
        settings: limits and places.

    Raises:
        InputError: the folder for data cannot be used.
    """
    service = Service(engine, settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        await run_in_threadpool(service.stop)

    app = FastAPI(
        title="V-Express",
        summary="Talking portraits from a picture and speech",
        version=software().partition(" ")[2] or "0",
        lifespan=lifespan,
        docs_url=None,  # FastAPI's own pages load their scripts from elsewhere
        redoc_url=None,
        openapi_url="/openapi.json",
    )
    app.state.service = service
    app.add_middleware(Gate, settings=settings)
    app.add_middleware(Answers, settings=settings)  # the last one is the first that is called
    _add_errors(app)
    app.include_router(videos)
    _add_page(app, settings)
    _add_facts(app, service)
    _add_operations(app, service)
    own_schema = app.openapi

    def openapi() -> dict[str, Any]:
        if not app.openapi_schema:
            app.openapi_schema = complete_schema(own_schema(), engine.defaults, settings)
        return app.openapi_schema

    app.openapi = openapi
    return app


def _add_errors(app: FastAPI) -> None:
    """Every error has the same form: a status, a field, one line."""

    def answer(problem: Problem) -> JSONResponse:
        return JSONResponse(problem.as_json(), problem.status, problem.headers)

    @app.exception_handler(Problem)
    async def on_problem(request: Request, problem: Problem) -> JSONResponse:
        return answer(problem)

    @app.exception_handler(InputError)
    async def on_input_error(request: Request, error: InputError) -> JSONResponse:
        return answer(Problem.of(error))

    @app.exception_handler(RequestValidationError)
    async def on_invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        return answer(Problem(422, first["msg"], str(first["loc"][-1])))

    @app.exception_handler(HTTPException)
    async def on_http(request: Request, error: HTTPException) -> JSONResponse:
        return answer(Problem(error.status_code, str(error.detail), headers=dict(error.headers or {})))

    @app.exception_handler(OSError)
    async def on_os_error(request: Request, error: OSError) -> JSONResponse:
        logger.error("a request failed: %s", error)
        return answer(Problem(507, f"the server cannot keep the files ({error.strerror})"))

    @app.exception_handler(sqlite3.Error)
    async def on_list_error(request: Request, error: sqlite3.Error) -> JSONResponse:
        logger.error("a request failed: %s", error)
        return answer(Problem(507, f"the server cannot keep the list of jobs ({first_line(error)})"))


def _add_page(app: FastAPI, settings: ServeSettings) -> None:
    """The page, the API's description, and the way in."""
    app.mount("/static", StaticFiles(directory=str(PAGE_DIR)), name="static")

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(str(PAGE_DIR / "index.html"), headers={"Cache-Control": "no-cache"})

    @app.get("/favicon.ico", include_in_schema=False)
    async def icon() -> FileResponse:
        return FileResponse(str(PAGE_DIR / "icon.svg"), media_type="image/svg+xml")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(render_docs(app.openapi()))

    @app.post("/v1/login", include_in_schema=False)
    async def login(request: Request) -> Response:
        token = b"".join([part async for part in limited(request, MAX_TOKEN_BYTES, settings.idle_seconds)])
        if not is_token(token.decode("utf-8", "replace"), settings):
            raise Problem(401, "this is not the token", "token")
        response = Response(status_code=204)
        secure = request.url.scheme == "https"
        response.set_cookie(COOKIE, settings.token, httponly=True, samesite="strict", secure=secure)
        return response


def _add_facts(app: FastAPI, service: Service) -> None:
    """What the page asks for before there is a job."""
    settings, engine = service.settings, service.engine

    @app.get("/v1/info", tags=["service"], summary="Options, limits, examples, voices")
    async def info() -> dict[str, Any]:
        """All that a page needs to know."""
        return {
            "model": engine.model_dir.name,
            "device": engine.device.type,
            "ready": engine.is_ready,
            "failure": service.failure,
            "natural_motion": engine.has_natural_motion,
            "options": [_describe_option(field, engine.defaults, settings) for field in option_fields()],
            "presets": {name: preset_values(name, vars(engine.defaults)) for name in PRESETS},
            "examples": service.examples.names(),
            "voices": await run_in_threadpool(voices),
            "mime": MIME,
            "limits": {
                name: getattr(settings, name)
                for name in ("max_upload_mb", "max_seconds", "max_text", "max_streams", "keep_hours", "max_queue")
            },
            "live": {
                "factor": engine.speed.factor,
                "first_frame_seconds": engine.speed.first_frame_seconds,
            },
        }

    @app.get("/v1/examples/{kind}/{name}", tags=["service"], summary="An example's file")
    async def example(kind: str, name: str) -> FileResponse:
        """Picture, sound or video."""
        known = service.examples.files.get(kind, {})
        if name not in known:
            raise Problem(404, "there is no such example", "name")
        return FileResponse(known[name])

    @app.post("/v1/portrait", tags=["service"], summary="Find the face in a portrait")
    async def portrait(request: Request) -> dict[str, Any]:
        """Size, the face's box, and the crop that `auto_crop` would take."""
        return await look_at_portrait(request, service)


def _describe_option(field: Any, defaults: SamplingOptions, settings: ServeSettings) -> dict[str, Any]:
    facts = field.metadata
    most = upper_bounds(settings).get(field.name)
    return {
        "name": field.name,
        "kind": kind_of(field).__name__,
        "help": facts["help"],
        "unit": facts["unit"],
        "choices": facts["choices"],
        "low": facts["low"],
        "high": facts["high"] if most is None else min(most, facts["high"]),
        "multiple": facts["multiple"],
        "optional": facts["optional"],
        "advanced": bool(facts.get("advanced", False)),
        "default": getattr(defaults, field.name, field.default),
    }


def _add_operations(app: FastAPI, service: Service) -> None:
    """For operators, and the live stream."""

    @app.get("/healthz", tags=["operations"], summary="The process answers")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz", tags=["operations"], summary="The model is loaded")
    async def readyz() -> dict[str, str]:
        if not service.engine.is_ready:
            raise Problem(503, service.failure or "the model is being loaded", headers={"Retry-After": "2"})
        if not service.worker.is_alive:
            raise Problem(503, "jobs are not made any more: start the service again")
        return {"status": "ready"}

    @app.get("/metrics", tags=["operations"], summary="For Prometheus", response_class=PlainTextResponse)
    async def metrics() -> Response:
        text = await run_in_threadpool(service.metrics.text, service.refresh)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.websocket("/v1/stream")
    async def stream(socket: WebSocket) -> None:
        await serve_socket(socket, service)
