"""How a video is dubbed; imports nothing heavy, since flags are made of it."""

from dataclasses import dataclass

from vexpress.fields import check_fields, option
from vexpress.options import FACE_CHOICES

LENGTHS = ("shorter", "video")


@dataclass(frozen=True)
class DubSettings:
    """What of a video is dubbed, and what is written.

    Raises:
        InputError: a value is out of bounds.
    """

    face: str = option("largest", "whose mouth follows the speech where a shot shows several", choices=FACE_CHOICES)
    length: str = option(
        "shorter",
        "shorter: the video ends with the first of video and speech to end; video: all of it, silent where speech ends",
        choices=LENGTHS,
    )
    max_gap: int = option(
        5, "longest gap in which a face that the finder misses is still dubbed", low=0, high=1000, unit="frames"
    )
    crf: int = option(18, "quality of an .mp4, 0 is best; .mkv is lossless (FFV1, FLAC)", low=0, high=51, advanced=True)

    def __post_init__(self):
        check_fields(self)
