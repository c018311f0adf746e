"""Which clip a sample is of, and which of its frames: functions of the seed and the sample's number alone."""

import functools
from collections.abc import Hashable, Sequence

import numpy as np

ORDER_STREAM, VALUE_STREAM, WITHIN_STREAM = 0, 2, 3  # of random numbers; the dataset has another for samples


class ShuffledOrder:
    """Each clip once in an epoch, shuffled anew each time."""

    def __init__(self, seed: int, num_clips: int):
        self._seed, self._num_clips = seed, num_clips

    def __getitem__(self, number: int) -> int:
        epoch, position = divmod(number, self._num_clips)
        return int(epoch_order(self._seed, epoch, self._num_clips)[position])


class BalancedOrder:
    """Each value of a column once in a round, shuffled anew each time; and of a value, its clips in turn.

    So all values are equally frequent, those of few clips too, and so are the clips of one value.

    Args:
        seed: 0 or more.
        values: of each clip; the order of different values is that in which they first come.
    """

    def __init__(self, seed: int, values: Sequence[Hashable]):
        self._seed = seed
        clips: dict[Hashable, list[int]] = {}
        for clip, value in enumerate(values):
            clips.setdefault(value, []).append(clip)
        self._clips = [np.array(found) for found in clips.values()]
        self._held: dict[int, tuple[int, np.ndarray]] = {}  # value -> epoch and its order: samples come in order

    def __getitem__(self, number: int) -> int:
        turn, place = divmod(number, len(self._clips))
        value = int(_permutation(len(self._clips), self._seed, VALUE_STREAM, turn)[place])
        clips = self._clips[value]
        epoch, position = divmod(turn, len(clips))
        held_epoch, order = self._held.get(value, (None, None))
        if held_epoch != epoch:
            order = np.random.default_rng((self._seed, WITHIN_STREAM, value, epoch)).permutation(len(clips))
            self._held[value] = epoch, order
        return int(clips[order[position]])


def num_frames_spanned(num_frames: int, sample_rate: int) -> int:
    """Counts the frames of the video from the first to the last of a sample."""
    return (num_frames - 1) * sample_rate + 1


def random_frame_ids(
    rng: np.random.Generator, num_clip_frames: int, num_frames: int, sample_rate: int, reference_margin: int
) -> tuple[np.ndarray, int]:
    """Chooses the frames of a sample and its reference frame, uniformly from all that are allowed.

    Args:
        rng: two numbers are taken from it.
        num_clip_frames: to choose from; at least `num_frames_spanned` and `reference_margin` together.
        num_frames: of the sample.
        sample_rate: distance between them.
        reference_margin: least distance of the reference from the first or last of them, outside of which it lies.

    Returns:
        (num_frames,) int64, and the reference frame's number.
    """
    span = num_frames_spanned(num_frames, sample_rate)
    starts = np.arange(num_clip_frames - span + 1)
    has_reference = (starts >= reference_margin) | (starts + span - 1 + reference_margin < num_clip_frames)
    first = rng.choice(starts[has_reference])
    frames = np.arange(num_clip_frames)
    distance = np.maximum(first - frames, frames - (first + span - 1)).clip(0)
    reference = rng.choice(frames[distance >= reference_margin])
    return first + sample_rate * np.arange(num_frames), int(reference)


def epoch_order(seed: int, epoch: int, num_clips: int) -> np.ndarray:
    """The clips (num_clips,) in the order of an epoch."""
    return _permutation(num_clips, seed, ORDER_STREAM, epoch)


@functools.lru_cache(maxsize=2)
def _permutation(length: int, *seed: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(length)
