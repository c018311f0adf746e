"""Models on the GPUs of a Ray cluster, and what stands for them in workers that have none."""

import logging
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayTaskError
from torch import Tensor

from vexpress.logs import set_up_logging
from vexpress.media.faces import Face, FaceDetector
from vexpress.prepare.sync import Speech
from vexpress.prepare.workers import Work
from vexpress.syncnet import SyncScore

FRAMES_ON_THE_WAY = 4  # to a GPU, of one worker: enough to hide the way there


@ray.remote(num_cpus=0, num_gpus=1, max_restarts=-1, max_task_retries=-1)
class ModelServer:
    """Holds the models on one GPU; restarted by Ray if it ends."""

    def __init__(self, work: Work):
        set_up_logging(logging.WARNING)
        self.work, self._models = work, None

    @property
    def models(self):  # not cached_property: Ray pickles the class, and up to Python 3.11 that holds a lock
        self._models = self._models or self.work.load_models()
        return self._models

    def get(self, name: str) -> Any:
        return getattr(self.models, name)

    def detect(self, name: str, image: np.ndarray) -> list[Face]:
        return getattr(self.models, name).detect(image)

    def encode_audio(self, waveform: Tensor) -> Tensor:
        return self.models.encode_audio(waveform)

    def measure_sync(self, crops: np.ndarray, speech: Speech) -> SyncScore | None:
        return self.models.measure_sync(crops, speech)


class ServedModels:
    """Stands for `PrepareModels` in a worker: face models and audio encoder run at the server, all else is fetched."""

    def __init__(self, server):
        self._server = server
        self.detector, self.analyzer = _ServedDetector(server, "detector"), _ServedDetector(server, "analyzer")
        self.audio_processor = _get(server.get.remote("audio_processor"))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        setattr(self, name, _get(self._server.get.remote(name)))
        return getattr(self, name)

    def encode_audio(self, waveform: Tensor) -> Tensor:
        return _get(self._server.encode_audio.remote(waveform))

    def measure_sync(self, crops: np.ndarray, speech: Speech) -> SyncScore | None:
        return _get(self._server.measure_sync.remote(crops, speech))


class _ServedDetector(FaceDetector):
    def __init__(self, server, name: str):
        self._server, self._name = server, name

    def detect(self, image: np.ndarray) -> list[Face]:
        return _get(self._server.detect.remote(self._name, image))

    def detect_each(self, frames: Iterable[np.ndarray]) -> Iterator[list[Face]]:
        """As the detector itself, with some frames on the way while the next ones are decoded."""
        on_the_way: deque[ray.ObjectRef] = deque()
        last = answer = None
        for frame in frames:
            if last is None or frame is not last and not np.array_equal(frame, last):
                answer = self._server.detect.remote(self._name, frame)
            last = frame
            on_the_way.append(answer)
            if len(on_the_way) > FRAMES_ON_THE_WAY:
                yield _get(on_the_way.popleft())
        yield from map(_get, on_the_way)


def _get(answer: ray.ObjectRef) -> Any:
    """The server's answer, or its error as it was raised there."""
    try:
        return ray.get(answer)
    except RayTaskError as error:
        raise error.cause from None
