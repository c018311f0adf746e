"""Finding faces with insightface's models from a local folder, and following one face through a video."""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from vexpress.errors import InputError
from vexpress.media.insightface_models import MODULES, InsightFace, find_model_dir
from vexpress.options import FACE_CHOICES

logger = logging.getLogger(__name__)

SMALL_FACE_SHARE = 0.1  # of the longer side of the picture
FEW_PIXELS_SHARE = 0.125  # of the longer side of the video that is made: fewer px of face are a blurred face
CROP_SCALE = 2.2  # side of a head-and-shoulders picture in sides of the face's box
CROP_FACE_HEIGHT = 0.45  # where in the picture the middle of the face is, from the top
MAX_CHANGE = 0.5  # see _change; from one frame to the next, more than this is another person


__all__ = ["MODULES", "Face", "FaceAnalyzer", "FaceDetector", "find_model_dir", "head_and_shoulders_box", "track_face"]


@dataclass(frozen=True)
class Face:
    """A face in an image; coordinates in px of that image.

    Attributes:
        bbox: (4,) float32, x1 y1 x2 y2; may reach out of the image.
        kps: (5 2) float32: left eye, right eye, nose, left and right corner of the mouth, as seen by the viewer.
        det_score: the detector's confidence, 0..1.
        landmark_2d_106: (106 2) float32, with that module.
        embedding: (512,) float32, with the module "recognition".
    """

    bbox: np.ndarray
    kps: np.ndarray
    det_score: float
    landmark_2d_106: np.ndarray | None = None
    embedding: np.ndarray | None = None

    @property
    def v_kps(self) -> np.ndarray:
        """(3 2): left eye, right eye, nose."""
        return self.kps[:3]

    @property
    def size(self) -> np.ndarray:
        """(2,): width and height of the box."""
        return self.bbox[2:] - self.bbox[:2]

    @property
    def center(self) -> np.ndarray:
        """(2,): middle of the box."""
        return (self.bbox[2:] + self.bbox[:2]) / 2


class FaceDetector:
    """What finds faces in pictures: insightface's models, or those of `vexpress.media.mtcnn`."""

    def detect(self, image: np.ndarray) -> list[Face]:
        """Finds the faces in image (H W 3) uint8 RGB, the largest first."""
        raise NotImplementedError

    def detect_each(self, frames: Iterable[np.ndarray]) -> Iterator[list[Face]]:
        """Finds the faces in each frame of a video, see `detect`; a frame that is repeated is not looked at again."""
        last = faces = None
        for frame in frames:
            if last is None or frame is not last and not np.array_equal(frame, last):
                faces = self.detect(frame)
            last = frame
            yield faces

    def detect_main(
        self, image: np.ndarray, field: str = "reference_image_path", value: object = None, video_px: int = 512
    ) -> Face:
        """Finds the largest face in image (H W 3) uint8 RGB.

        Args:
            image: to look at.
            field: the option that gave the image, for messages.
            value: what it was given, such as a path.
            video_px: longer side of the video that is made of it.

        Raises:
            InputError: there is no face.
        """
        faces = self.detect(image)
        if not faces:
            raise InputError("no face was found; give a picture with one clear frontal face", field, value)
        what = f"`{field}`" if value is None else f"`{field}` {value}"
        if len(faces) > 1:
            logger.warning("%s: %d faces were found; the largest is used", what, len(faces))
        longer_side = faces[0].size.max()
        if longer_side < max(FEW_PIXELS_SHARE * video_px, SMALL_FACE_SHARE * max(image.shape[:2])):
            logger.warning(
                "%s: the face is only %.0f px large; crop the picture to head and shoulders", what, longer_side
            )
        return faces[0]


class FaceAnalyzer(FaceDetector):
    """insightface's face detector, and what else of its models is asked for.

    Args:
        model_dir: the folder `insightface_models` of the released layout: .onnx files in it, or in models/buffalo_l
            below it.
        device: where to run; anything but CUDA runs on the CPU.
        modules: of MODULES.
        det_size: width and height in px to which images are fitted for the detector.

    Raises:
        InputError: the folder or a model in it is missing or damaged.
    """

    def __init__(
        self,
        model_dir: str | Path,
        device: torch.device | str = "cpu",
        modules: tuple[str, ...] = ("detection",),
        det_size: tuple[int, int] = (512, 512),
    ):
        self._network = InsightFace(model_dir, torch.device(device), modules, det_size)

    @property
    def providers(self) -> list[str]:
        """The onnxruntime execution providers that are active, not those that were asked for."""
        return self._network.providers

    def detect(self, image: np.ndarray) -> list[Face]:
        """Finds the faces in image (H W 3) uint8 RGB, the largest first.

        Raises:
            InputError: the models give something else than faces.
        """
        faces = [Face(**parts) for parts in self._network(image)]
        return sorted(faces, key=lambda face: face.size.prod(), reverse=True)


def head_and_shoulders_box(
    bbox: np.ndarray,
    width: int,
    height: int,
    min_side: int = 1,
    scale: float = CROP_SCALE,
    face_height: float = CROP_FACE_HEIGHT,
) -> tuple[int, int, int, int]:
    """Computes the square around a face that V-Express works best on.

    Args:
        bbox: (4,) x1 y1 x2 y2 of the face in px.
        width: of the image in px, likewise height.
        min_side: px; a small face gets more room than `scale` of it.
        scale: sides of the face's box.
        face_height: where in the square the middle of the face is, from the top.

    Returns:
        x1 y1 x2 y2 in px, within the image: as large as `scale` faces, `min_side` at least and the image's shorter side
        at most, the face at `face_height` unless the image ends there.
    """
    x1, y1, x2, y2 = map(float, bbox)
    side = round(min(max(scale * max(x2 - x1, y2 - y1), min_side), width, height))
    left = round((x1 + x2) / 2 - side / 2)
    top = round((y1 + y2) / 2 - side * face_height)
    left, top = min(max(left, 0), width - side), min(max(top, 0), height - side)
    return left, top, left + side, top + side


