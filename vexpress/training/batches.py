"""Batches of training samples, decoded in worker processes."""

import signal
from collections.abc import Generator

from torch.utils.data import DataLoader

from vexpress.data.dataset import SampleStream, TalkingFaceDataset, start_workers
from vexpress.errors import InputError, first_line


def stream_batches(dataset: TalkingFaceDataset, samples: SampleStream, pin_memory: bool) -> Generator[dict, None, None]:
    """Yields collated batches of `data.train_bs` samples without end; close it to end the workers.

    Args:
        dataset: whose configuration says how many samples and workers.
        samples: which samples.
        pin_memory: for copies to a CUDA device.

    Raises:
        InputError: a clip cannot be read, or a worker has died.
    """
    loader = DataLoader(
        dataset,
        batch_size=dataset.config.train_bs,
        sampler=samples,
        num_workers=dataset.config.num_workers,
        pin_memory=pin_memory,
        worker_init_fn=_ignore_signals,
    )
    batches = start_workers(loader)
    while True:
        try:
            yield next(batches)
        except InputError as error:  # a worker's comes with its traceback in the text
            raise InputError(str(error).strip().splitlines()[-1].split("InputError: ")[-1]) from error
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise InputError(
                f"a process that decodes videos has died ({first_line(error)}): out of memory or of shared memory? "
                "Lower data.num_workers or data.train_bs"
            ) from error


def _ignore_signals(worker: int) -> None:
    """A scheduler or a terminal signals all processes of a job; workers are needed until the run is saved."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
