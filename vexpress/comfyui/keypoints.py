"""Keypoints in nodes: found in videos and pictures, carried over, drawn."""

import logging
from collections.abc import Callable, Iterator
from os import PathLike

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vexpress.errors import InputError
from vexpress.media.faces import Face, FaceDetector, head_and_shoulders_box, track_face
from vexpress.media.keypoints import KpsSequence, fit_to_clip, load_kps, render_v_kps, retarget
from vexpress.media.retargeting import choose_strategy, relative_retarget
from vexpress.media.video import constant_rate, probe_video, read_frames

logger = logging.getLogger(__name__)

Report = Callable[..., None]
"""Called with what is done, of how much, and perhaps a picture of it, between any two pieces of work; may raise."""

DEFAULT_SIZE_PX = 512
"""Side of a picture of keypoints that do not say what they are px of."""


def kps_of_video(video: str | PathLike, analyzer: FaceDetector, max_gap: int, report: Report) -> KpsSequence:
    """Follows the face of a video, at its own frame rate and size.

    Args:
        video: path.
        analyzer: finds the face.
        max_gap: longest gap, in frames, that is interpolated.
        report: see `Report`.

    Raises:
        InputError: no video, or the face is missing for longer.
    """
    info = probe_video(video, "video")
    total = max(1, round(info.duration_seconds * info.fps))

    def faces() -> Iterator[list[Face]]:
        for number, frame in enumerate(constant_rate(read_frames(video, "video"), info.fps)):
            report(min(number, total), total)
            yield analyzer.detect(frame)

    kps, _ = track_face(faces(), max_gap, "video")
    report(total, total)
    return KpsSequence(torch.from_numpy(kps[:, :3].copy()), float(info.fps), info.height, info.width)


def kps_of_picture(picture: Image.Image, analyzer: FaceDetector, field: str = "image") -> KpsSequence:
    """The keypoints of the largest face, as a sequence of one frame without a rate.

    Raises:
        InputError: there is no face.
    """
    face = analyzer.detect_main(np.asarray(picture), field)
    return KpsSequence(torch.from_numpy(face.v_kps.copy())[None], None, picture.height, picture.width)


def kps_of_file(path: str | PathLike, kps_fps: float) -> KpsSequence:
    """Reads keypoints.

    Args:
        path: of the file.
        kps_fps: their frame rate; 0 for what the file says.

    Raises:
        InputError: the file cannot be used.
    """
    sequence = load_kps(path, "file")
    return KpsSequence(sequence.kps, kps_fps or sequence.fps, sequence.height, sequence.width)


def carry_over(driving: KpsSequence, portrait: KpsSequence, strategy: str, smoothing: float) -> KpsSequence:
    """Retargets driving keypoints to the face of a portrait, frame by frame at their own rate.

    Args:
        driving: the motion.
        portrait: its first frame is the face.
        strategy: one of RETARGET_STRATEGIES.
        smoothing: strength of relative_retarget's smoothing.

    Raises:
        InputError: a face has no size.
    """
    height, width = portrait.height or driving.height, portrait.width or driving.width
    kps, face = _scaled(driving, height, width), portrait.kps[0]
    if strategy == "auto":
        strategy, why = choose_strategy(kps, face)
        logger.info("`retarget_strategy` %s: %s", strategy, why)
    if strategy == "relative_retarget":
        kps = relative_retarget(kps, face, smoothing).float()
    else:
        kps = retarget(kps, face, strategy)
    return KpsSequence(kps, driving.fps, height, width)


def render_sequence(sequence: KpsSequence, height: int, width: int) -> Tensor:
    """Draws keypoints: IMAGE (f H W 3).

    Args:
        sequence: to draw.
        height: px; 0 for that of the frame they belong to. Likewise `width`.
    """
    height, width = height or sequence.height or DEFAULT_SIZE_PX, width or sequence.width or DEFAULT_SIZE_PX
    kps = _scaled(sequence, height, width)
    images = torch.empty(len(kps), height, width, 3)
    for image, points in zip(images, kps):
        image.copy_(torch.from_numpy(render_v_kps(points, height, width)) / 255)
    return images


def crop_portrait(picture: Image.Image, analyzer: FaceDetector) -> Image.Image:
    """Cuts out head and shoulders.

    Raises:
        InputError: there is no face.
    """
    face = analyzer.detect_main(np.asarray(picture), "image")
    return picture.crop(head_and_shoulders_box(face.bbox, *picture.size))


def _scaled(sequence: KpsSequence, height: int | None, width: int | None) -> Tensor:
    """(f 3 2) px of a frame of another size, where the sequence knows its own."""
    if not (height and width):
        if sequence.height or sequence.width:
            raise InputError("do not say the size of the picture that they belong to", "portrait_kps")
        return sequence.kps
    return fit_to_clip(
        KpsSequence(sequence.kps, None, sequence.height, sequence.width), len(sequence.kps), 1, height, width
    )
