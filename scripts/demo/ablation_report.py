"""The report of the ablation: figures of variants with intervals, their differences, and what these say in words."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from scripts.demo.ablation_variants import (
    FULL,
    PLAIN,
    SHORTCUT,
    VARIANT_TITLES,
    VARIANTS,
    AblationSettings,
    build_configs,
    frames_seen,
)
from vexpress.evaluation.bootstrap import CONFIDENCE, Estimate
from vexpress.files import replacing

NUM_RESAMPLES = 4000
FIGURES = {
    "aperture_r": "aperture r",
    "swapped": "swapped speech",
    "width_r": "width r",
    "movement": "movement",
    "colour_error": "colour error",
}
"""Figures -> their titles in tables."""
READ = ("aperture_r", "swapped")
"""Those that say whether speech drives the mouth; the reading and the picture are about them, and more is better."""
NOTHING_SHOWN = "no difference shown"
FIGURE_DPI = 110
FIRST_MARK, LAST_MARK = "<!-- results: written by scripts/demo/ablation.py -->", "<!-- end of results -->"
"""The lines of a document between which the results stand."""


@dataclass(frozen=True)
class Result:
    """What one trained model does on the test clips.

    Attributes:
        data_kind: of the training data, `PLAIN` or `SHORTCUT`.
        variant: key of the variant.
        seed: of the training.
        figures: key of `FIGURES` -> one number per clip, the same clips in every result.
    """

    data_kind: str
    variant: str
    seed: int
    figures: Mapping[str, Sequence[float]]


def gather(results: Sequence[Result], data_kind: str, variant: str, figure: str) -> dict[int, np.ndarray]:
    """Seed -> the figure per clip (c), of one variant on one kind of data."""
    chosen = [result for result in results if (result.data_kind, result.variant) == (data_kind, variant)]
    return {result.seed: np.asarray(result.figures[figure], np.float64) for result in chosen}


def estimate_crossed(values: np.ndarray) -> Estimate:
    """Computes the mean over seeds and clips (s c), and its interval, for which both are resampled.

    Clips of one model err together, and so do models on one clip; resampling single values would make the interval too
    narrow. No interval for a single value.

    Source: the pigeonhole bootstrap, Owen 2007, arXiv 0712.1111.
    """
    num_seeds, num_clips = values.shape
    if values.size == 1:
        return Estimate(float(values.mean()), None, None, 1)
    rng = np.random.default_rng(0)
    seeds = rng.integers(num_seeds, size=(NUM_RESAMPLES, num_seeds, 1))
    clips = rng.integers(num_clips, size=(NUM_RESAMPLES, 1, num_clips))
    means = values[seeds, clips].mean(axis=(1, 2))
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Estimate(float(values.mean()), float(low), float(high), num_clips)


def estimate_difference(first: Mapping[int, np.ndarray], second: Mapping[int, np.ndarray]) -> Estimate | None:
    """Estimates first minus second, clip by clip and seed by seed; None if they have no seed in common."""
    seeds = sorted(first.keys() & second.keys())
    return estimate_crossed(np.stack([first[seed] - second[seed] for seed in seeds])) if seeds else None


def estimate_interaction(results: Sequence[Result], variant: str, figure: str) -> Estimate | None:
    """Estimates how much more a variant differs from the full recipe on leaking data than on plain ones."""
    differences = {}
    for kind in (PLAIN, SHORTCUT):
        own, full = (gather(results, kind, name, figure) for name in (variant, FULL))
        differences[kind] = {seed: own[seed] - full[seed] for seed in own.keys() & full.keys()}
    return estimate_difference(differences[SHORTCUT], differences[PLAIN])


def excludes_zero(estimate: Estimate) -> bool:
    """Whether the interval is all above or all below zero."""
    return estimate.low is not None and (estimate.low > 0 or estimate.high < 0)


def format_estimate(estimate: Estimate, signed: bool = False) -> str:
    """`0.52 (0.40 to 0.61)`."""
    style = "+.2f" if signed else ".2f"
    value = f"{estimate.value:{style}}"
    return value if estimate.low is None else f"{value} ({estimate.low:{style}} to {estimate.high:{style}})"


def format_tables(results: Sequence[Result]) -> list[str]:
    """Lines of Markdown: a table per kind of data, a row per variant that has results."""
    lines = []
    for kind in _kinds(results):
        lines += [f"Trained on {kind} data:", "", f"| variant | seeds | {' | '.join(FIGURES.values())} |"]
        lines += ["|---" * (len(FIGURES) + 2) + "|"]
        for variant, title in VARIANT_TITLES.items():
            values = {key: gather(results, kind, variant, key) for key in FIGURES}
            if num_seeds := len(values["aperture_r"]):
                cells = [format_estimate(estimate_crossed(np.stack(list(found.values())))) for found in values.values()]
                lines.append(f"| {title} | {num_seeds} | {' | '.join(cells)} |")
        lines.append("")
    return lines


def read_results(results: Sequence[Result]) -> list[str]:
    """Says in words what the intervals allow to say: lines of Markdown."""
    if not any(result.variant == FULL for result in results):
        return ["The full recipe is not among the results, so there is nothing to compare with."]
    lines: list[str] = []
    compared: list[Estimate] = []

    def in_words(estimate: Estimate) -> str:
        compared.append(estimate)
        words = NOTHING_SHOWN
        if excludes_zero(estimate):
            words = "**higher**" if estimate.value > 0 else "**lower**"
        return f"{format_estimate(estimate, signed=True)}, {words}"

    for figure in READ:
        lines += [f"{FIGURES[figure]}, difference to the {VARIANT_TITLES[FULL]}:", ""]
        for variant in VARIANTS:
            parts = []
            for kind in _kinds(results):
                own, full = (gather(results, kind, name, figure) for name in (variant, FULL))
                if variant != FULL and (difference := estimate_difference(own, full)):
                    parts.append(f"{kind} data {in_words(difference)}")
            if variant != FULL and (more := estimate_interaction(results, variant, figure)):
                parts.append(f"{SHORTCUT} minus {PLAIN} {in_words(more)}")
            lines += [f"- {VARIANT_TITLES[variant]}: {'; '.join(parts)}"] if parts else []
        if lines[-1] == "":
            lines += ["- no other variant has been measured"]
        leaked, clean = (gather(results, kind, FULL, figure) for kind in (SHORTCUT, PLAIN))
        if cost := estimate_difference(leaked, clean):
            lines += ["", f"What the leak does to the {VARIANT_TITLES[FULL]} itself: {in_words(cost)}."]
        lines.append("")
    num_differing = sum(map(excludes_zero, compared))
    lines.append(
        f"{num_differing} of {len(compared)} intervals exclude zero; by chance alone, about "
        f"{(1 - CONFIDENCE) * len(compared):.1f} would. Where none does, it is not shown that there is no difference."
    )
    if len({result.seed for result in results}) == 1:
        lines.append("With one seed, the intervals leave out how much one training differs from the next.")
    return lines


def render_figure(path: Path, results: Sequence[Result]) -> None:
    """Plots the figures of `READ` per variant and kind of data: mean, interval, and a small dot per seed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    kinds = _kinds(results)
    shown = [variant for variant in VARIANTS if any(result.variant == variant for result in results)]
    picture = Figure(figsize=(10, 1.6 + 0.45 * len(shown)), dpi=FIGURE_DPI, layout="constrained")
    FigureCanvasAgg(picture)
    for axis, figure in zip(picture.subplots(1, len(READ), sharey=True), READ):
        for number, kind in enumerate(kinds):
            colour, offset = f"C{number}", 0.24 * (number - (len(kinds) - 1) / 2)
            for place, variant in enumerate(shown):
                if not (values := gather(results, kind, variant, figure)):
                    continue
                estimate = estimate_crossed(np.stack(list(values.values())))
                if estimate.low is not None:
                    axis.plot([estimate.low, estimate.high], [place + offset] * 2, color=colour, linewidth=2)
                axis.plot(estimate.value, place + offset, "o", color=colour)
                means = [per_clip.mean() for per_clip in values.values()]
                axis.plot(means, [place + offset] * len(means), ".", color="black", markersize=4)
            axis.plot([], [], "o-", color=colour, label=f"{kind} data")
        axis.axvline(0, color="0.7", linewidth=0.8)
        axis.set_xlabel(f"{FIGURES[figure]}, {CONFIDENCE:.0%} interval; black: each seed")
        axis.set_yticks(range(len(shown)), [VARIANT_TITLES[variant] for variant in shown])
    axis.invert_yaxis()
    axis.legend(fontsize=8)
    with replacing(path) as temporary:
        picture.savefig(temporary)


