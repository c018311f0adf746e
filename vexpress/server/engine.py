"""The model: loaded once, and used by one job or stream at a time."""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from vexpress.data.attribute_curves import AskedAttributes
from vexpress.devices import resolve_device, resolve_dtype
from vexpress.diffusion.schedule import build_scheduler
from vexpress.media.audio import Audio
from vexpress.media.faces import Face, FaceDetector
from vexpress.media.mtcnn import load_face_detector
from vexpress.model_folder import ModelPaths
from vexpress.options import MotionOptions, SamplingOptions, load_model_defaults, unlearned
from vexpress.pipeline import VExpressPipeline
from vexpress.request import ClipInputs, Request, SpeechMotion, prepare_request
from vexpress.server.turns import Turns, Watch

logger = logging.getLogger(__name__)

LOOK_AHEAD_SECONDS = 0.2  # of sound that a live frame waits for
WARM_UP_SECONDS = 1.2
LIVE_STEPS = 3  # denoising steps that suit a live stream, unless the model's default has fewer


class SharedDetector(FaceDetector):
    """A face detector that several threads may use; built when it is first needed.

    Args:
        build: gives the detector.
    """

    def __init__(self, build: Callable[[], FaceDetector]):
        self._build, self._lock = build, threading.Lock()
        self._detector: FaceDetector | None = None

    def detect(self, image: np.ndarray) -> list[Face]:
        """As the detector's own."""
        with self._lock:
            self._detector = self._detector or self._build()
            return self._detector.detect(image)


class WatchedPipeline(VExpressPipeline):
    """A pipeline that reports its progress to a `Watch`."""

    def watched(self, watch: Watch) -> "WatchedPipeline":
        """Sets who is told."""
        self._watch = watch
        return self

    def progress_bar(self, iterable=None, total: int | None = None) -> Watch:
        """The watch in place of a bar on the terminal."""
        return self._watch.begin(total)

    def encode_speech(self, waveform: Tensor) -> Tensor:
        """As the pipeline's own, and ends where the watch does."""
        return super().encode_speech(waveform, self._watch.check)


@dataclass
class Speed:
    """How fast live streams are made: seconds of computing per second of video; None before the first one."""

    factor: float | None = None
    first_frame_seconds: float | None = None


