"""Windows: overlapping parts of a clip that are predicted one by one, and the average of their predictions."""

from collections.abc import Sequence

import torch.distributed as dist
from torch import Tensor


def context_windows(num_frames: int, context_frames: int, context_overlap: int) -> list[list[int]]:
    """Covers a clip with overlapping windows.

    Args:
        num_frames: frames of the clip, 1 and up.
        context_frames: frames of a window; a shorter clip is one window.
        context_overlap: frames that neighbours share, 0 to `context_frames` - 1.

    Returns:
        The frames of each window, in order. The last window ends with the clip and may overlap its neighbour more.

    Raises:
        ValueError: a number is out of range.

    Differs from the release: any number of frames. The release drops a tail that fills no window, and fails on clips
    shorter than one. Where its counts fit, the windows are the same.
    """
    if num_frames < 1 or context_frames < 1:
        raise ValueError(f"{num_frames} frames in windows of {context_frames}: both must be at least 1")
    if not 0 <= context_overlap < context_frames:
        raise ValueError(f"context_overlap {context_overlap}: must be 0 to {context_frames - 1}, below context_frames")
    if num_frames <= context_frames:
        return [list(range(num_frames))]
    stride = context_frames - context_overlap
    starts = [*range(0, num_frames - context_frames, stride), num_frames - context_frames]
    return [list(range(start, start + context_frames)) for start in starts]


def average_windows(predictions: Tensor, windows: Sequence[Sequence[int]], num_frames: int) -> Tensor:
    """Averages window predictions (k c f h w) per frame to (1 c num_frames h w)."""
    total = predictions.new_zeros(1, predictions.shape[1], num_frames, *predictions.shape[3:])
    count = predictions.new_zeros(num_frames, 1, 1)
    for prediction, window in zip(predictions, windows):
        total[:, :, window] += prediction
        count[window] += 1
    return total / count


def own_windows(windows: Sequence) -> range:
    """Indices of the windows that this process predicts: all of them, outside of a `torch.distributed` group."""
    rank, num_processes = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    return range(rank, len(windows), num_processes)
