import numpy as np
import pytest
import scipy.linalg
import torch

from vexpress.errors import InputError
from vexpress.evaluation.bootstrap import estimate_distance, estimate_mean
from vexpress.evaluation.frechet import compute_frechet_distance


def draw(seed: int, num: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(num, width)) @ rng.normal(size=(width, width)) + rng.normal(size=width)


def with_moments(samples: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Moves samples so that their mean and unbiased covariance are exactly these."""
    centred = samples - samples.mean(0)
    whitened = np.linalg.solve(np.linalg.cholesky(np.cov(centred.T)), centred.T)
    return (np.linalg.cholesky(covariance) @ whitened).T + mean


def test_closed_form_of_gaussians():
    rng = np.random.default_rng(0)
    means = rng.normal(size=(2, 5))
    covariances = [a @ a.T + np.eye(5) for a in rng.normal(size=(2, 5, 5))]
    one, other = (with_moments(rng.normal(size=(40, 5)), m, c) for m, c in zip(means, covariances))
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
    expected = np.square(means[0] - means[1]).sum() + np.trace(covariances[0] + covariances[1] - 2 * root)
    assert compute_frechet_distance(one, other) == pytest.approx(expected, rel=1e-9)


def test_one_dimension_is_known():
    one, other = (with_moments(draw(i, 9, 2), np.zeros(2), np.diag(v)) for i, v in enumerate([(1, 1), (4, 9)]))
    assert compute_frechet_distance(one, other) == pytest.approx((1 - 2) ** 2 + (1 - 3) ** 2)


@pytest.mark.parametrize(("num", "width"), [(50, 8), (6, 40)])
def test_zero_of_itself_symmetric_and_a_shift_counts_squared(num, width):
    one, other = draw(0, num, width), draw(1, num + 3, width)
    assert compute_frechet_distance(one, one) == pytest.approx(0, abs=1e-9)
    assert compute_frechet_distance(one, other) == pytest.approx(compute_frechet_distance(other, one))
    assert compute_frechet_distance(one, one + 2) == pytest.approx(4 * width)


@pytest.mark.parametrize(("num", "width"), [(80, 12), (7, 30)])
def test_agrees_with_torchmetrics(num, width):
    fid = pytest.importorskip("torchmetrics.image.fid")

    class Features(torch.nn.Module):
        num_features = width

        def forward(self, features):
            return features

    one, other = draw(2, num, width), draw(3, num, width)
    metric = fid.FrechetInceptionDistance(feature=Features()).set_dtype(torch.float64)
    metric.update(torch.from_numpy(one), real=True)
    metric.update(torch.from_numpy(other), real=False)
    assert compute_frechet_distance(one, other) == pytest.approx(float(metric.compute()), rel=1e-5)


def test_what_is_undefined_is_an_error():
    with pytest.raises(InputError, match="1 and 5 samples is undefined"):
        compute_frechet_distance(draw(0, 1, 3), draw(1, 5, 3))
    with pytest.raises(InputError, match="finite"):
        compute_frechet_distance(draw(0, 5, 3), np.full((5, 3), np.nan))


def test_intervals_of_a_mean_cover_as_often_as_they_say():
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        estimate = estimate_mean(rng.normal(3, 1, 30), seed=trial, num_resamples=300)
        covered += estimate.low <= 3 <= estimate.high
    assert 0.88 < covered / 200 < 0.985


def test_means_leave_out_what_is_unknown():
    estimate = estimate_mean([1.0, float("nan"), 3.0], seed=0)
    assert (estimate.value, estimate.num_clips) == (2.0, 2)
    assert 1 <= estimate.low <= 2 <= estimate.high <= 3
    assert estimate_mean([float("nan")], seed=0) is None
    assert estimate_mean([5.0], seed=0).low is None
    assert estimate_mean([float("inf"), 1.0], seed=0).value == float("inf")
    assert estimate_mean([1.0, 2, 90], seed=0, statistic=np.median).value == 2


def test_interval_of_a_distance_holds_the_distance_and_shrinks_with_clips():
    def width(num_clips: int) -> float:
        clips = [np.random.default_rng(i).normal(size=(10, 4)) for i in range(num_clips)]
        reference = np.random.default_rng(99).normal(0.5, 1, (200, 4))

        def distance(chosen: np.ndarray) -> float:
            return compute_frechet_distance(np.concatenate([clips[i] for i in chosen]), reference)

        estimate = estimate_distance(distance, num_clips, seed=0)
        assert estimate.low <= estimate.value <= estimate.high
        return estimate.high - estimate.low

    assert width(40) < 0.7 * width(5)
