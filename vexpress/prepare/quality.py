"""What is measured of a clip, and which numbers are allowed: each a key of the metadata's "quality"."""

from dataclasses import dataclass

from vexpress.prepare.settings import PrepareSettings


class Rejected(Exception):
    """A clip or a whole source is left out.

    Args:
        reason: one of REASONS.
        detail: what was measured, and the setting that decides.
        quality: all that was measured until then.
    """

    def __init__(self, reason: str, detail: str, quality: dict[str, float] | None = None):
        super().__init__(reason, detail)
        self.reason, self.detail, self.quality = reason, " ".join(detail.split()), quality or {}


@dataclass(frozen=True)
class Limit:
    """A number of a clip, and the setting that it is compared with.

    Attributes:
        key: of the number.
        setting: its name; `min_...` is the least that is allowed, `max_...` the most.
        reason: of the rejection.
        what: the number is, in words.
    """

    key: str
    setting: str
    reason: str
    what: str

    def check(self, quality: dict[str, float], settings: PrepareSettings) -> None:
        """Raises `Rejected` for a number that was measured and is not allowed."""
        value, limit = quality.get(self.key), getattr(settings, self.setting)
        if value is not None and (value < limit if self.setting.startswith("min") else value > limit):
            raise Rejected(self.reason, f"{self.what} is {value:.3g}, `{self.setting}` is {limit:g}", quality)


SPEECH_LIMITS = (
    Limit("loud_fraction", "min_speech_fraction", "no_speech", "the share of its sound from `speech_db` on"),
    Limit("speech_fraction", "min_speech_fraction", "not_speech", "the share of its sound that is speech"),
)
PICTURE_LIMITS = (
    Limit("still_seconds", "max_still_seconds", "frozen", "the longest time in which its picture stands still, in s,"),
    Limit("identity", "min_identity", "several_people", "the likeness of its least like frame"),
    Limit("brightness", "min_brightness", "too_dark", "the face's brightness"),
    Limit("brightness", "max_brightness", "too_bright", "the face's brightness"),
    Limit("blur", "max_blur", "blurred", "the face's blur"),
    Limit("occlusion", "max_occlusion", "covered", "the largest share of the face that is covered"),
    Limit("turn_degrees", "max_turn_degrees", "turned_away", "the largest turn of the head, in degrees,"),
)
SYNC_LIMITS = (
    Limit("sync_confidence", "min_sync_confidence", "no_sync", "SyncNet's confidence"),
    Limit("sync_distance", "max_sync_distance", "no_sync", "SyncNet's distance of lips and sound"),
    Limit("sync_frames_off", "max_sync_shift", "out_of_sync", "the shift of its sound, in frames of 25 fps,"),
)
REASONS = {
    "corrupt": "the file cannot be read",
    "failed": "an unexpected error; the next run tries again",
    "no_audio": "no sound track",
    "low_resolution": "too few pixels",
    "not_one_face": "no face, or several",
    "too_short": "the face is seen for too short a time",
    "cut": "a cut leaves too short a piece",
    "face_too_small": "too few pixels of face",
    "face_cut_off": "the lips reach out of the picture",
    "no_speech": "silence",
    "not_speech": "music or noise alone",
    "frozen": "the picture stands still",
    "several_people": "another person comes in",
    "too_dark": "the face is in the dark",
    "too_bright": "the face is overexposed",
    "blurred": "the face is blurred",
    "covered": "something covers the face",
    "turned_away": "the head turns away",
    "no_sync": "the sound does not fit the lips at any shift",
    "out_of_sync": "the sound is too far from the lips",
    "duplicate": "the clip is there already",
    "mirrored": "the clip is there already, mirrored",
}
"""Reason of a rejection -> what it means."""


def check_limits(limits: tuple[Limit, ...], quality: dict[str, float], settings: PrepareSettings) -> None:
    """Raises `Rejected` for the first number that is not allowed."""
    for limit in limits:
        limit.check(quality, settings)


def rounded(quality: dict) -> dict:
    """Numbers as they are kept: to four digits behind the point."""
    return {key: round(value, 4) if isinstance(value, float) else value for key, value in quality.items()}
