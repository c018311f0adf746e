"""Frechet distance between two sets of features, each taken as a Gaussian: the distance of FID and FVD."""

from collections.abc import Sequence

import numpy as np

from vexpress.errors import InputError

MIN_SAMPLES = 2


def compute_frechet_distance(one: np.ndarray, other: np.ndarray) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) with unbiased covariances.

    With centred samples X (n d) and Y (m d), C1 = X'X / (n - 1), and the trace of the square root is the sum of the
    singular values of X Y' / sqrt((n - 1) (m - 1)). That is exact, never takes the root of a negative number, and is
    cheap where there are fewer samples than dimensions; with more, X and Y are first brought to d rows by QR.

    Args:
        one: (n d) features, likewise other: (m d).

    Raises:
        InputError: fewer than two samples, which have no covariance, or features that are not finite.
    """
    one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
    if min(len(one), len(other)) < MIN_SAMPLES:
        raise InputError(
            f"a Frechet distance of {len(one)} and {len(other)} samples is undefined; needed are {MIN_SAMPLES} of each"
        )
    if not (np.isfinite(one).all() and np.isfinite(other).all()):
        raise InputError("a Frechet distance needs finite features; the feature network gave NaN or infinity")
    (mean, root), (other_mean, other_root) = _mean_and_root(one), _mean_and_root(other)
    cross = np.linalg.svd(root @ other_root.T, compute_uv=False).sum()
    distance = np.square(mean - other_mean).sum() + np.square(root).sum() + np.square(other_root).sum() - 2 * cross
    return float(max(distance, 0))  # rounding may leave -1e-12


def _mean_and_root(samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(n d) -> mean (d) and R (min(n, d) d) with R'R the unbiased covariance."""
    mean = samples.mean(0)
    centred = (samples - mean) / np.sqrt(len(samples) - 1)
    return mean, np.linalg.qr(centred, mode="r") if len(centred) > centred.shape[1] else centred


def concatenate(features: Sequence[np.ndarray], chosen: Sequence[int] | np.ndarray) -> np.ndarray:
    """Stacks the features (n_i d) of the chosen clips, repeated where a clip is chosen twice."""
    return np.concatenate([features[i] for i in chosen])
