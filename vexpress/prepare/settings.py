"""How a prepared data set looks, and what is left out of it."""

import math
from dataclasses import dataclass

from vexpress.errors import InputError
from vexpress.media.video import frame_rate
from vexpress.prepare.extract import FORMATS


@dataclass(frozen=True)
class PrepareSettings:
    """What a prepared data set looks like, and what is left out of it. Field names are flags of the program."""

    size: int = 512
    """Width and height of the clips in px."""
    fps: float = 30.0
    """Constant frame rate of the clips."""
    min_clip_seconds: float = 2.0
    """Shorter clips are rejected."""
    max_clip_seconds: float = 10.0
    """Longer stretches are cut into equal parts."""
    margin: float = 0.6
    """Room on each side of the face, in sides of its box; less where the frame ends."""
    min_resolution: int = 256
    """Least shorter side of a source in px."""
    min_face_px: int = 96
    """Least longer side of the face's box in px of the source, median over the clip."""
    min_face_fraction: float = 0.1
    """The same, in shorter sides of the source."""
    max_bad_fraction: float = 0.1
    """Largest share of a clip's frames that may show no face or several."""
    max_gap: int = 5
    """So many frames in a row may lack the face; they are interpolated."""
    speech_db: float = -45.0
    """Sound counts as speech from this level on, in dB of full scale."""
    min_speech_fraction: float = 0.2
    """Least share of a clip's sound that is as loud."""
    format: str = "npz"
    """One of FORMATS."""

    def __post_init__(self):
        frame_rate(self.fps)
        for name in ("min_face_fraction", "max_bad_fraction", "min_speech_fraction"):
            self._check(name, 0 <= getattr(self, name) <= 1, "0 to 1")
        for name in ("margin", "min_resolution", "min_face_px", "max_gap"):
            self._check(name, 0 <= getattr(self, name) < math.inf, "0 or more")
        self._check("size", self.size >= 16 and self.size % 8 == 0, "a multiple of 8, 16 or more")
        self._check("speech_db", -200 <= self.speech_db <= 0, "-200 to 0")
        self._check("min_clip_seconds", self.min_clip_seconds >= max(0.1, 1 / self.fps), "0.1 and one frame or more")
        allowed = f"twice `min_clip_seconds` {self.min_clip_seconds:g} or more, so that a cut leaves no part too short"
        self._check("max_clip_seconds", 2 * self.min_clip_seconds <= self.max_clip_seconds < math.inf, allowed)
        self._check("format", self.format in FORMATS, " or ".join(FORMATS))

    def _check(self, name: str, is_allowed: bool, allowed: str) -> None:
        if not is_allowed:  # a NaN is not
            raise InputError(f"--{name} {getattr(self, name)}: must be {allowed}")
