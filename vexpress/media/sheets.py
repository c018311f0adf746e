"""One picture of a generated video: portrait, frames at equal distances, their keypoints, and the speech under them."""

from collections.abc import Iterable, Iterator

import cv2
import numpy as np

from vexpress.media.keypoints import render_v_kps

CELL_PX, LABEL_PX, WAVE_PX, GAP_PX = 176, 22, 84, 6
BACKGROUND, TEXT_COLOUR, WAVE_COLOUR, MARK_COLOUR = (24, 24, 28), (225, 225, 225), (110, 170, 230), (240, 200, 90)


def frame_numbers(num_frames: int, num_cells: int) -> list[int]:
    """The frames that a filmstrip of at most `num_cells` shows, evenly spaced."""
    middles = (np.arange(num_cells) + 0.5) * num_frames / num_cells
    return sorted({int(middle) for middle in middles})


def remember(frames: Iterable[np.ndarray], numbers: list[int], kept: list[np.ndarray]) -> Iterator[np.ndarray]:
    """Passes frames on, and adds those of the given numbers to `kept`."""
    wanted = set(numbers)
    for number, frame in enumerate(frames):
        if number in wanted:
            kept.append(frame)
        yield frame


def render_filmstrip(
    reference: np.ndarray, frames: list[np.ndarray], numbers: list[int], kps: np.ndarray, waveform: np.ndarray
) -> np.ndarray:
    """Renders a contact sheet: the portrait and frames, their keypoints below, and the waveform of the speech.

    Args:
        reference: (H W 3) uint8 RGB, the portrait.
        frames: (H W 3) each, those to show; likewise their `numbers` in the clip.
        kps: (f 3 2) px of the frames, of the whole clip.
        waveform: (n), the whole clip's sound.

    Returns:
        (h w 3) uint8 RGB.
    """
    height, width = frames[0].shape[:2]
    size = (CELL_PX, round(CELL_PX * height / width))
    rows = [
        [_cell(reference, size, "portrait"), *(_cell(f, size, f"frame {n}") for f, n in zip(frames, numbers))],
        [
            np.full((size[1] + LABEL_PX, size[0], 3), BACKGROUND, np.uint8),
            *(_cell(render_v_kps(kps[n], height, width), size, "keypoints") for n in numbers),
        ],
    ]
    rows = [np.concatenate([part for cell in row for part in (cell, _gap(cell))][:-1], axis=1) for row in rows]
    strip = np.full((WAVE_PX, rows[0].shape[1], 3), BACKGROUND, np.uint8)
    left = CELL_PX + GAP_PX
    _render_waveform(strip[:, left:], waveform, [(number + 0.5) / len(kps) for number in numbers])
    cv2.putText(strip, "speech", (4, WAVE_PX // 2 + 5), cv2.FONT_HERSHEY_SIMPLEX, 0.45, TEXT_COLOUR, 1, cv2.LINE_AA)
    sheet = np.concatenate([*rows, strip])
    return cv2.copyMakeBorder(sheet, *[GAP_PX] * 4, cv2.BORDER_CONSTANT, value=BACKGROUND)


def render_pairs(
    before: list[np.ndarray], after: list[np.ndarray], numbers: list[int], num_frames: int, waveform: np.ndarray
) -> np.ndarray:
    """Renders a contact sheet of a video that was changed: frames before, after, and the waveform of its sound.

    Args:
        before: (H W 3) uint8 RGB each; likewise `after`, and their `numbers` in the clip.
        num_frames: of the clip.
        waveform: (n), the whole clip's sound.

    Returns:
        (h w 3) uint8 RGB.
    """
    height, width = after[0].shape[:2]
    size = (CELL_PX, round(CELL_PX * height / width))
    rows = []
    for frames, label in ((before, "before"), (after, "after")):
        cells = [_cell(frame, size, f"{label}, frame {number}") for frame, number in zip(frames, numbers)]
        rows.append(np.concatenate([part for cell in cells for part in (cell, _gap(cell))][:-1], axis=1))
    strip = np.full((WAVE_PX, rows[0].shape[1], 3), BACKGROUND, np.uint8)
    _render_waveform(strip, waveform, [(number + 0.5) / num_frames for number in numbers])
    sheet = np.concatenate([*rows, strip])
    return cv2.copyMakeBorder(sheet, *[GAP_PX] * 4, cv2.BORDER_CONSTANT, value=BACKGROUND)


def _cell(pixels: np.ndarray, size: tuple[int, int], label: str) -> np.ndarray:
    smaller = pixels.shape[1] > size[0]
    picture = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if smaller else cv2.INTER_CUBIC)
    line = np.full((LABEL_PX, size[0], 3), BACKGROUND, np.uint8)
    cv2.putText(line, label, (4, LABEL_PX - 7), cv2.FONT_HERSHEY_SIMPLEX, 0.42, TEXT_COLOUR, 1, cv2.LINE_AA)
    return np.concatenate([picture, line])


def _gap(cell: np.ndarray) -> np.ndarray:
    return np.full((len(cell), GAP_PX, 3), BACKGROUND, np.uint8)


def _render_waveform(image: np.ndarray, waveform: np.ndarray, marks: list[float]) -> None:
    """The waveform's envelope over the whole width of the image, with a line at each mark (0..1)."""
    height, width = image.shape[:2]
    edges = np.linspace(0, len(waveform), width + 1).astype(int)
    reach = np.array([np.abs(waveform[a : max(b, a + 1)]).max(initial=0) for a, b in zip(edges, edges[1:])])
    reach = reach / max(reach.max(), 1e-6) * (height / 2 - 4)
    for mark in marks:
        cv2.line(image, (int(mark * width), 0), (int(mark * width), height), MARK_COLOUR, 1)
    for x, length in enumerate(reach):
        cv2.line(image, (x, round(height / 2 - length)), (x, round(height / 2 + length)), WAVE_COLOUR, 1)
