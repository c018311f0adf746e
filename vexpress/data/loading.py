"""Which samples a process trains on, and the workers that load them."""

import gc
import itertools
from collections.abc import Iterator

from torch.utils.data import DataLoader, Sampler


def start_workers(loader: DataLoader) -> Iterator[dict]:
    """Starts a loader's worker processes, and gives its batches.

    A forked worker that frees a decoder of its parent waits without end for the decoder's threads, which it has not
    inherited. So what is garbage is freed before, and the workers' collector leaves alone what they inherit.
    """
    gc.collect()
    gc.freeze()
    try:
        return iter(loader)
    finally:
        gc.unfreeze()


class SampleStream(Sampler[int]):
    """The numbers of the samples that one process trains on, without end.

    Processes take turns: two with batches of one see, step by step, what one with batches of two sees.

    Args:
        start: number of samples that all processes together have consumed before.
        rank: of this process, 0 to num_processes - 1.
        num_processes: that train together.
    """

    def __init__(self, start: int = 0, rank: int = 0, num_processes: int = 1):
        self.start, self.rank, self.num_processes = start, rank, num_processes

    def __iter__(self) -> Iterator[int]:
        return itertools.count(self.start + self.rank, self.num_processes)
