"""Where a video is cut, by PySceneDetect's detector, and how bright it is: of frames that are decoded anyway."""

from collections.abc import Iterable, Iterator
from fractions import Fraction

import cv2
import numpy as np

from vexpress.errors import InputError

LOOK_PX = 256  # longer side of what is compared: fine enough for cuts, and cheap


class ShotFinder:
    """Finds cuts in frames that pass through.

    PySceneDetect's adaptive detector compares a frame's change in hue, saturation and brightness with that of the two
    frames before and after: a cut stands out, a turn of the head or of the camera does not.

    Args:
        fps: constant frame rate of the frames.
        min_change: smallest mean change that is a cut, 0..255 (PySceneDetect's content value).

    Raises:
        InputError: PySceneDetect is not installed.
    """

    def __init__(self, fps: Fraction, min_change: float):
        try:
            from scenedetect import AdaptiveDetector, FrameTimecode
        except ImportError as error:
            raise InputError(
                "needs PySceneDetect, which is not installed: pip install scenedetect", "cut_change"
            ) from error
        self._timecode, self._fps = FrameTimecode, float(fps)
        self._detector = AdaptiveDetector(min_scene_len=1, min_content_val=min_change)
        self.cuts: list[int] = []
        """First frames of new shots, as far as they are known; complete when all frames have passed."""
        self.brightness: list[float] = []
        """Mean of each frame that has passed, 0 black to 1 white."""

    def watch(self, frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Passes frames (H W 3) uint8 RGB on."""
        for index, frame in enumerate(frames):
            scale = LOOK_PX / max(frame.shape[:2])
            if scale < 1:
                size = [max(1, round(length * scale)) for length in frame.shape[1::-1]]
                small = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
            else:
                small = frame
            found = self._detector.process_frame(self._timecode(index, self._fps), small[..., ::-1])
            self.cuts += [cut.frame_num for cut in found]
            self.brightness.append(float(small.mean()) / 255)
            yield frame
