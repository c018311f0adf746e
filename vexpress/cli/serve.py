"""Serves a page and an API that make talking videos.

vexpress serve                                  # http://127.0.0.1:8000 with the embedded model of drawn faces
VEXPRESS_TOKEN=... vexpress serve --host 0.0.0.0 --model_dir model_ckpts
"""

import errno
import logging
import os
import socket
from argparse import Namespace
from dataclasses import fields
from pathlib import Path

from vexpress.cli.adapters import add_adapter_flags, unused_adapter_flags
from vexpress.cli.parser import ArgumentParser, add_options, refuse_unused
from vexpress.cli.program import set_up_logging
from vexpress.errors import InputError, first_line
from vexpress.model_folder import DEFAULT_MODEL_DIR, choose_model_dir
from vexpress.options import DTYPES
from vexpress.server.settings import ServeSettings

logger = logging.getLogger("vexpress")

TOKEN_VARIABLE = "VEXPRESS_TOKEN"
MAX_CONNECTIONS = 512
MAX_MESSAGE_BYTES = 16 * 2**20
SHUTDOWN_SECONDS = 10
LOCAL = ("127.0.0.1", "localhost", "::1")


def build_parser() -> ArgumentParser:
    """The flags: the service's settings, and those of the model."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    add_options(parser.add_argument_group("service"), fields(ServeSettings))
    model = parser.add_argument_group("model and machine")
    model.add_argument(
        "--model_dir",
        help=f"folder in the released layout; unset: {DEFAULT_MODEL_DIR}, or if that is not there the embedded model",
    )
    model.add_argument("--device", choices=("cuda", "cpu", "mps"), help="unset: what is there")
    model.add_argument("--gpu_id", type=int, default=0, help="index of the CUDA device")
    model.add_argument("--dtype", choices=DTYPES, help="number type; unset: fp16 on cuda, else fp32")
    add_adapter_flags(model)  # of all videos: a request names no file of the server's
    return parser


def parse_arguments(arguments: list[str] | None) -> tuple[Namespace, ServeSettings]:
    """Flags, and the service's settings that they say.

    Raises:
        InputError: a value out of bounds, or a service for others without a token.
    """
    parser = build_parser()
    args = parser.parse_args(arguments)
    refuse_unused(parser.given(), unused_adapter_flags(args))
    args.token = args.token or os.environ.get(TOKEN_VARIABLE) or None
    settings = ServeSettings(**{field.name: getattr(args, field.name) for field in fields(ServeSettings)})
    args.model_dir = choose_model_dir(args.model_dir)
    return args, settings


def main(arguments: list[str] | None = None) -> None:
    """Serves until it is stopped."""
    args, settings = parse_arguments(arguments)
    set_up_logging(logging.INFO)
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import python_multipart  # noqa: F401
        import uvicorn
    except ImportError as error:
        raise InputError(f'{error.name} is not installed: pip install "vexpress[serve]"') from error
    listener = listen(settings)
    from vexpress.server.app import build_app
    from vexpress.server.connections import PatientProtocol
    from vexpress.server.engine import Engine

    if settings.host not in LOCAL and settings.token is None:
        logger.warning("everyone who reaches %s can use this service: set %s", settings.host, TOKEN_VARIABLE)
    model = Path(args.model_dir), args.device, args.gpu_id, args.dtype, args.lora, args.lora_any_base
    app = build_app(Engine(*model), settings)
    config = uvicorn.Config(
        app,
        http=PatientProtocol,
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=MAX_CONNECTIONS,
        ws_max_size=MAX_MESSAGE_BYTES,
        timeout_keep_alive=round(settings.idle_seconds),
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )
    host, port = listener.getsockname()[:2]
    logger.info("http://%s:%d with the model %s", f"[{host}]" if ":" in host else host, port, Path(args.model_dir).name)
    uvicorn.Server(config).run(sockets=[listener])


def listen(settings: ServeSettings) -> socket.socket:
    """Takes the port, before minutes of loading.

    Raises:
        InputError: it is taken, or the address is none of this machine's.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family)
    except OSError as error:
        is_port = error.errno in (errno.EADDRINUSE, errno.EACCES)
        name, value = ("port", settings.port) if is_port else ("host", settings.host)
        raise InputError(f"cannot listen there ({error.strerror or first_line(error)})", name, value) from error
