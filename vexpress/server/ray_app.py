"""The service on several GPUs or machines: replicas of the same application, each with a model, by Ray Serve.

    serve run vexpress.server.ray_app:build replicas=2 gpus=1 data_dir=/shared/vexpress model_dir=model_ckpts

Replicas share the folder of data, and so the queue: whichever is free takes the next job, any can answer for any job,
and what a replica that died was working on is taken up by another.
"""

import os
from dataclasses import fields
from pathlib import Path

from fastapi import FastAPI
from ray import serve

from vexpress.errors import InputError
from vexpress.fields import kind_of
from vexpress.model_folder import EMBEDDED_MODEL_DIR
from vexpress.server.app import build_app
from vexpress.server.engine import Engine
from vexpress.server.settings import ServeSettings

CALLS_AT_ONCE = 256


def build(arguments: dict[str, str]) -> serve.Application:
    """Makes the deployment.

    Args:
        arguments: settings of the service by name, and `replicas`, `gpus` (per replica), `cpus`, `model_dir`, `device`.

    Raises:
        InputError: no such setting, or a value out of bounds.
    """
    rest = dict(arguments)
    replicas, gpus, cpus = int(rest.pop("replicas", 1)), float(rest.pop("gpus", 0)), float(rest.pop("cpus", 1))
    model_dir, device = Path(rest.pop("model_dir", EMBEDDED_MODEL_DIR)), rest.pop("device", None)
    table = {field.name: field for field in fields(ServeSettings)}
    if unknown := [name for name in rest if name not in table]:
        raise InputError(f"is no setting; there are {', '.join(table)}", unknown[0])
    values = {name: kind_of(table[name])(value) for name, value in rest.items()}
    # Ray's proxy listens, on addresses that it knows; see `check_host` for names.
    settings = ServeSettings(**{"host": "0.0.0.0", "token": os.environ.get("VEXPRESS_TOKEN") or None, **values})

    def application() -> FastAPI:
        return build_app(Engine(model_dir.resolve(), device), settings)

    @serve.deployment(
        name="vexpress",
        num_replicas=replicas,
        max_ongoing_requests=CALLS_AT_ONCE,
        ray_actor_options={"num_gpus": gpus, "num_cpus": cpus},
    )
    @serve.ingress(application)
    class Replica:
        """A process with a model."""

    return Replica.bind()
