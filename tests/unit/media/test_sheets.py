"""The picture of a generated video."""

import numpy as np

from vexpress.media.sheets import CELL_PX, GAP_PX, LABEL_PX, frame_numbers, remember, render_filmstrip


def test_frames_are_evenly_spaced_and_never_twice():
    assert frame_numbers(100, 4) == [12, 37, 62, 87]
    assert frame_numbers(3, 8) == [0, 1, 2]
    assert frame_numbers(1, 8) == [0]


def test_remember_passes_all_on():
    kept = []
    frames = [np.full((2, 2, 3), i) for i in range(5)]
    assert [frame[0, 0, 0] for frame in remember(iter(frames), [1, 4], kept)] == list(range(5))
    assert [frame[0, 0, 0] for frame in kept] == [1, 4]


def test_shows_portrait_frames_and_where_it_is_loud():
    reference = np.full((64, 64, 3), (200, 10, 10), np.uint8)
    frames = [np.full((64, 64, 3), (10, 10 + 60 * i, 200), np.uint8) for i in range(3)]
    kps = np.tile(np.array([[20, 20], [44, 20], [32, 40]], np.float32), (9, 1, 1))
    waveform = np.concatenate([np.zeros(3000), np.ones(3000)]).astype(np.float32)
    sheet = render_filmstrip(reference, frames, [1, 4, 7], kps, waveform)
    middle = GAP_PX + CELL_PX // 2
    step = CELL_PX + GAP_PX
    assert sheet[middle, middle].tolist() == [200, 10, 10]
    assert [sheet[middle, middle + step * (i + 1)].tolist() for i in range(3)] == [
        [10, 10 + 60 * i, 200] for i in range(3)
    ]
    keypoints = sheet[GAP_PX + CELL_PX + LABEL_PX : GAP_PX + 2 * CELL_PX + LABEL_PX, GAP_PX + step :][:, :CELL_PX]
    assert (keypoints.reshape(-1, 3).max(0) > 200).all()  # red, green and blue points
    wave = sheet[-40:-30, GAP_PX + step :]
    blue = (wave[..., 2] > 200).mean(axis=(0,))
    assert blue[: len(blue) * 4 // 10].mean() < 0.1 < 0.9 < blue[len(blue) * 6 // 10 :].mean()
