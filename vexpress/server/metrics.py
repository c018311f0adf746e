"""What Prometheus reads."""

import resource
import sys
from collections.abc import Callable

import torch
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest


class Metrics:
    """Counters of one service; each has a registry of its own."""

    def __init__(self):
        registry = self._registry = CollectorRegistry()
        self.jobs = Counter("vexpress_jobs", "Jobs that ended, by state", ["state"], registry=registry)
        self.refused = Counter("vexpress_refused", "Requests refused, by status", ["status"], registry=registry)
        self.queue = Gauge("vexpress_queue", "Jobs that wait", registry=registry)
        self.running = Gauge("vexpress_running", "Jobs that run", registry=registry)
        self.streams = Gauge("vexpress_streams", "Live streams", registry=registry)
        self.live_factor = Gauge(
            "vexpress_live_factor", "Seconds of computing per second of live video, at the start", registry=registry
        )
        self.seconds_per_frame = Histogram(
            "vexpress_seconds_per_frame",
            "Seconds per frame of a job",
            buckets=(0.005, 0.01, 0.02, 0.033, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10),
            registry=registry,
        )
        memory = Gauge("vexpress_memory_bytes", "Memory in use", ["kind"], registry=registry)
        memory.labels("resident").set_function(resident_bytes)
        memory.labels("resident_peak").set_function(peak_bytes)
        memory.labels("cuda").set_function(cuda_bytes)

    def text(self, refresh: Callable[["Metrics"], None]) -> bytes:
        """All values in Prometheus' format, after `refresh` has set those that are not counted."""
        refresh(self)
        return generate_latest(self._registry)


def resident_bytes() -> float:
    """Memory of this process."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except OSError:  # not Linux
        return peak_bytes()


def peak_bytes() -> float:
    """The most memory that this process ever had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def cuda_bytes() -> float:
    """Memory of tensors on the GPU."""
    return float(torch.cuda.memory_allocated()) if torch.cuda.is_initialized() else 0.0