def track_face(
    frames: Iterable[list[Face]],
    max_gap: int,
    field: str = "video_path",
    value: object = None,
    choose: str | int = "largest",
) -> tuple[np.ndarray, list[int]]:
    """Follows one person through a video, from the first frame that shows a face on; tells which, if there are several.

    Args:
        frames: the faces of each frame, largest first; consumed one by one.
        max_gap: longest gap, in frames, in which the keypoints are interpolated, or held at the ends.
        field: the option that gave the video, for errors.
        value: what it was given, such as a path.
        choose: whom to follow, in the first frame that leaves the choice: "largest", "leftmost", or a number, counted
            from 0 from left to right.

    Returns:
        kps (f 5 2) float32 px, and the indices of the frames that were filled.

    Raises:
        InputError: no frame with so many faces, or the face is missing for longer than `max_gap`; names the frames.
    """
    check_face_choice(choose)
    earlier: list[list[Face]] = []  # frames before the one that leaves the choice
    num_frames, last, found, others = 0, None, {}, []
    for index, faces in enumerate(frames):
        num_frames += 1
        if last is None:
            face = _choose(faces, choose)
            if face is None:
                earlier.append(faces)
                continue
            if len(faces) > 1:
                place = "largest" if face is faces[0] else "not the largest"
                logger.info(
                    "`%s`%s: frame %d shows %d faces; followed is the one at x = %.0f, y = %.0f px (%s), chosen by %s",
                    *(field, "" if value is None else f" {value}", index, len(faces), *face.center, place, choose),
                )
        else:
            face = _same_person(faces, last, others, is_fresh=index - 1 in found)
        if face is not None:
            last, found[index] = face, face
        others = [other for other in faces if other is not face]
    if not found:
        most = max(map(len, earlier), default=0)
        if most:
            raise InputError(f"`{field}` shows at most {most} face(s) in a frame; they count from 0", "face", choose)
        raise InputError(f"no face was found in any of {num_frames} frames", field, value)
    # The chosen one may have been seen before there was a choice.
    first = min(found)
    before, others_before = found[first], []
    for index in reversed(range(first)):
        face = _same_person(earlier[index], before, others_before, is_fresh=index + 1 in found)
        if face is not None:
            before, found[index] = face, face
        others_before = [other for other in earlier[index] if other is not face]
    return _fill_gaps({index: found[index].kps for index in sorted(found)}, num_frames, max_gap, field, value)


def check_face_choice(choose: str | int) -> None:
    """Raises an InputError unless `choose` is one of FACE_CHOICES or a number from 0 on."""
    if choose not in FACE_CHOICES and (type(choose) is not int or choose < 0):
        raise InputError(f"must be {', '.join(FACE_CHOICES)} or a number from 0 on", "face", choose)


def _choose(faces: list[Face], choose: str | int) -> Face | None:
    """Whom to follow among the faces of a frame, largest first; None where it does not leave the choice."""
    if not faces or choose == "largest":
        return faces[0] if faces else None
    number = 0 if choose == "leftmost" else choose
    from_left = sorted(faces, key=lambda face: face.center[0])
    return from_left[number] if number < len(faces) else None


def _fill_gaps(
    found: dict[int, np.ndarray], num_frames: int, max_gap: int, field: str, value: object
) -> tuple[np.ndarray, list[int]]:
    """Interpolates keypoints (5 2) of some frames to (f 5 2) of all; gives also the frames that were filled."""
    filled = [index for index in range(num_frames) if index not in found]
    gaps = np.split(filled, np.flatnonzero(np.diff(filled) > 1) + 1) if filled else []
    too_long = [f"{gap[0]}-{gap[-1]}" for gap in gaps if len(gap) > max_gap]
    if too_long:
        raise InputError(
            f"the face is missing in frames {', '.join(too_long)} of {num_frames}, more than `max_gap` "
            f"{max_gap} in a row; cut the video or raise `max_gap`",
            field,
            value,
        )
    tracks = np.stack(list(found.values())).reshape(len(found), -1).T
    kps = [np.interp(range(num_frames), list(found), track) for track in tracks]
    return np.stack(kps, axis=1).reshape(num_frames, 5, 2).astype(np.float32), filled


def _same_person(faces: list[Face], last: Face, others: list[Face], is_fresh: bool) -> Face | None:
    """The face nearest to the `last` one, unless it belongs to one of the `others` of the previous frame.

    Where the last one was seen in the previous frame (`is_fresh`), the others only take what is nearer to them. Where
    it was lost, perhaps behind one of them, they take all that they can be.
    """
    mine = []
    for face in faces:
        change = _change(last, face)
        limit = change if is_fresh else MAX_CHANGE
        if change < MAX_CHANGE and all(_change(other, face) >= limit for other in others):
            mine.append((change, face))
    return min(mine, key=lambda pair: pair[0])[1] if mine else None


def _change(before: Face, after: Face) -> float:
    """How far a face moved, in sides of its box, plus how much its size changed (1 for a factor of e)."""
    side = np.sqrt(before.size.prod())
    moved = np.linalg.norm(after.center - before.center) / side
    return float(moved + abs(np.log(np.sqrt(after.size.prod()) / side)))
