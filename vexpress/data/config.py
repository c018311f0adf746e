"""What a training sample is made of: the `data` part of a training configuration."""

from dataclasses import dataclass

from vexpress.errors import InputError
from vexpress.fields import check_fields, option

DROP_GRANULARITIES = ("frame", "clip")


@dataclass
class DataConfig:
    """What a training sample is made of.

    Raises:
        InputError: a value is out of bounds.
    """

    meta_paths: list[str] = option([], "metadata of `vexpress prepare`: JSON, or Parquet, also by URL", items=str)
    train_bs: int = option(1, "samples per process and micro-batch", low=1, high=4096)
    train_width: int = option(512, "width of the frames", low=16, high=4096, multiple=8, unit="px")
    train_height: int = option(512, "height of the frames", low=16, high=4096, multiple=8, unit="px")
    num_frames: int = option(8, "frames per sample", low=1, high=1000)
    sample_rate: int = option(1, "step between the frames of a sample", low=1, high=1000, unit="frames of the video")
    reference_margin: int = option(
        30,
        "smallest distance of the reference frame from the frames of the sample",
        low=0,
        high=1_000_000,
        unit="frames of the video",
    )
    num_padding_audio_frames: int = option(2, "frames of audio on each side of a frame", low=0, high=100)
    flip_rate: float = option(0.0, "probability that a sample is mirrored", low=0, high=1)
    crop_ratio: tuple[float, float] = option(
        (0.9, 1.0),
        "smallest and largest width / height of the random crop; [1, 1] does not crop square videos",
        low=0.01,
        high=100,
    )
    lip_mask_scale: float = option(2.0, "size of the lip mask, relative to the lips", low=0.1, high=100)
    lip_loss_weight: float = option(
        1.0, "weight of the loss inside the lip mask; 1 weighs all pixels the same", low=0, high=1e6
    )
    eye_loss_weight: float = option(
        1.0, "weight of the loss on eyes and brows, which attributes need; 1 weighs them as all else", low=0, high=1e6
    )
    kps_drop_rate: float = option(0.0, "probability that keypoint features are dropped", low=0, high=1)
    reference_drop_rate: float = option(0.0, "probability that the reference is dropped", low=0, high=1)
    audio_drop_rate: float = option(
        0.0,
        "probability that only the audio of a sample is dropped; needed for sampling with guidance=audio",
        low=0,
        high=1,
    )
    attribute_drop_rate: float = option(
        0.1, "probability that all attributes are dropped, and that each of them is over a whole sample", low=0, high=1
    )
    drop_granularity: str = option(
        "frame",
        "whether keypoints, reference and all attributes are dropped per frame or per clip",
        choices=DROP_GRANULARITIES,
    )
    latent_cache_dir: str | None = option(
        None, "folder of latents from `vexpress cache-latents`; needs crop_ratio [1, 1]", type=str
    )
    num_workers: int = option(2, "processes that decode videos", low=0, high=1024)
    balance_by: str | None = option(
        None,
        "column of the metadata, such as language, all of whose values become equally frequent; unset: all clips are",
        type=str,
    )

    def __post_init__(self):
        check_fields(self, "data.")
        low, high = self.crop_ratio
        if low > high:
            raise InputError("must be two numbers, low <= high", "data.crop_ratio", list(self.crop_ratio))