def format_report(results: Sequence[Result], settings: AblationSettings, figure: str) -> str:
    """The results in Markdown, for a file beside the figure."""
    recipe = build_configs(VARIANTS[FULL], PLAIN, 0, settings)
    seeds = sorted({result.seed for result in results})
    num_clips = len(results[0].figures["aperture_r"])
    lines = [
        f"Every model learned from {frames_seen(recipe):,} frames ({settings.scale:g} of the updates in "
        f"`{settings.config_dir}`), seeds {', '.join(map(str, seeds))}; measured on {num_clips} clips of "
        f"{settings.num_frames} frames from `{settings.test_dir}`; means with 95 % intervals over clips and seeds.",
        "",
        *format_tables(results),
        f"![Results]({figure})",
        "",
        *read_results(results),
    ]
    return "\n".join(lines) + "\n"


def write_report(path: Path, text: str, results: Sequence[Result]) -> None:
    """Writes text, figure and the numbers behind both; an existing file with marks is changed between them only."""
    if path.exists() and FIRST_MARK in (old := path.read_text(encoding="utf-8")):
        before, rest = old.split(FIRST_MARK)
        text = f"{before}{FIRST_MARK}\n\n{text}\n{LAST_MARK}{rest.split(LAST_MARK)[1]}"
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    render_figure(path.with_suffix(".png"), results)
    with replacing(path.with_suffix(".json")) as temporary:
        rows = ",\n".join(json.dumps(asdict(result)) for result in results)  # a model per line
        temporary.write_text(f"[\n{rows}\n]\n", encoding="utf-8")


def _kinds(results: Sequence[Result]) -> list[str]:
    return [kind for kind in (PLAIN, SHORTCUT) if any(result.data_kind == kind for result in results)]
