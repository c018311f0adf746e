"""A picture of a prepared data set: what training sees of some of its frames."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from vexpress.data.formats import ClipRecord, FaceInfo, load_face_info
from vexpress.data.transforms import lip_corners, lip_mask_box, render_lip_mask
from vexpress.errors import InputError
from vexpress.media.keypoints import FAR_PX
from vexpress.media.random_access import read_frames_at
from vexpress.prepare.verify import ClipReport, shorten

LATENT_DOWNSAMPLING = 8  # px of the frame per cell of the mask
KPS_COLOURS = ((255, 60, 60), (60, 255, 60), (80, 120, 255), (255, 255, 60), (255, 80, 255))
LIP_COLOUR, MASK_COLOUR = (255, 220, 0), (0, 200, 255)
OK_COLOUR, PROBLEM_COLOUR, TEXT_COLOUR, BACKGROUND = (120, 230, 120), (255, 110, 110), (235, 235, 235), (32, 32, 32)
CELL_PX, LINE_PX, LETTER_PX, GAP_PX = 320, 26, 9, 6


def render_contact_sheet(
    records: Sequence[ClipRecord],
    reports: Sequence[ClipReport],
    folder: Path,
    lip_mask_scale: float,
    num_clips: int = 8,
    num_frames: int = 4,
) -> np.ndarray:
    """Renders frames of clips, those with problems first, with keypoints, lip box and lip mask.

    Args:
        records: rows of the metadata.
        reports: their reports, from `verify_clip`.
        folder: paths are shown relative to it.
        lip_mask_scale: size of the mask, relative to the lips.
        num_clips: most clips that are shown.
        num_frames: frames of each clip, evenly spaced from first to last.

    Returns:
        (H W 3) uint8 RGB.
    """
    width = num_frames * CELL_PX + (num_frames + 1) * GAP_PX
    legend = np.full((LINE_PX + GAP_PX, width, 3), BACKGROUND, np.uint8)
    _write(legend, "dots: five keypoints", 0, TEXT_COLOUR)
    _write(legend, "box: lips", 230, LIP_COLOUR)
    _write(legend, f"tinted: lip mask, {lip_mask_scale:g} times as large, in cells of the latent", 340, MASK_COLOUR)
    chosen = sorted(range(len(reports)), key=lambda index: not reports[index].problems)[:num_clips]
    rows = [_render_row(records[i], reports[i], folder, lip_mask_scale, num_frames, width) for i in chosen]
    return np.concatenate([legend, *rows])


def _render_row(
    record: ClipRecord, report: ClipReport, folder: Path, lip_mask_scale: float, num_frames: int, width: int
) -> np.ndarray:
    facts = [shorten(report.video, folder)]
    if report.num_frames:
        facts.append(f"{report.num_frames} frames   {report.fps:.2f} fps")
    title = np.full((LINE_PX, width, 3), BACKGROUND, np.uint8)
    _write(title, report.verdict, 0, PROBLEM_COLOUR if report.problems else OK_COLOUR)
    _write(title, "   ".join(facts), 60, TEXT_COLOUR)
    parts = [title]
    for line in textwrap.wrap("; ".join([*report.problems, *report.warnings]), width // LETTER_PX):
        parts.append(np.full((LINE_PX, width, 3), BACKGROUND, np.uint8))
        _write(parts[-1], line, 60, PROBLEM_COLOUR)
    try:
        face_info = load_face_info(record.face_info)
        last = min(face_info.num_frames, report.num_frames or 0) - 1
        frame_ids = np.linspace(0, max(last, 0), num_frames).round().astype(int).tolist()
        frames = read_frames_at(record.video, frame_ids)
    except InputError:  # the report above says it
        return np.concatenate(parts)
    gap = np.full((round(frames.shape[1] * CELL_PX / frames.shape[2]), GAP_PX, 3), BACKGROUND, np.uint8)
    cells = [gap]
    for index, frame in zip(frame_ids, frames):
        cells += [_render_cell(frame, face_info, index, lip_mask_scale), gap]
    return np.concatenate([*parts, np.concatenate(cells, axis=1), np.full_like(title[:GAP_PX], BACKGROUND)])


def _render_cell(frame: np.ndarray, face_info: FaceInfo, index: int, lip_mask_scale: float) -> np.ndarray:
    height, width, _ = frame.shape
    scale = CELL_PX / width
    size = (CELL_PX, round(height * CELL_PX / width))
    image = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
    landmarks, kps = face_info.landmark_2d_106[index], face_info.kps[index]
    if np.isfinite(landmarks).all() and np.isfinite(kps).all():
        mask = render_lip_mask(lip_mask_box(landmarks, lip_mask_scale), height, width, LATENT_DOWNSAMPLING)
        is_mask = cv2.resize(mask.numpy(), size, interpolation=cv2.INTER_NEAREST) > 0
        image[is_mask] = (0.65 * image[is_mask] + 0.35 * np.array(MASK_COLOUR)).astype(np.uint8)
        cv2.rectangle(image, *_pixels(lip_corners(landmarks) * scale), LIP_COLOUR, 1, cv2.LINE_AA)
        for centre, colour in zip(_pixels(kps * scale), KPS_COLOURS):
            cv2.circle(image, centre, 5, (0, 0, 0), -1, cv2.LINE_AA)
            cv2.circle(image, centre, 4, colour, -1, cv2.LINE_AA)
    image[:20, :92] //= 3
    cv2.putText(image, f"frame {index}", (5, 15), cv2.FONT_HERSHEY_SIMPLEX, 0.45, TEXT_COLOUR, 1, cv2.LINE_AA)
    return image


def _pixels(points: np.ndarray) -> list[list[int]]:
    return points.clip(-FAR_PX, FAR_PX).astype(int).tolist()


def _write(image: np.ndarray, text: str, left: int, colour: tuple[int, int, int]) -> None:
    cv2.putText(image, text, (GAP_PX + left, 18), cv2.FONT_HERSHEY_SIMPLEX, 0.5, colour, 1, cv2.LINE_AA)
