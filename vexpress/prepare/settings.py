"""What a prepared data set looks like, and what is left out of it."""

from dataclasses import dataclass

from vexpress.errors import InputError
from vexpress.fields import check_fields, option

FORMATS = {"npz": (".face_info.npz", ".audio_embeds.safetensors"), "pt": (".face_info.pt", ".aud_embeds.pt")}
"""Name of a format -> endings of the files of face info and audio hidden states; "pt" is the released one."""


@dataclass(frozen=True)
class PrepareSettings:
    """What a prepared data set looks like, and what is left out of it.

    Raises:
        InputError: a value is out of bounds, or two contradict each other.
    """

    size: int = option(512, "width and height of the clips", low=16, high=4096, multiple=8, unit="px")
    fps: float = option(30.0, "constant frame rate of the clips", low=0.1, high=240, unit="frames per second")
    min_clip_seconds: float = option(2.0, "shorter clips are rejected", low=0.1, high=3600, unit="s")
    max_clip_seconds: float = option(10.0, "longer stretches are cut into equal parts", low=0.2, high=7200, unit="s")
    margin: float = option(
        0.6, "room on each side of the face, in sides of its box; less at the edge of the frame", low=0, high=100
    )
    min_resolution: int = option(256, "shortest side of a video that is accepted", low=0, high=100_000, unit="px")
    min_face_px: int = option(
        96, "smallest face, longer side of its box in the video, median over the clip", low=0, high=100_000, unit="px"
    )
    min_face_fraction: float = option(0.1, "the same as a share of the video's shorter side", low=0, high=1)
    max_bad_fraction: float = option(0.1, "largest share of a clip's frames without exactly one face", low=0, high=1)
    max_gap: int = option(5, "longest gap without the face that is interpolated", low=0, high=1_000_000, unit="frames")
    speech_db: float = option(-45.0, "level from which sound counts as speech", low=-200, high=0, unit="dBFS")
    min_speech_fraction: float = option(0.2, "smallest share of a clip's sound that is speech", low=0, high=1)
    format: str = option("npz", "npz: .npz and .safetensors files; pt: as released", choices=tuple(FORMATS))

    def __post_init__(self):
        check_fields(self)
        if self.min_clip_seconds < 1 / self.fps:
            raise InputError("must be one frame of `fps` or more", "min_clip_seconds", self.min_clip_seconds)
        if self.max_clip_seconds < 2 * self.min_clip_seconds:
            problem = (
                f"must be twice `min_clip_seconds` {self.min_clip_seconds:g} or more: cuts leave no part too short"
            )
            raise InputError(problem, "max_clip_seconds", self.max_clip_seconds)
