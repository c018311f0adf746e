"""A live stream: sound comes in, in pieces; video goes out as it is made."""

import contextlib
import logging
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import cv2
import numpy as np
import soxr
from PIL import Image
from torch import Tensor

from vexpress.errors import InputError
from vexpress.media.keypoints import load_kps
from vexpress.provenance import video_metadata
from vexpress.request import check_attributes, prepare_kps, prepare_portrait
from vexpress.server.boxes import Inbox, Outbox
from vexpress.server.problems import Problem
from vexpress.server.requests import VideoRequest, check_files, collect, follow_face
from vexpress.server.service import Service
from vexpress.server.sound import PlayedSound, SoundFormat, SoundReader
from vexpress.server.streaming import FragmentedMp4, playable_rate
from vexpress.server.turns import StoppedError, Watch
from vexpress.server.uploads import save_base64_files

logger = logging.getLogger(__name__)

OUTPUTS = ("mp4", "jpeg")
STATS_SECONDS = 0.5
JPEG_QUALITY = 88
MAX_MOTION_SECONDS = 60  # of keypoints, which are then run through back and forth


@dataclass
class Clock:
    """When sound came, and how long frames took after it."""

    arrivals: list[tuple[float, float]] = field(default_factory=list)  # seconds of sound so far, moment
    waited: float = 0.0
    began: float = field(default_factory=time.monotonic)

    def latency(self, seconds: float) -> float:
        """Time since the sound of a moment of the stream came."""
        while len(self.arrivals) > 1 and self.arrivals[0][0] < seconds:
            self.arrivals.pop(0)
        return time.monotonic() - self.arrivals[0][1] if self.arrivals else 0.0

    def factor(self, seconds: float) -> float:
        """Seconds of computing per second of video so far."""
        return (time.monotonic() - self.began - self.waited) / max(seconds, 1e-6)


