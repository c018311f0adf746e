"""Streams a video of speech as it comes, and compares its making with its playing."""

import itertools
import statistics
import time
from collections.abc import Iterator

from torch import Tensor

from vexpress.benchmarks.demo_clip import DemoClip
from vexpress.benchmarks.measuring import Table
from vexpress.benchmarks.settings import LiveSettings
from vexpress.diffusion.schedule import build_scheduler

CHUNK_SECONDS = 0.1


def stream_once(clip: DemoClip, seconds: float) -> tuple[float, float, float, int]:
    """One stream of speech that is there as soon as it is asked for.

    Returns:
        Seconds until the first frame, of speech heard until then, until the last frame; and the number of frames.
    """
    rate = clip.pipeline.audio_processor.sampling_rate
    size, num_left = round(CHUNK_SECONDS * rate), round(seconds * rate)
    heard = 0

    def chunks() -> Iterator[Tensor]:
        nonlocal heard
        for chunk in itertools.chain.from_iterable(itertools.repeat(clip.speech.split(size))):
            if heard >= num_left:
                return
            heard += len(chunk)
            yield chunk

    started = time.perf_counter()
    frames = clip.pipeline.stream(
        clip.portrait,
        chunks(),
        lambda number: clip.kps[number % len(clip.kps)],
        fps=clip.options.fps,
        options=clip.options,
    )
    next(frames)
    first, heard_first = time.perf_counter() - started, heard / rate
    num_frames = 1 + sum(1 for _ in frames)
    return first, heard_first, time.perf_counter() - started, num_frames


def measure(settings: LiveSettings) -> Table:
    """Medians of streams in a warm process: the first one, which is not counted, loads what is loaded late."""
    clip = DemoClip.load(settings.model_dir, settings.preset)
    if settings.num_inference_steps is not None:
        changed = clip.options.changed(num_inference_steps=settings.num_inference_steps)
        clip = DemoClip(clip.pipeline, changed, clip.portrait, clip.speech, clip.kps)
    clip.pipeline.scheduler = build_scheduler(clip.options.scheduler)
    stream_once(clip, 1.0)
    turns = [stream_once(clip, settings.seconds) for _ in range(settings.repeats)]
    first, heard, total, num_frames = (statistics.median(column) for column in zip(*turns))
    fps, playing = clip.options.fps, num_frames / clip.options.fps
    rows = [
        ["frames per second", f"{num_frames / total:.1f}", f"{num_frames / total / fps:.2f} of the video's {fps:g}"],
        ["computing until the first frame", f"{first:.2f} s", ""],
        ["speech heard until then", f"{heard:.2f} s", "which a live stream waits for, too"],
        ["real-time factor", f"{total / playing:.2f}", "time of making to time of playing; below 1 keeps up"],
    ]
    width, height = clip.portrait.size
    steps = f"{clip.options.num_inference_steps} steps"
    return Table([f"{playing:.1f} s of {width}x{height}, {settings.preset}, {steps}", "median", ""], rows)
