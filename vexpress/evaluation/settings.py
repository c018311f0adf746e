"""How videos are measured: the options of an evaluation."""

from dataclasses import dataclass

from vexpress.fields import check_fields, option

LANDMARKS = "landmarks"
"""The mouth meter that is always there."""


@dataclass(frozen=True)
class Settings:
    """How videos are measured.

    Raises:
        InputError: a value is out of bounds.
    """

    max_seconds: float = option(30.0, "seconds that are measured of each video, from its start", low=0.1, high=3600)
    reference_frame: int = option(0, "frame of the real clip that serves as portrait", low=0, high=10**9)
    mouth_meter: str = option("auto", "what measures mouths; auto: for clips with labels the data set's own meter")
    seed: int = option(0, "seed of resampling and shuffling", low=0, high=2**63 - 1)
    num_resamples: int = option(1000, "resamples for intervals of means", low=10, high=10**6)
    num_distance_resamples: int = option(100, "resamples for intervals of FID and FVD", low=2, high=10**6)

    def __post_init__(self):
        check_fields(self)