class LiveSession:
    """One client's stream; made by the event loop.

    Args:
        service: whose model is used.
        start: the client's first message.

    Raises:
        InputError: it asks for what there is not.
    """

    def __init__(self, service: Service, start: dict[str, Any]):
        self.service, self.settings = service, service.settings
        self._values = values = dict(start)
        self.output = values.pop("output", "mp4")
        if self.output not in OUTPUTS:
            raise InputError(f"must be one of {', '.join(OUTPUTS)}", "output", str(self.output)[:40])
        names = ("encoding", "sampling_rate", "channels")
        self.form = SoundFormat(**{name: values.pop(name) for name in names if name in values})
        self.inbox, self.outbox = Inbox(), Outbox(self.settings.idle_seconds)
        self._gone = threading.Event()
        self._began = time.monotonic()

    def prepare(self) -> None:
        """Reads what the client sent first; called by a thread.

        Raises:
            InputError: it cannot be used.
            Problem: a file is too large.
            StoppedError: the client is gone, or it takes too long.
        """
        values, service = self._values, self.service
        with service.passing_folder() as folder:
            save_base64_files(values, folder, int(self.settings.max_upload_mb * 1e6))
            self.request = collect(
                values, folder, False, service.engine.defaults, service.examples, self.settings, has_speech=False
            )
            self.portrait, self.kps = self._prepare(self.request)

    def _prepare(self, wanted: VideoRequest) -> tuple[Image.Image, Tensor]:
        """The portrait at the video's size, and keypoints (f 3 2) of some seconds."""
        options, engine = wanted.options, self.service.engine
        if wanted.motion.motion == "natural":
            raise InputError(
                "is made of whole speech, which a live stream does not have; use still", "motion", "natural"
            )
        if wanted.motion.paste_back:
            raise InputError("is for videos, not for live streams", "paste_back")
        check_attributes(wanted.motion, engine.paths.has_attributes)
        check_files(wanted, self.settings)
        self._check()
        prepared = wanted.prepared_without_motion(self.settings)
        sequence = None
        if "kps" in wanted.files:
            sequence = load_kps(wanted.files["kps"])
        elif "driving_video" in wanted.files:
            sequence = follow_face(wanted.files["driving_video"], engine.detector, self._check)
            prepared = replace(prepared, kps=sequence, motion=wanted.motion)
        portrait, reference_kps, _ = prepare_portrait(prepared, options, lambda: engine.detector)
        seconds = 0 if sequence is None else len(sequence.kps) / (sequence.fps or options.fps)
        num_frames = max(1, round(min(seconds, MAX_MOTION_SECONDS) * options.fps))
        return portrait, prepare_kps(prepared, options, sequence, reference_kps, num_frames)

    async def leave(self) -> None:
        """The client is gone: the thread ends at its next step; called by the event loop."""
        self._gone.set()
        self.outbox.close()
        await self.inbox.put(StoppedError())

    def run(self) -> None:
        """Makes frames until the sound ends; called by a thread of its own."""
        self._began = time.monotonic()
        message: dict[str, Any] | None = None
        try:
            message = {"type": "end", **self._stream()}
        except StoppedError as stopped:
            if stopped.reason:
                message = {"type": "error", **Problem(408, stopped.reason).as_json()}
        except InputError as error:
            message = {"type": "error", **Problem.of(error).as_json()}
        except Exception as error:  # a bug must reach the client and free the slot
            logger.exception("a live stream failed")
            message = {"type": "error", **Problem(500, f"an error of the server ({type(error).__name__})").as_json()}
        if message is not None:
            with contextlib.suppress(StoppedError):
                self.outbox.put(message)
        self.outbox.end()

    def _check(self) -> None:
        if self._gone.is_set():
            raise StoppedError
        if time.monotonic() - self._began > self.settings.max_stream_seconds:  # of whatever sound
            raise StoppedError(f"a stream may last {self.settings.max_stream_seconds:g} s")

    def _stream(self) -> dict[str, Any]:
        options, engine = self.request.options, self.service.engine
        reader, clock = SoundReader(self.form), Clock()
        played = PlayedSound(reader.rate, playable_rate(reader.rate))
        chunks = self._chunks(reader, played, clock)
        frames = engine.live(self.portrait, self.kps, self.request.motion, chunks, options, Watch(self._check))
        metadata = video_metadata(engine.model_dir, options, self.request.motion, engine.lora)
        file = None
        if self.output == "mp4":
            width, height = self.portrait.size
            file = FragmentedMp4(self.outbox.put, width, height, options.fps, played.rate, metadata)
        told, number = 0.0, 0
        try:
            for number, pixels in enumerate(frames, start=1):
                self._check()
                seconds = (number - 1) / options.fps
                if file is not None:
                    file.add(pixels, played.take(file.samples_due()))
                else:
                    self.outbox.put(struct.pack("<d", seconds) + _jpeg(pixels))
                    played.take(round(played.rate / options.fps))
                if time.monotonic() - told > STATS_SECONDS:
                    told = time.monotonic()
                    latency, factor = clock.latency(seconds), clock.factor(number / options.fps)
                    self.outbox.put(
                        {"type": "stats", "seconds": seconds, "latency": round(latency, 3), "factor": round(factor, 3)}
                    )
        finally:
            if file is not None:
                with contextlib.suppress(StoppedError):
                    file.close()
        return {"num_frames": number, "factor": round(clock.factor(number / options.fps), 3)}

    def _chunks(self, reader: SoundReader, played: "PlayedSound", clock: Clock) -> Iterator[np.ndarray]:
        """The client's sound at the encoder's rate."""
        resampler = soxr.ResampleStream(reader.rate, self.service.engine.sampling_rate_hz, 1, "float32", quality="LQ")
        num_samples = 0
        while True:
            waiting = time.monotonic()
            moment, piece = self.inbox.get(self.settings.idle_seconds)
            clock.waited += time.monotonic() - waiting
            self._check()
            if piece is None:
                yield resampler.resample_chunk(np.zeros(0, np.float32), last=True)
                return
            samples = reader(piece)
            num_samples += len(samples)
            clock.arrivals.append((num_samples / reader.rate, moment))
            if num_samples / reader.rate > self.settings.max_stream_seconds:
                raise StoppedError(f"a stream may last {self.settings.max_stream_seconds:g} s")
            played.add(samples)
            yield resampler.resample_chunk(samples)


def _jpeg(pixels: np.ndarray) -> bytes:
    _, data = cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    return data.tobytes()
