"""Preparation on the machines of a Ray cluster: workers on CPUs decode, cut and write; models run on GPUs if there are.

A worker is an actor with one CPU and one source at a time. Where the cluster has GPUs, an actor for each of them holds
the models and the workers send it their frames and sound; else each worker holds models of its own. All that stays is
in the data set's folder, which every machine must reach under the same name, so nothing is lost with a worker, a
machine or the cluster: a source is done when its folder has its name.
"""

import itertools
import logging
import signal
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from vexpress.errors import InputError, first_line
from vexpress.logs import set_up_logging
from vexpress.prepare.workers import SourceFailed, Work

logger = logging.getLogger(__name__)

MAX_ATTEMPTS = 3  # at a source; what ends its worker more often is poison
MAX_STARTS = 3  # of workers in a row that end before they are ready
OBJECT_STORE_BYTES = 2**28  # of a cluster that is started here; only frames on their way to a GPU are in it


def run_on_ray(
    work: Work,
    sources: list,
    address: str | None,
    num_workers: int | None,
    uses_gpus: bool,
    show: Callable[[str], None],
) -> None:
    """Prepares sources on a Ray cluster; each worker gets the next one when it is ready.

    A source whose worker or machine ends is given to another one, and after `MAX_ATTEMPTS` recorded as failed.

    Args:
        work: what to do with a source.
        sources: in this order.
        address: of the cluster, HOST:PORT; None starts one on this machine, and ends it.
        num_workers: most workers at a time; None: as many as the cluster has CPUs, also when it grows.
        uses_gpus: run the models on the cluster's GPUs, if it has any.
        show: called with "clip" and "source" when one is done.

    Raises:
        InputError: no cluster at the address, models that cannot be loaded, or workers that end before their work.
        OSError: the disk is full.
    """
    own = {"address": "local", "num_cpus": num_workers, "object_store_memory": OBJECT_STORE_BYTES}
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(**({"address": address} if address else own), include_dashboard=None if address else False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise InputError(f"no Ray cluster can be used there ({first_line(error)})", "ray_address", address) from error
    finally:
        signal.signal(signal.SIGTERM, handler)  # Ray has put its own there
    try:
        num_gpus = int(ray.cluster_resources().get("GPU", 0)) if uses_gpus else 0
        servers = _start_servers(work, num_gpus) if num_gpus else []
        _Crew(work, sources, servers, num_workers, show).run()
    finally:
        ray.shutdown()


def _start_servers(work: Work, num_gpus: int) -> list:
    from vexpress.prepare.served_models import ModelServer

    return [ModelServer.remote(work) for _ in range(num_gpus)]


class _Crew:
    """The workers of a run, and which source each of them has."""

    def __init__(self, work: Work, sources: list, servers: list, num_workers: int | None, show: Callable):
        self.work, self.num_workers, self.show = work, num_workers, show
        self.servers = itertools.cycle(servers or [None])
        self.waiting = deque(sources)
        self.attempts: Counter = Counter()
        self.calls: dict[ray.ObjectRef, tuple[Any, Any]] = {}  # -> worker and source; None while it loads models
        self.num_idle_ends = 0

    def run(self) -> None:
        while self.waiting or any(source is not None for _, source in self.calls.values()):
            self._hire()
            [done], _ = ray.wait(list(self.calls), num_returns=1)
            worker, source = self.calls.pop(done)
            try:
                num_clips = ray.get(done)
            except RayTaskError as error:
                if not isinstance(error.cause, SourceFailed):
                    raise error.cause from None
                self._retry(source, str(error.cause))
            except RayError as error:  # the worker is gone
                ray.kill(worker)
                self._mourn(source, _reason(error))
                continue
            else:
                self.num_idle_ends = 0
                if source is not None:
                    for event in ["clip"] * num_clips + ["source"]:
                        self.show(event)
            if self.waiting:
                source = self.waiting.popleft()
                self.calls[worker.prepare.remote(source)] = worker, source
            else:
                ray.kill(worker)

    def _hire(self) -> None:
        """Starts workers for what waits; those for which there is no CPU start when there is one."""
        most = self.num_workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
        num_loading = sum(source is None for _, source in self.calls.values())
        for _ in range(min(most - len(self.calls), len(self.waiting) - num_loading)):
            worker = _Worker.remote(self.work, next(self.servers))
            self.calls[worker.load.remote()] = worker, None

    def _mourn(self, source, detail: str) -> None:
        if source is not None:
            self._retry(source, f"its worker ended: {detail}")
            return
        self.num_idle_ends += 1
        if self.num_idle_ends >= MAX_STARTS:
            problem = f"{MAX_STARTS} workers ended before their work ({detail}); fewer `num_processes` need less memory"
            raise InputError(problem)

    def _retry(self, source, detail: str) -> None:
        self.attempts[source] += 1
        if self.attempts[source] < MAX_ATTEMPTS:
            logger.warning("%s: attempt %d of %d: %s", source, self.attempts[source], MAX_ATTEMPTS, detail)
            self.waiting.append(source)
            return
        logger.error("%s: %s, and will be tried again by the next run", source, detail)
        self.work.record_failure(source, detail)
        self.show("source")


def _reason(error: RayError) -> str:
    """What Ray says of the end of a worker, without its numbers of processes and machines."""
    text = str(error)
    if "low on memory" in text:
        return "out of memory"
    return "its machine is gone" if "node has died" in text or "node was terminated" in text else "the process is gone"


@ray.remote(num_cpus=1, max_restarts=0)
class _Worker:
    """Prepares one source after another."""

    def __init__(self, work: Work, server):
        set_up_logging(logging.WARNING)
        self.work, self.server = work, server

    def load(self) -> None:
        if self.server is None:
            self.models = self.work.load_models()
        else:
            from vexpress.prepare.served_models import ServedModels

            self.models = ServedModels(self.server)

    def prepare(self, source) -> int:
        """Returns the number of clips that were made."""
        clips = itertools.count()
        self.work.attempt(source, self.models, lambda: next(clips))
        return next(clips)
