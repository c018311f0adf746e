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
    speech_detector: str = option(
        "silero", "silero: silero-vad finds speech; loudness: all sound is taken for it", choices=("silero", "loudness")
    )
    speech_db: float = option(-45.0, "level from which sound counts as loud enough", low=-200, high=0, unit="dBFS")
    speech_probability: float = option(0.5, "from which silero-vad's windows of 32 ms count as speech", low=0, high=1)
    min_speech_fraction: float = option(0.2, "smallest share of a clip's sound: loud enough, speech", low=0, high=1)
    cut_change: float = option(
        10.0, "smallest change of the picture that is a cut, PySceneDetect's content value", low=0, high=255
    )
    max_still_seconds: float = option(1.0, "longest time in which the picture stands still", low=0, high=7200, unit="s")
    min_identity: float = option(
        0.3, "smallest cosine of the face's embedding with the most typical one of the clip", low=-1, high=1
    )
    min_brightness: float = option(0.08, "darkest face, mean of a clip", low=0, high=1)
    max_brightness: float = option(0.95, "brightest face, mean of a clip", low=0, high=1)
    max_blur: float = option(0.6, "most blurred face, Crete's measure at 128 px, median of a clip", low=0, high=1)
    max_occlusion: float = option(0.25, "largest share of the face that something passes over", low=0, high=1)
    max_turn_degrees: float = option(60.0, "largest turn of the head to a side", low=0, high=90, unit="degrees")
    min_sync_confidence: float = option(3.0, "smallest Sync-C at the best shift of the sound", low=0, high=100)
    max_sync_distance: float = option(9.0, "largest Sync-D at the best shift of the sound", low=0, high=100)
    min_sync_shift: int = option(
        2, "smaller shifts of the sound are left: SyncNet errs by 1", low=0, high=15, unit="frames of 25 fps"
    )
    max_sync_shift: int = option(
        10, "sound is shifted by up to so much, clips farther off are rejected", low=0, high=15, unit="frames of 25 fps"
    )
    max_duplicate_difference: float = option(
        0.1, "largest share of the bits of the sounds' hashes in duplicates; below 0 they are kept", low=-1, high=0.25
    )
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