class Engine:
    """The model and all that is done with it.

    Args:
        model_dir: folder in the released layout.
        device: "cuda", "cpu" or "mps"; None is what is there.
        gpu_id: index of the CUDA device.
        dtype: "fp16", "bf16" or "fp32"; None is what suits the device.
        lora: adapters that all videos are made with, `PATH` or `PATH:WEIGHT` each.
        lora_any_base: take those that were trained on another base model, too.

    Raises:
        InputError: a file of the model is missing, or the device is not there.
    """

    def __init__(
        self,
        model_dir: Path,
        device: str | None = None,
        gpu_id: int = 0,
        dtype: str | None = None,
        lora: Sequence[str] = (),
        lora_any_base: bool = False,
    ):
        self.model_dir, self.lora, self.lora_any_base = Path(model_dir), lora, lora_any_base
        self.paths = ModelPaths.from_model_dir(model_dir)
        self.defaults = SamplingOptions(**load_model_defaults(model_dir)).changed(dtype=dtype)
        self.device = resolve_device(device, gpu_id)
        self.turns = Turns()
        self.speed = Speed()
        self.detector = SharedDetector(lambda: load_face_detector(None, self.paths.insightface_model_path, self.device))
        self._motion_lock = threading.Lock()
        self._motion: SpeechMotion | None = None
        self._pipeline: VExpressPipeline | None = None

    @property
    def is_ready(self) -> bool:
        """Whether the model is loaded."""
        return self._pipeline is not None

    @property
    def has_natural_motion(self) -> bool:
        """Whether the model moves a head to speech."""
        return self.paths.head_motion_path.exists()

    @property
    def sampling_rate_hz(self) -> int:
        """Of the audio encoder."""
        return self._pipeline.audio_processor.sampling_rate

    def load(self) -> None:
        """Loads all networks.

        Raises:
            InputError: a file does not fit.
        """
        started = time.monotonic()
        dtype = resolve_dtype(self.defaults.dtype, self.device)
        pipeline = VExpressPipeline.from_released(self.paths, dtype, self.device)
        pipeline.set_progress_bar_config(disable=True)
        pipeline.use_adapters(self.lora, check_base=not self.lora_any_base)
        self._pipeline = pipeline
        logger.info("model %s is loaded in %.1f s", self.model_dir.name, time.monotonic() - started)

    def pipeline(self, scheduler: str, watch: Watch) -> WatchedPipeline:
        """A pipeline of the loaded networks with a scheduler of its own."""
        parts = {**self._pipeline.components, "scheduler": build_scheduler(scheduler)}
        return WatchedPipeline(**parts).watched(watch)

    def prepare(
        self, request: Request, options: SamplingOptions, check: Callable[[], None] = lambda: None
    ) -> ClipInputs:
        """See `vexpress.request.prepare_request`."""
        build_motion = self._speech_motion if self.has_natural_motion else None
        return prepare_request(request, options, lambda: self.detector, build_motion, self.paths.has_attributes, check)

    def _speech_motion(self) -> SpeechMotion:
        with self._motion_lock:
            self._motion = self._motion or SpeechMotion(self.paths, self.device)
            return self._motion

    def frames(self, inputs: ClipInputs, options: SamplingOptions, watch: Watch) -> Iterator[np.ndarray]:
        """Makes a video.

        Yields:
            (H W 3) uint8, as they are made.
        """
        if warning := unlearned(options, vars(self.defaults)):
            logger.warning(warning)
        pipeline = self.pipeline(options.scheduler, watch)
        arguments = inputs.pipeline_arguments(self.sampling_rate_hz)

        def made() -> Iterator[np.ndarray]:
            yield from pipeline(**arguments, options=options, output_type="generator").frames

        return self.turns.each(made())

    def live(
        self,
        portrait: Image.Image,
        kps: Tensor,
        motion: MotionOptions,
        chunks: Iterator[np.ndarray],
        options: SamplingOptions,
        watch: Watch,
    ) -> Iterator[np.ndarray]:
        """Makes frames while sound comes in.

        Args:
            portrait: RGB, at the size of the video.
            kps: (f 3 2) px, run through back and forth.
            motion: whose lids, gaze, brows and smile count.
            chunks: sound, (n,) float32 each, at the encoder's rate; the last frame is that of the last sample.
            options: how to sample.
            watch: told of the work.

        Yields:
            (H W 3) uint8, one per 1 / fps seconds.
        """
        pipeline = self.pipeline(options.scheduler, watch)

        def heard() -> Iterator[np.ndarray]:
            while True:
                self.turns.give()  # others may compute while this stream waits for sound
                try:
                    chunk = next(chunks, None)
                finally:
                    self.turns.take(live=True)
                if chunk is None:
                    return
                if len(chunk):
                    yield chunk

        def made() -> Iterator[np.ndarray]:
            points = lambda number: kps[_back_and_forth(number, len(kps))]  # noqa: E731
            attributes = None
            if self.paths.has_attributes:
                attributes = AskedAttributes(motion, options.fps, options.seed, reads_files=False)
            for frame, _ in pipeline.stream(
                portrait,
                heard(),
                points,
                attributes=attributes,
                fps=options.fps,
                look_ahead_seconds=LOOK_AHEAD_SECONDS,
                options=options,
            ):
                yield frame

        return self.turns.each(made(), live=True)

    def warm_up(self, portrait: Path) -> None:
        """Measures how fast live streams are made; afterwards all lazy parts of the libraries are loaded."""
        options = self.defaults.changed(num_inference_steps=min(LIVE_STEPS, self.defaults.num_inference_steps))
        rate = self.sampling_rate_hz
        sound = np.random.default_rng(0).normal(0, 0.05, round(WARM_UP_SECONDS * rate)).astype(np.float32)
        request = Request(portrait, Audio(sound[None], rate), motion=MotionOptions(retarget_strategy="fix_face"))
        inputs = self.prepare(request, options)
        for is_measured in (False, True):  # the first one loads what is loaded late
            started = time.monotonic()
            frames = self.live(inputs.portrait, inputs.kps, request.motion, iter([sound]), options, Watch())
            next(frames)
            if is_measured:
                first = time.monotonic() - started
                num_frames = 1 + sum(1 for _ in frames)
                self.speed = Speed((time.monotonic() - started) / (num_frames / options.fps), first)
            frames.close()
        factor = self.speed.factor
        slow = "" if factor < 1 else f": this machine is {factor:.1f} times too slow"
        logger.info("live: %.2f s of computing per second of video%s", factor, slow)


def _back_and_forth(index: int, length: int) -> int:
    """0 1 2 1 0 1 2 ..."""
    last = length - 1
    return last - abs(index % max(2 * last, 1) - last)
