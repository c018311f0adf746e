"""One job: from its files to video, stream and contact sheet in its folder."""

import contextlib
import logging
import shlex
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vexpress.files import replacing
from vexpress.media.sheets import frame_numbers, remember, render_filmstrip
from vexpress.media.video import write_video
from vexpress.model_folder import EMBEDDED_MODEL_DIR
from vexpress.options import MotionOptions, SamplingOptions
from vexpress.provenance import sign_video, video_metadata
from vexpress.request import ClipInputs
from vexpress.server.engine import Engine
from vexpress.server.requests import DRIVING_KPS, VideoRequest
from vexpress.server.schema import option_fields
from vexpress.server.settings import ServeSettings
from vexpress.server.streaming import FragmentedMp4, playable_rate
from vexpress.server.turns import Watch
from vexpress.unused import unused_options

logger = logging.getLogger(__name__)

VIDEO, SHEET, STREAM = "video.mp4", "sheet.png", "stream.mp4"
SHEET_FRAMES = 8


class Progress:
    """How far a job is.

    Args:
        watch: of its pipeline.
    """

    def __init__(self, watch: Watch):
        self.watch = watch
        self.num_frames = self.frames_done = 0
        self.started = time.monotonic()

    def as_json(self) -> dict[str, Any]:
        """For clients; `share` is a guess of the part of the whole that is done, 0..1."""
        watch, share = self.watch, 0.0
        done, total = watch.done, watch.total  # another thread counts on
        if self.num_frames:
            share = self.frames_done / self.num_frames
            if not self.frames_done and total:  # all frames are denoised before the first is decoded
                share = 0.9 * done / total
            elif watch.stage.startswith("decoding"):
                share = 0.9 + 0.1 * share
        left = watch.seconds_left
        return {
            "stage": watch.stage,
            "share": round(min(share, 1.0), 4),
            "num_frames": self.num_frames,
            "frames_done": self.frames_done,
            "seconds_left": None if left is None else round(left, 2),
        }


def make_video(
    request: VideoRequest, folder: Path, engine: Engine, progress: Progress, settings: ServeSettings
) -> dict[str, Any]:
    """Does the work of a job.

    Args:
        request: what was asked for; its files are in `folder`.
        folder: of the job.
        engine: the model.
        progress: is told, and its watch may end the work.
        settings: limits, and whether videos are signed.

    Returns:
        Facts of the video.

    Raises:
        InputError: the request's files cannot be used.
        StoppedError: the watch ended it.
    """
    options = request.options
    prepared = request.prepared(folder, engine.detector, progress.watch.check, settings)
    inputs = engine.prepare(prepared, options, progress.watch.check)
    progress.watch.check()
    progress.num_frames = inputs.num_frames
    metadata = video_metadata(engine.model_dir, options, request.motion, engine.lora)
    numbers = frame_numbers(inputs.num_frames, SHEET_FRAMES)
    shown: list[np.ndarray] = []
    frames = inputs.finished(engine.frames(inputs, options, progress.watch))
    with contextlib.closing(_streamed(frames, folder / STREAM, inputs, metadata, progress)) as streamed:
        write_video(folder / VIDEO, remember(streamed, numbers, shown), options.fps, inputs.audio, metadata=metadata)
    if settings.c2pa_key:
        sign_video(folder / VIDEO, settings.c2pa_certificate, settings.c2pa_key)
    waveform = inputs.waveform(engine.sampling_rate_hz).numpy()
    sheet = render_filmstrip(np.asarray(inputs.portrait), shown, numbers, inputs.video_kps.numpy(), waveform)
    with replacing(folder / SHEET) as temporary:
        Image.fromarray(sheet).save(temporary, format="PNG")
    seconds = time.monotonic() - progress.started
    width, height = inputs.video_size
    return {
        "num_frames": inputs.num_frames,
        "width": width,
        "height": height,
        "fps": options.fps,
        "duration_seconds": inputs.num_frames / options.fps,
        "seconds_per_frame": seconds / inputs.num_frames,
    }


def _streamed(
    frames: Iterator[np.ndarray], path: Path, inputs: ClipInputs, metadata: dict[str, str], progress: Progress
) -> Iterator[np.ndarray]:
    """Passes frames on, and writes them to a file that plays while it grows."""
    rate = playable_rate(inputs.audio.sampling_rate_hz)
    sound = inputs.waveform(rate).numpy()
    position = 0
    width, height = inputs.video_size
    with path.open("wb", buffering=0) as file:
        stream = FragmentedMp4(file.write, width, height, inputs.fps, rate, metadata)
        try:
            for frame in frames:
                end = position + stream.samples_due()
                stream.add(frame, sound[position:end])
                position = end
                progress.frames_done += 1
                yield frame
        finally:
            stream.close()


def differing(options: SamplingOptions, motion: MotionOptions, defaults: SamplingOptions) -> dict[str, Any]:
    """The options of a request that are not the defaults, by name."""
    names = {field.name for field in option_fields()}
    given, own = asdict(options) | asdict(motion), asdict(defaults) | asdict(MotionOptions())
    return {name: value for name, value in given.items() if name in names and value != own[name]}


def command_line(request: VideoRequest, model_dir: Path, defaults: SamplingOptions, has_natural_motion: bool) -> str:
    """The program's call that makes the same video; files are named as they can be downloaded."""
    has_kps = bool({"kps", "driving_video"} & set(request.files))
    unused = unused_options(request.options, request.motion, has_kps, has_natural_motion)
    words = ["vexpress", "generate"]
    if model_dir.resolve() != EMBEDDED_MODEL_DIR:  # which is the default
        words += ["--model_dir", model_dir.name]
    words += ["--reference_image_path", download_name("portrait", request)]
    words += ["--audio_path", download_name("audio", request)]
    if has_kps:
        words += ["--kps_path", download_name("kps", request)]
    for name, value in differing(request.options, request.motion, defaults).items():
        if name in unused:  # the program would refuse it
            continue
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no_{name}")
        else:
            words += [f"--{name}", repr(value) if isinstance(value, float) else str(value)]
    return shlex.join([*words, "--output_path", "talking.mp4"])


def api_call(request: VideoRequest, url: str, defaults: SamplingOptions) -> str:
    """The same as a request of this service."""
    words = ["curl"]
    for name in ("portrait", "audio"):
        words += ["-F", f"{name}=@{download_name(name, request)}"]
    if {"kps", "driving_video"} & set(request.files):
        words += ["-F", f"kps=@{download_name('kps', request)}"]
    for name, value in differing(request.options, request.motion, defaults).items():
        words += ["-F", f"{name}={str(value).lower() if isinstance(value, bool) else value}"]
    return shlex.join([*words, f"{url}/v1/videos"])


def download_name(name: str, request: VideoRequest) -> str:
    """What a job's file is called when it is downloaded."""
    path = file_of(name, request, Path())
    return f"{name}{path.suffix or {'portrait': '.png', 'audio': '.wav'}.get(name, '')}"


def file_of(name: str, request: VideoRequest, folder: Path) -> Path:
    """A job's file: "portrait", "audio", "kps" or "sheet"."""
    if name == "sheet":
        return folder / SHEET
    if name == "kps" and "kps" not in request.files:
        return folder / DRIVING_KPS
    return request.files[name]
