"""Confidence intervals of figures over clips, by resampling clips."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A figure, and where it lies with 95 % confidence.

    Attributes:
        value: the figure.
        low: end of the interval, likewise high; None where it is undefined, as with a single clip.
        num_clips: that it was measured on.
    """

    value: float
    low: float | None
    high: float | None
    num_clips: int


def estimate_mean(
    values: Sequence[float], seed: int, num_resamples: int = 1000, statistic: Callable = np.mean
) -> Estimate | None:
    """Computes a statistic over clips, with the percentile interval; NaN does not count. None if nothing is left."""
    known = np.asarray(values, np.float64)
    known = known[~np.isnan(known)]
    if not len(known):
        return None
    if len(known) == 1 or not np.isfinite(known).all():
        return Estimate(float(statistic(known)), None, None, len(known))
    resampled = statistic(known[_random_choices(len(known), seed, num_resamples)], axis=1)
    return Estimate(float(statistic(known)), *_interval(resampled), len(known))


def estimate_distance(
    distance: Callable[[np.ndarray], float], num_clips: int, seed: int, num_resamples: int = 100
) -> Estimate:
    """Computes a distance between sets of clips, with its interval.

    A resample holds clips twice and so spans less than the set: its distance is higher in the mean. The interval is
    the spread of the resamples, shifted so that their mean lies on the value.

    Args:
        distance: indices of clips (n) -> figure.
        num_clips: that there are.
        seed: of the resamples.
        num_resamples: number of resamples.

    Raises:
        InputError: what `distance` raises on all clips.
    """
    value = distance(np.arange(num_clips))
    if num_clips == 1:
        return Estimate(value, None, None, 1)
    resampled = np.array([distance(chosen) for chosen in _random_choices(num_clips, seed, num_resamples)])
    low, high = _interval(resampled - resampled.mean() + value)
    return Estimate(value, max(low, 0.0), high, num_clips)


def _random_choices(num_clips: int, seed: int, num_resamples: int) -> np.ndarray:
    """(num_resamples num_clips) random indices, with replacement."""
    return np.random.default_rng(seed).integers(num_clips, size=(num_resamples, num_clips))


def _interval(values: np.ndarray) -> tuple[float, float]:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)
