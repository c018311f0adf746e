"""Pictures of a report: clips side by side, the mouth over the waveform, and sync by group."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from vexpress.errors import InputError
from vexpress.evaluation.clips import read_clip
from vexpress.evaluation.images import fit_size
from vexpress.evaluation.measure import PairMeasures
from vexpress.evaluation.rows import METRICS, Row
from vexpress.evaluation.settings import Settings
from vexpress.files import replacing
from vexpress.media.audio import load_audio

RANKINGS = ("aperture_r", "sync_c", "ssim", "psnr")  # the first that is measured tells good clips from bad ones
CELL_PX, NUM_FRAMES, TITLE_PX, GAP_PX = 160, 6, 26, 4
BACKGROUND, TEXT_COLOUR = (32, 32, 32), (235, 235, 235)
TRUE_COLOUR, GENERATED_COLOUR, WAVE_COLOUR = "tab:blue", "tab:orange", "0.8"
RATE_HZ = 16000
DPI = 110


def choose_clips(measures: Sequence[PairMeasures]) -> tuple[str | None, list[tuple[str, PairMeasures]]]:
    """Finds the best, the median and the worst clip; returns the title of what they are ranked by, and the clips."""
    for key in RANKINGS:
        known = [m for m in measures if np.isfinite(m.generated.values.get(key, np.nan))]
        if known:
            known.sort(key=lambda measured: -measured.generated.values[key])
            [title] = [metric.title for metric in METRICS if metric.key == key]
            places = {"best": 0, "median": (len(known) - 1) // 2, "worst": len(known) - 1}
            chosen: dict[int, str] = {}
            for name, place in places.items():
                chosen[place] = f"{chosen[place]}, {name}" if place in chosen else name
            labels = {
                place: f"{name}: {known[place].pair.name}, {title} {known[place].generated.values[key]:.3f}"
                for place, name in chosen.items()
            }
            return title, [(labels[place], known[place]) for place in sorted(chosen)]
    return None, []


def render_comparison(chosen: Sequence[tuple[str, PairMeasures]], settings: Settings) -> np.ndarray:
    """Renders frames of clips, generated above real: (H W 3) uint8 RGB."""
    rows = []
    for label, measured in chosen:
        real = read_clip(measured.pair.real, "real videos", settings.max_seconds)
        generated = read_clip(measured.pair.generated, "generated videos", settings.max_seconds, real.fps)
        num_frames = min(len(real.frames), len(generated.frames))
        at = np.linspace(0, num_frames - 1, NUM_FRAMES).round().astype(int)
        height = round(CELL_PX * real.frames.shape[1] / real.frames.shape[2])
        strips = [fit_size(clip.frames[at], height, CELL_PX) for clip in (generated, real)]
        title = np.full((TITLE_PX, CELL_PX * NUM_FRAMES, 3), BACKGROUND, np.uint8)
        text = label.encode("ascii", "replace").decode()  # OpenCV's letters
        cv2.putText(title, text, (GAP_PX, 18), cv2.FONT_HERSHEY_SIMPLEX, 0.5, TEXT_COLOUR, 1, cv2.LINE_AA)
        rows += [title, *(np.concatenate(list(strip), axis=1) for strip in strips)]
    return np.concatenate(rows)


def render_mouths(path: Path, chosen: Sequence[tuple[str, PairMeasures]]) -> bool:
    """Plots the aperture over the waveform, clip by clip; returns False if no clip has an aperture."""
    known = [(label, m) for label, m in chosen if m.generated.mouth is not None and m.true_mouth is not None]
    if not known:
        return False
    figure, axes = _figure(len(known), 1, (9, 2.3 * len(known)))
    for axis, (label, measured) in zip(axes, known):
        seconds = (np.arange(len(measured.true_mouth)) + 0.5) / measured.fps
        wave = _envelope(measured, len(seconds))
        if wave is not None:
            times = np.linspace(0, seconds[-1], len(wave))
            axis.fill_between(times, -wave, wave, color=WAVE_COLOUR, linewidth=0, label="waveform")
        tracks = ((measured.true_mouth, TRUE_COLOUR, "true"), (measured.generated.mouth, GENERATED_COLOUR, "generated"))
        for mouth, colour, name in tracks:
            axis.plot(seconds, mouth[:, 0], color=colour, label=name, linewidth=1.4)
        axis.set_title(label.encode(errors="replace").decode(), fontsize=9, loc="left")
        axis.set_ylabel("aperture")
        axis.set_xlim(0, seconds[-1])
    axes[0].legend(loc="upper right", fontsize=8, ncols=3)
    axes[-1].set_xlabel("seconds")
    _save(figure, path)
    return True


def _envelope(measured: PairMeasures, num_frames: int) -> np.ndarray | None:
    """(n) 0..1: the loudness of the real video's sound while the frames last."""
    try:
        samples = load_audio(measured.pair.sound, "sound").resampled_mono(RATE_HZ).numpy()
    except InputError:  # it is listed among the problems
        return None
    samples = np.abs(samples[: round(num_frames / measured.fps * RATE_HZ)])
    parts = np.array([part.max(initial=0) for part in np.array_split(samples, 600)])
    return parts / max(parts.max(), 1e-6)


