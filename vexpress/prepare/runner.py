"""Where sources are prepared: in this process, in worker processes beside it, or on a Ray cluster."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vexpress.errors import InputError
from vexpress.prepare.workers import Work, run_workers

RUNNERS = ("local", "ray")


@dataclass(frozen=True)
class Runner:
    """Where sources are prepared; all give the same files.

    Attributes:
        name: one of RUNNERS.
        num_processes: that this process starts. With 2 or more, a source that crashes its process (as damaged files
            can crash a decoder) is recorded as failed; with 1, it ends the run. On Ray, workers of the whole cluster;
            None is as many as it has CPUs.
        ray_address: HOST:PORT of the cluster; None starts one here.
        uses_gpus: on Ray, run the models on the cluster's GPUs, if it has any.
    """

    name: str = "local"
    num_processes: int | None = 1
    ray_address: str | None = None
    uses_gpus: bool = True

    def run(self, work: Work, sources: list[Path], show: Callable[[str], None]) -> None:
        """Prepares sources.

        Args:
            work: what to do with a source.
            sources: in this order.
            show: called with "clip" and "source" when one is done.

        Raises:
            InputError: Ray is not installed, a model cannot be loaded, or workers end before their work.
            OSError: the disk is full.
        """
        if self.name == "ray":
            try:
                from vexpress.prepare.ray_runner import run_on_ray
            except ModuleNotFoundError as error:
                problem = f'{error.name} is not installed: pip install "vexpress[ray]"'
                raise InputError(problem, "runner", self.name) from error
            run_on_ray(work, sources, self.ray_address, self.num_processes, self.uses_gpus, show)
        elif self.num_processes == 1:
            models = work.load_models()
            for source in sources:
                work.prepare(source, models, lambda: show("clip"))
                show("source")
        else:
            run_workers(work, sources, self.num_processes, show)


LOCAL = Runner()
