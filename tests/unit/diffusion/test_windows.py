"""Windows, and the average of their predictions."""

import pytest
import torch

from tests.tiny import CASES
from vexpress.diffusion.windows import WindowAverage, context_windows


@pytest.mark.parametrize("key", CASES["context_windows"])
def test_windows_are_the_released_ones_where_those_fit(key):
    windows = context_windows(*map(int, key.split("_")))
    assert [[window[0], window[-1]] for window in windows] == CASES["context_windows"][key]
    assert all(window == list(range(window[0], window[-1] + 1)) for window in windows)


@pytest.mark.parametrize("num_frames", range(1, 70))
@pytest.mark.parametrize(("context_frames", "context_overlap"), [(24, 4), (8, 0), (5, 4), (1, 0)])
def test_windows_cover_every_frame(num_frames, context_frames, context_overlap):
    windows = context_windows(num_frames, context_frames, context_overlap)
    assert set().union(*windows) == set(range(num_frames))
    assert {len(window) for window in windows} == {min(num_frames, context_frames)}
    assert len({window[0] for window in windows}) == len(windows)
    for window, following in zip(windows, windows[1:]):
        assert window[-1] - following[0] + 1 >= context_overlap


@pytest.mark.parametrize("arguments", [(0, 24, 4), (10, 0, 0), (10, 4, 4), (10, 4, -1)])
def test_impossible_windows_are_errors(arguments):
    with pytest.raises(ValueError, match="must be"):
        context_windows(*arguments)


def test_average_weighs_windows_alike():
    average = WindowAverage()
    average.add(torch.full((1, 3, 1, 1), 1.0), [0, 1, 2])
    average.add(torch.full((1, 3, 1, 1), 4.0), [2, 3, 4])
    assert average.take(5).flatten().tolist() == [1, 1, 2.5, 4, 4]


def test_average_gives_frames_once_and_holds_the_others():
    average = WindowAverage()
    average.add(torch.full((1, 4, 1, 1), 1.0), [0, 1, 2, 3])
    assert average.take(2).flatten().tolist() == [1, 1]
    average.add(torch.full((1, 4, 1, 1), 3.0), [2, 3, 4, 5])
    assert average.take(4).flatten().tolist() == [2, 2]
    average.add(torch.full((1, 4, 1, 1), 5.0), [3 + 1, 5, 6, 7])
    assert average.take(8).flatten().tolist() == [4, 4, 5, 5]
    assert average.first_frame == 8