def render_sync(path: Path, rows: Sequence[Row], group_rows: Sequence[Row]) -> bool:
    """Plots Sync-C of rows with intervals, and how far groups are below the real videos; False without sync."""
    by_name = {row.title: row for row in rows if "sync_c" in row.estimates}
    if not by_name:
        return False
    pairs = [("all", [row for row in rows if row.key in ("generated", "ground_truth")])]
    for generated, real in zip(group_rows[::2], group_rows[1::2]):
        pairs.append((f"{generated.group[0]} {generated.group[1]}", [generated, real]))
    pairs = [(name, both) for name, both in pairs if all("sync_c" in row.estimates for row in both)]
    figure, axes = _figure(1, 2, (11, 1.8 + 0.35 * max(len(by_name), len(pairs))))
    estimates = [row.estimates["sync_c"] for row in by_name.values()]
    axes[0].barh(list(by_name), [e.value for e in estimates], color="tab:gray")
    for place, estimate in enumerate(estimates):
        if estimate.low is not None:
            axes[0].plot([estimate.low, estimate.high], [place, place], color="black")
    axes[0].invert_yaxis()
    axes[0].set_xlabel("Sync-C")
    losses = [both[1].estimates["sync_c"].value - both[0].estimates["sync_c"].value for _, both in pairs]
    axes[1].barh([name for name, _ in pairs], losses, color=GENERATED_COLOUR)
    axes[1].invert_yaxis()
    axes[1].set_xlabel("Sync-C lost: real minus generated")
    _save(figure, path)
    return True


def _figure(num_rows: int, num_columns: int, size: tuple[float, float]):
    """A figure that needs no display, and its axes in a flat array."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, np.atleast_1d(figure.subplots(num_rows, num_columns)).ravel()


def _save(figure, path: Path) -> None:
    with replacing(path) as temporary:
        figure.savefig(temporary)


def save_pictures(
    folder: Path, measures: Sequence[PairMeasures], rows: Sequence[Row], group_rows: Sequence[Row], settings: Settings
) -> tuple[str | None, list[str]]:
    """Renders all pictures for which something was measured; returns what clips are ranked by, and the files' names."""
    ranking, chosen = choose_clips(measures)
    names = []
    if chosen:
        with replacing(folder / "clips.png") as temporary:
            Image.fromarray(render_comparison(chosen, settings)).save(temporary)
        names.append("clips.png")
    if render_mouths(folder / "mouth.png", chosen):
        names.append("mouth.png")
    if render_sync(folder / "sync.png", rows, group_rows):
        names.append("sync.png")
    return ranking, names
