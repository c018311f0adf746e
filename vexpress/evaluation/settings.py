"""How videos are measured: the options of an evaluation."""

from dataclasses import dataclass

from vexpress.fields import check_fields, option


@dataclass(frozen=True)
class Settings:
    """How it is measured.

    Raises:
        InputError: a value is out of bounds.
    """

    max_seconds: float = option(30.0, "of each video, from its start", low=0.1, high=3600, unit="s")
    reference_frame: int = option(0, "of the real clip: the portrait that faces are compared with", low=0, high=10**9)
    mouth_meter: str = option("auto", "what measures mouths; auto takes the one for drawn faces where there are labels")
    seed: int = option(0, "of resampling and shuffling", low=0, high=2**63 - 1)
    num_resamples: int = option(1000, "resamples for intervals of means", low=10, high=10**6)
    num_distance_resamples: int = option(100, "resamples for intervals of FID and FVD", low=2, high=10**6)

    def __post_init__(self):
        check_fields(self)
