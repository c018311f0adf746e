"""Measures how memory grows with the length of a video: rolling with the demo pack, joint with a stand-in network."""

import itertools
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from vexpress.benchmarks.demo_clip import DemoClip
from vexpress.benchmarks.measuring import Table, process_memory
from vexpress.benchmarks.settings import MemorySettings
from vexpress.diffusion.sampling import sample
from vexpress.diffusion.schedule import build_scheduler
from vexpress.diffusion.windows import context_windows

SAMPLE_SECONDS = 5.0  # of video between two looks at memory
MB = 1e6


def demo_stream(minutes: int, motion: str, num_inference_steps: int) -> Iterator[tuple[np.ndarray, float]]:
    """Frames of the demo pack's portrait, which says its sentence again and again, with rolling sampling."""
    clip = DemoClip.load()
    rate, speech, points = clip.pipeline.audio_processor.sampling_rate, clip.speech, clip.kps
    repeated = itertools.chain.from_iterable(itertools.repeat(speech.split(rate // 5)))
    num_left = minutes * 60 * rate

    def chunks() -> Iterator[Tensor]:
        nonlocal num_left
        for chunk in repeated:
            yield chunk[:num_left]
            num_left -= len(chunk)
            if num_left <= 0:
                return

    def moving(number: int) -> Tensor:  # never quite the same, so that nothing is remembered
        return points[number % len(points)] + number * 1e-4

    return clip.pipeline.stream(
        clip.portrait,
        chunks(),
        moving if motion == "moving" else points[0],
        fps=clip.options.fps,
        options=clip.options,
        num_inference_steps=num_inference_steps,
        guidance_scale=1.0,
    )


def measure_rolling(settings: MemorySettings) -> list[list[str]]:
    """Memory of this process minute by minute, and its slope from the end of the first minute on."""
    looks: list[tuple[float, int]] = []
    with torch.inference_mode():
        for _, seconds in demo_stream(settings.minutes, settings.motion, settings.num_inference_steps):
            if seconds >= len(looks) * SAMPLE_SECONDS:
                looks.append((seconds, process_memory("VmRSS")))
    rows = [[f"rolling, minute {s / 60:.0f}", f"{memory / MB:.1f}"] for s, memory in looks if round(s, 3) % 60 == 0]
    minutes, memory = (np.array(values) for values in zip(*(look for look in looks if look[0] >= 60)))
    slope = np.polyfit(minutes / 60, memory / MB, 1)[0]
    return [*rows, ["rolling, growth per minute from minute 1 on", f"{slope:.3f}"]]


def measure_joint(settings: MemorySettings) -> list[list[str]]:
    """Peak memory of joint sampling at 512x512, 4 channels of latents, beyond that of a clip a minute shorter."""
    peaks = []
    num_frames = round(60 * settings.fps)
    for minutes in (1, 2):
        scheduler = build_scheduler(settings.scheduler)
        scheduler.set_timesteps(2)
        latents = torch.zeros(1, 4, minutes * num_frames, 64, 64).normal_()
        windows = context_windows(latents.shape[2], 24, 4)
        sample(lambda noisy, timestep, windows, carried: noisy, latents, scheduler, windows)
        del latents
        peaks.append(process_memory("VmHWM"))
    return [[f"joint, {settings.scheduler}, 512x512, growth per minute", f"{(peaks[1] - peaks[0]) / MB:.1f}"]]


def measure(settings: MemorySettings) -> Table:
    """Measures memory of this process, MB. Joint comes first: its peak would hide in that of a longer run."""
    return Table(["memory of the process", "MB"], measure_joint(settings) + measure_rolling(settings))
