"""Stills what hardly changes from frame to frame, so that a picture does not flicker, and leaves what moves."""

import collections
from collections.abc import Iterable, Iterator

import torch

RADIUS = 2  # frames before and after


def stream_denoise(frames: Iterable[torch.Tensor], threshold: float) -> Iterator[torch.Tensor]:
    """Averages each pixel over those of five frames around it where no channel differs by more than `threshold`.

    Lazily, and two frames behind. The frame itself always counts, so that a pixel that moves stays as it is. At the
    clip's ends fewer frames are averaged.

    Args:
        frames: (c h w) float.
        threshold: in the frames' units.

    Source: adaptive temporal averaging, as FFmpeg's atadenoise does it.
    """
    window: collections.deque[torch.Tensor] = collections.deque(maxlen=2 * RADIUS + 1)
    num_frames = 0

    def denoised(index: int) -> torch.Tensor:
        frame = window[index - num_frames]
        total, count = torch.zeros_like(frame), torch.zeros_like(frame[:1])
        for other in list(window)[max(0, index - RADIUS) - num_frames :]:
            alike = (other - frame).abs().amax(dim=0, keepdim=True) <= threshold
            total += alike * other
            count += alike
        return total / count

    for frame in frames:
        window.append(frame)
        num_frames += 1
        if num_frames > RADIUS:
            yield denoised(num_frames - 1 - RADIUS)
    for index in range(max(0, num_frames - RADIUS), num_frames):
        yield denoised(index)
