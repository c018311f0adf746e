"""Times the presets in turns at two sizes, and compares their frames with those of the release's sampling."""

import statistics
from functools import partial

import torch
from torch import Tensor

from vexpress.benchmarks.demo_clip import DemoClip
from vexpress.benchmarks.measuring import Table, take_turns
from vexpress.benchmarks.settings import PresetsSettings
from vexpress.diffusion.schedule import build_scheduler
from vexpress.options import PRESETS, preset_values

EXACT = "released"
SCALES = (1, 2)
"""Of the sides of the model's own size; at another one than that, time alone is looked at."""


def make_frames(clip: DemoClip, preset: str, scale: int, num_frames: int) -> Tensor:
    """The first frames (f 3 H W) of the demo's clip with a preset."""
    options = clip.options.changed(**preset_values(preset, vars(clip.options)))
    clip.pipeline.scheduler = build_scheduler(options.scheduler)
    rate = clip.pipeline.audio_processor.sampling_rate
    kps = clip.kps[torch.arange(num_frames) % len(clip.kps)]
    return clip.pipeline(
        clip.portrait,
        clip.speech[: round(num_frames / options.fps * rate)],
        kps * scale,
        width=clip.portrait.width * scale,
        height=clip.portrait.height * scale,
        options=options,
        output_type="pt",
    ).frames


def psnr(frames: Tensor, expected: Tensor) -> float:
    """Peak signal to noise ratio of pixels in 0..1, dB."""
    return float(-10 * (frames - expected).square().mean().log10())


def measure(settings: PresetsSettings) -> Table:
    """Medians of turns; the ratio is to the release's sampling at the same size."""
    clip = DemoClip.load(settings.model_dir)
    seconds: dict[tuple[str, int], float] = {}
    frames: dict[str, Tensor] = {}
    for scale in SCALES:
        rows = {name: partial(make_frames, clip, name, scale, settings.num_frames) for name in PRESETS}
        times, results = take_turns(rows, settings.repeats)
        seconds |= {(name, scale): statistics.median(turns) for name, turns in times.items()}
        frames = frames or results
    cells = []
    for name in PRESETS:
        ratios = [f"{seconds[name, scale] / seconds[EXACT, scale]:.3f}" for scale in SCALES]
        distance = "-" if name == EXACT else f"{psnr(frames[name], frames[EXACT]):.1f}"
        cells.append([name, f"{seconds[name, 1]:.2f}", *ratios, distance])
    sizes = [f"time to {EXACT}'s at {clip.portrait.width * scale} px" for scale in SCALES]
    return Table([f"preset, {settings.num_frames} frames", "s", *sizes, f"PSNR to {EXACT}, dB"], cells)
