"""The rows of a report: the generated videos, and those that tell what its figures mean."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from vexpress.errors import InputError
from vexpress.evaluation.bootstrap import Estimate, estimate_distance, estimate_mean
from vexpress.evaluation.clips import Problem
from vexpress.evaluation.frechet import compute_frechet_distance, concatenate
from vexpress.evaluation.measure import PairMeasures, correlate
from vexpress.evaluation.settings import Settings
from vexpress.syncnet import score_sync


@dataclass(frozen=True)
class Metric:
    """A column: its key, title, decimals, and which way is better ("higher", "lower", "zero" or "")."""

    key: str
    title: str
    decimals: int
    better: str


METRICS = (
    Metric("fid", "FID", 2, "lower"),
    Metric("fvd", "FVD", 1, "lower"),
    Metric("face_similarity", "FaceSim", 2, "higher"),
    Metric("d_face_similarity", "dFaceSim", 2, "zero"),
    Metric("kps_distance", "KpsDis", 2, "lower"),
    Metric("sync_c", "Sync-C", 3, "higher"),
    Metric("sync_d", "Sync-D", 3, "lower"),
    Metric("offset", "offset", 0, ""),
    Metric("in_sync", "in sync %", 0, "higher"),
    Metric("psnr", "PSNR", 2, "higher"),
    Metric("ssim", "SSIM", 3, "higher"),
    Metric("aperture_r", "aperture r", 3, "higher"),
    Metric("width_r", "width r", 3, "higher"),
)
DISTANCES = {"fid": "frame_features", "fvd": "clip_features"}
MEDIANS = ("offset",)

TITLES = {
    "generated": "generated",
    "ground_truth": "ground truth (ceiling)",
    "shuffled": "shuffled audio (floor of sync, mouth)",
    "halves": "real halves (floor of FID, FVD)",
}


@dataclass
class Row:
    """Figures of one row.

    Attributes:
        key: of TITLES.
        num_clips: that could be read.
        estimates: metric -> figure; a metric that could not be measured is not in it.
        group: column and value of the clips, None for all.
    """

    key: str
    num_clips: int
    estimates: dict[str, Estimate] = field(default_factory=dict)
    group: tuple[str, str] | None = None

    @property
    def title(self) -> str:
        title = TITLES[self.key]
        return f"{title}, {self.group[0]} {self.group[1]}" if self.group else title


def build_rows(measures: Sequence[PairMeasures], settings: Settings) -> tuple[list[Row], list[Problem]]:
    """Computes the four rows over all clips, and what could not be computed."""
    problems: list[Problem] = []
    rows = [
        build_row("generated", measures, settings, problems),
        build_row("ground_truth", measures, settings, problems),
        _shuffled_row(measures, settings, problems),
        _halves_row(measures, settings, problems),
    ]
    return rows, problems


def build_group_rows(
    measures: Sequence[PairMeasures], columns: Sequence[str], settings: Settings
) -> tuple[list[Row], list[Problem]]:
    """Computes, for each value of each column, the rows of the generated videos and of the ground truth."""
    rows, problems = [], []
    for column in columns:
        for value in sorted({measured.pair.facts.get(column, "unknown") for measured in measures}):
            chosen = [measured for measured in measures if measured.pair.facts.get(column, "unknown") == value]
            for key in ("generated", "ground_truth"):
                row = build_row(key, chosen, settings, problems)
                row.group = (column, value)
                rows.append(row)
    return rows, problems


def build_row(key: str, measures: Sequence[PairMeasures], settings: Settings, problems: list[Problem]) -> Row:
    """Computes the row "generated" or "ground_truth" of some clips; adds to `problems` what is undefined."""
    row = Row(key, len(measures))
    sides = [measured.generated if key == "generated" else measured.real for measured in measures]
    _add_means(row, [side.values for side in sides], settings)
    for metric, attribute in DISTANCES.items():
        both = [(getattr(s, attribute), getattr(m.real, attribute)) for s, m in zip(sides, measures)]
        both = [(ours, real) for ours, real in both if ours is not None and real is not None]
        if not both:
            continue
        ours, real = zip(*both)
        if key == "ground_truth":
            row.estimates[metric] = Estimate(0.0, 0.0, 0.0, len(both))
            continue
        distance = _distance_between(ours, real)
        try:
            if len(both) < 2:
                raise InputError("one clip is no distribution; give two or more")
            num_resamples = settings.num_distance_resamples
            row.estimates[metric] = estimate_distance(distance, len(both), settings.seed, num_resamples)
        except InputError as error:
            problems.append(Problem(row.title, metric.upper(), str(error)))
    return row


def _distance_between(ours: Sequence[np.ndarray], real: Sequence[np.ndarray]) -> Callable[[np.ndarray], float]:
    return lambda chosen: compute_frechet_distance(concatenate(ours, chosen), concatenate(real, chosen))


def _add_means(row: Row, values: Sequence[dict[str, float]], settings: Settings) -> None:
    for metric in METRICS:
        if metric.key in DISTANCES:
            continue
        statistic = np.median if metric.key in MEDIANS else np.mean
        known = [value.get(metric.key, float("nan")) for value in values]
        estimate = estimate_mean(known, settings.seed, settings.num_resamples, statistic)
        if estimate is not None:
            row.estimates[metric.key] = estimate


def _shuffled_row(measures: Sequence[PairMeasures], settings: Settings, problems: list[Problem]) -> Row:
    """The generated videos with the sound, and the truth about the mouth, of another clip."""
    row = Row("shuffled", len(measures))
    values: list[dict[str, float]] = [{} for _ in measures]
    with_sync = [i for i, m in enumerate(measures) if m.generated.sync is not None]
    with_mouth = [i for i, m in enumerate(measures) if m.generated.mouth is not None and m.true_mouth is not None]
    for kind, clips in (("sync", with_sync), ("mouth", with_mouth)):
        if len(clips) == 1:
            problems.append(Problem(row.title, kind, "one clip has no other to take the sound of; give two or more"))
            continue
        for clip, other in zip(clips, derange(clips, settings.seed)):
            ours, theirs = measures[clip], measures[other]
            values[clip] |= (_shuffled_sync if kind == "sync" else _shuffled_mouth)(ours, theirs)
    _add_means(row, values, settings)
    return row


def derange(items: Sequence[int], seed: int) -> list[int]:
    """Returns a random order in which no item keeps its place; of one item, that item."""
    order = np.random.default_rng(seed).permutation(len(items))
    result = [0] * len(items)
    for place, follower in zip(order, np.roll(order, 1)):  # one cycle through all
        result[place] = items[follower]
    return result


def _shuffled_sync(ours: PairMeasures, theirs: PairMeasures) -> dict[str, float]:
    visual, audio = ours.generated.sync.visual, theirs.generated.sync.audio
    num_windows = min(len(visual), len(audio))
    return score_sync(visual[:num_windows], audio[:num_windows]).as_values()


def _shuffled_mouth(ours: PairMeasures, theirs: PairMeasures) -> dict[str, float]:
    values = {}
    num_frames = min(len(ours.generated.mouth), len(theirs.true_mouth))
    for index, what in enumerate(("aperture", "width")):
        try:
            tracks = ours.generated.mouth[:num_frames, index], theirs.true_mouth[:num_frames, index]
            values[f"{what}_r"] = correlate(*tracks)
        except InputError:
            continue  # it is listed among the problems of the clip that does not move
    return values


def _halves_row(measures: Sequence[PairMeasures], settings: Settings, problems: list[Problem]) -> Row:
    """Distances between random halves of the real clips, the mean over splits; the interval is that of the splits."""
    row = Row("halves", len(measures))
    for metric, attribute in DISTANCES.items():
        real = [features for m in measures if (features := getattr(m.real, attribute)) is not None]
        if not real:
            continue
        try:
            if len(real) < 2:
                raise InputError("one clip has no halves; give two or more")
            rng = np.random.default_rng(settings.seed)
            found = []
            for _ in range(settings.num_distance_resamples):
                order = rng.permutation(len(real))
                halves = order[: len(real) // 2], order[len(real) // 2 :]
                found.append(compute_frechet_distance(*(concatenate(real, half) for half in halves)))
            low, high = np.quantile(found, [0.025, 0.975])
            row.estimates[metric] = Estimate(float(np.mean(found)), float(low), float(high), len(real))
        except InputError as error:
            problems.append(Problem(row.title, metric.upper(), str(error)))
    return row
