"""What a training sample is made of: the `data` part of a training configuration."""

from dataclasses import dataclass, field

from vexpress.errors import InputError
from vexpress.fields import check_range


@dataclass
class DataConfig:
    """What a sample is made of."""

    meta_paths: list[str] = field(default_factory=list)
    """Metadata JSON files, as written by scripts/prepare_dataset."""
    train_bs: int = 1
    """Samples per process and micro-batch."""
    train_width: int = 512
    """px."""
    train_height: int = 512
    """px."""
    num_frames: int = 8
    """Frames per sample."""
    sample_rate: int = 1
    """Distance between neighbouring frames of a sample, in frames of the video."""
    reference_margin: int = 30
    """Least distance of the reference frame from the sample's frames, in frames of the video."""
    num_padding_audio_frames: int = 2
    """Frames of audio context on each side of a frame."""
    flip_rate: float = 0.0
    """Probability of mirroring a sample, 0 to 1."""
    crop_ratio: tuple[float, float] = (0.9, 1.0)
    """Range of the random crop's width to height; (1, 1) switches cropping off for square videos."""
    lip_mask_scale: float = 2.0
    """How much wider and higher than the lips the mask is."""
    lip_loss_weight: float = 1.0
    """Weight of the loss inside of the lip mask; 1 weighs all alike."""
    kps_drop_rate: float = 0.0
    """Probability that keypoint features are dropped, 0 to 1."""
    reference_drop_rate: float = 0.0
    """Probability that the reference is dropped, 0 to 1."""
    audio_drop_rate: float = 0.0
    """Probability that a sample loses its audio alone, 0 to 1; trains what `--guidance audio` guides away from."""
    drop_granularity: str = "frame"
    """"frame" draws for every frame, "clip" for every sample."""
    latent_cache_dir: str | None = None
    """Folder of scripts/prepare_dataset/cache_latents.py; needs crop_ratio (1, 1)."""
    num_workers: int = 2
    """Processes that decode."""

    def __post_init__(self):
        check_range("data.train_bs", self.train_bs, 1, 4096)
        check_range("data.num_frames", self.num_frames, 1, 1000)
        check_range("data.sample_rate", self.sample_rate, 1, 1000)
        check_range("data.reference_margin", self.reference_margin, 0, 1_000_000)
        check_range("data.lip_loss_weight", self.lip_loss_weight, 0, 1e6)
        check_range("data.num_workers", self.num_workers, 0, 1024)
        check_range("data.num_padding_audio_frames", self.num_padding_audio_frames, 0, 100)
        check_range("data.lip_mask_scale", self.lip_mask_scale, 0.1, 100)
        for name in ("flip_rate", "kps_drop_rate", "reference_drop_rate", "audio_drop_rate"):
            check_range(f"data.{name}", getattr(self, name), 0, 1)
        for name in ("train_width", "train_height"):
            if getattr(self, name) % 8 or getattr(self, name) < 16:
                raise InputError(f"data.{name}={getattr(self, name)}: must be a multiple of 8, 16 or more")
        low, high = self.crop_ratio
        if not 0 < low <= high:
            raise InputError("must be two numbers, 0 < low <= high", "data.crop_ratio", list(self.crop_ratio))
        if self.drop_granularity not in ("frame", "clip"):
            raise InputError("allowed are frame and clip", "data.drop_granularity", self.drop_granularity)
