"""Cuts are found, and nothing else is taken for one."""

from fractions import Fraction

import numpy as np

from vexpress.prepare.shots import ShotFinder


def test_a_cut_is_found_at_its_frame_and_motion_is_none():
    rng = np.random.default_rng(0)
    one, other = (np.kron(rng.integers(0, 255, (6, 8, 3)), np.ones((50, 50, 1))).astype(np.uint8) for _ in range(2))
    frames = [np.roll(one, 3 * i, 1) for i in range(20)] + [np.roll(other, 3 * i, 1) for i in range(15)]
    finder = ShotFinder(Fraction(25), 10.0)
    assert all(seen is frame for seen, frame in zip(finder.watch(frames), frames))
    assert finder.cuts == [20]
    np.testing.assert_allclose(finder.brightness, [frame.mean() / 255 for frame in frames], atol=0.01)
    finder = ShotFinder(Fraction(30000, 1001), 255.0)
    list(finder.watch(frames))
    assert finder.cuts == []
