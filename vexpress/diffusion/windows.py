"""Windows: overlapping parts of a clip that are predicted one by one, and the average of their predictions."""

import torch
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


class WindowAverage:
    """Averages the predictions of overlapping windows per frame, and holds only frames that more windows may have.

    Windows come in order. Predictions of a frame are added in that order and divided by their number.
    """

    def __init__(self):
        self.first_frame = 0  # of those held
        self._total: Tensor | None = None  # 1 c f h w
        self._count: Tensor | None = None  # f 1 1

    def add(self, prediction: Tensor, window: list[int]) -> None:
        """Adds a window's prediction (c f h w); no frame of it was taken yet."""
        if self._total is None:
            self._total = prediction.new_zeros(1, prediction.shape[0], 0, *prediction.shape[2:])
            self._count = prediction.new_zeros(0, 1, 1)
        start, stop = window[0] - self.first_frame, window[-1] + 1 - self.first_frame
        num_new = max(0, stop - len(self._count))
        new = self._total.new_zeros(*self._total.shape[:2], num_new, *self._total.shape[3:])
        self._total = torch.cat([self._total, new], dim=2)
        self._count = torch.cat([self._count, self._count.new_zeros(num_new, 1, 1)])
        self._total[:, :, start:stop] += prediction
        self._count[start:stop] += 1

    def take(self, stop: int) -> Tensor:
        """Gives the average (1 c f h w) of all frames held before frame `stop`, and forgets them."""
        num = stop - self.first_frame
        average = self._total[:, :, :num] / self._count[:num]
        self._total, self._count = self._total[:, :, num:], self._count[num:]
        self.first_frame = stop
        return average
