"""How near generated frames come to the real ones, pixel by pixel: PSNR, and SSIM by scikit-image."""

import cv2
import numpy as np
from skimage.metrics import structural_similarity

from vexpress.errors import InputError

SSIM_WINDOW_PX = 11  # of the Gaussian window with a standard deviation of 1.5, as in the paper of SSIM


def measure_psnr(generated: np.ndarray, real: np.ndarray) -> float:
    """Computes the mean PSNR in dB over frames (f H W 3) uint8; infinite if the videos are identical.

    The squared error of a frame counts at least 0.01, so that single identical frames do not decide the mean.
    """
    if np.array_equal(generated, real):
        return float("inf")
    errors = [np.square(a.astype(np.float32) - b).mean() for a, b in zip(generated, real)]
    return float(np.mean(10 * np.log10(255**2 / np.maximum(errors, 0.01))))


def measure_ssim(generated: np.ndarray, real: np.ndarray) -> float:
    """Computes the mean SSIM over frames (f H W 3) uint8, -1..1.

    Raises:
        InputError: frames are smaller than its window.
    """
    if min(real.shape[1:3]) < SSIM_WINDOW_PX:
        raise InputError(
            f"frames of {real.shape[2]}x{real.shape[1]} px are smaller than its window of {SSIM_WINDOW_PX}"
        )
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    scores = [structural_similarity(a, b, data_range=255, channel_axis=-1, **options) for a, b in zip(generated, real)]
    return float(np.mean(scores))


def fit_size(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes frames (f H W 3) uint8; the same array if they fit."""
    if frames.shape[1:3] == (height, width):
        return frames
    interpolation = cv2.INTER_AREA if frames.shape[1] > height else cv2.INTER_CUBIC
    return np.stack([cv2.resize(frame, (width, height), interpolation=interpolation) for frame in frames])
