"""Stills what hardly changes from frame to frame, so that a picture does not flicker, and leaves what moves."""

from collections.abc import Iterable, Iterator

import torch

from vexpress.media.video import stream_neighbours

RADIUS = 2  # frames before and after


def stream_denoise(frames: Iterable[torch.Tensor], threshold: float) -> Iterator[torch.Tensor]:
    """Averages each pixel over the five frames around it, each the less the more its colour differs there.

    Lazily, and two frames behind. A frame's weight falls from 1 where it is the same to 0 where a channel differs by
    `threshold`, so that a pixel that moves stays as it is. At the clip's ends fewer frames are averaged.

    Args:
        frames: (c h w) float.
        threshold: more than 0, in the frames' units.

    Source: a bilateral filter (Tomasi and Manduchi 1998) over time alone.
    """
    for around, middle in stream_neighbours(frames, RADIUS):
        frame = around[middle]
        total, weights = torch.zeros_like(frame), torch.zeros_like(frame[:1])
        for other in around:
            weight = (1 - (other - frame).abs().amax(dim=0, keepdim=True) / threshold).clamp(min=0)
            total += weight * other
            weights += weight
        yield total / weights
