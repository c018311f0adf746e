"""Settings of each benchmark: options with their bounds."""

from dataclasses import dataclass

from vexpress.fields import check_fields, option
from vexpress.options import DTYPES, PRESETS, SCHEDULERS

SIZES = ("released", "tiny")


def _pixels(default: int, what: str) -> int:
    return option(default, f"{what} of the video", low=64, high=4096, multiple=8, unit="px")


@dataclass(frozen=True)
class _Settings:
    def __post_init__(self):
        check_fields(self)


@dataclass(frozen=True)
class NetworkSettings(_Settings):
    """What benchmarks of networks have in common."""

    size: str = option("released", "size of the networks", choices=SIZES)
    device: str | None = option(None, "unset: what is there", choices=("cuda", "cpu", "mps"), type=str)
    gpu_id: int = option(0, "index of the CUDA device", low=0, high=1023)
    dtype: str | None = option(None, "number type; unset: fp16 on cuda, else fp32", choices=DTYPES, type=str)


@dataclass(frozen=True)
class UNetSettings(NetworkSettings):
    """Times a denoising step of one window, with each of our savings."""

    height: int = _pixels(512, "height")
    width: int = _pixels(512, "width")
    context_frames: int = option(24, "frames of the window", low=1, high=32)
    repeats: int = option(5, "timed turns, of which the median is shown", low=1, high=1000)
    warmup: int = option(1, "turns before that", low=1, high=1000)
    compile: bool = option(False, "also time torch.compile, which traces for minutes")


@dataclass(frozen=True)
class TrainingSettings(NetworkSettings):
    """Times a training step of stage 3, in several ways and beside the release's."""

    height: int = _pixels(512, "height")
    width: int = _pixels(512, "width")
    num_frames: int = option(8, "frames of the clip", low=1, high=32)
    repeats: int = option(5, "timed turns, of which the median is shown", low=1, high=1000)
    compile: bool = option(False, "also time torch.compile, which traces for minutes")
    released: str | None = option(None, "checkout of the released code, whose networks are timed, too", type=str)


@dataclass(frozen=True)
class AutoencoderSettings(NetworkSettings):
    """Times encoding and decoding a picture in both layouts of memory."""

    height: int = _pixels(512, "height")
    width: int = _pixels(512, "width")
    repeats: int = option(5, "timed turns, of which the median is shown", low=1, high=1000)


@dataclass(frozen=True)
class LoadingSettings(_Settings):
    """Measures the peak memory of loading the networks; writes up to 12 GB to disk."""

    size: str = option("released", "size of the networks", choices=SIZES)
    model_dir: str | None = option(None, "keeps the files, or measures what is there; unset: temporary", type=str)
    file_dtype: str = option("fp32", "number type of files that are written", choices=DTYPES)


@dataclass(frozen=True)
class FullRunSettings(NetworkSettings):
    """Times each part of the way from waveform to frames."""

    height: int = _pixels(256, "height")
    width: int = _pixels(256, "width")
    num_frames: int = option(2, "frames of the video", low=1, high=10_000)
    steps: int = option(2, "denoising steps", low=1, high=1000)
    save_gpu_memory: bool = option(False, "networks are on the GPU only while they work")


@dataclass(frozen=True)
class DataSettings(_Settings):
    """Times reading a training sample, and its frames in two ways."""

    height: int = _pixels(512, "height")
    width: int = _pixels(512, "width")
    meta_path: str | None = option(None, "metadata file of a data set; unset: a clip is made", type=str)
    clip_seconds: float = option(20.0, "length of the clip that is made", low=2, high=3600, unit="s")
    num_frames: int = option(8, "frames of a sample", low=1, high=1000)
    num_samples: int = option(20, "samples that are read", low=1, high=100_000)


@dataclass(frozen=True)
class IndexSettings(_Settings):
    """Measures an index of a million clips with made-up rows: writing it, opening it, and an epoch's order."""

    num_clips: int = option(1_000_000, "rows of the index", low=1000, high=100_000_000)


@dataclass(frozen=True)
class StartupSettings(_Settings):
    """Times the command from its start: help, a wrong flag, and a default run; or default runs of two checkouts."""

    rounds: int = option(5, "runs of each command, in turns", low=1, high=1000)
    other: str | None = option(None, "another checkout: default runs of both are compared", type=str)


@dataclass(frozen=True)
class MemorySettings(_Settings):
    """Measures how memory grows with the length of a video."""

    minutes: int = option(5, "length of the video that rolling sampling makes", low=2, high=600, unit="minutes")
    motion: str = option("moving", "the head's", choices=("still", "moving"))
    num_inference_steps: int = option(1, "denoising steps of rolling sampling", low=1, high=1000)
    fps: float = option(30.0, "frames per second of joint sampling", low=1, high=240)
    scheduler: str = option("ddim", "sampler of joint sampling", choices=SCHEDULERS)


@dataclass(frozen=True)
class FlopsSettings(_Settings):
    """Counts the arithmetic of a frame with each preset."""

    size: str = option("released", "size of the networks", choices=SIZES)
    height: int = _pixels(512, "height")
    width: int = _pixels(512, "width")


@dataclass(frozen=True)
class PresetsSettings(_Settings):
    """Times the presets in turns at two sizes, and compares their frames with those of the release's sampling."""

    model_dir: str | None = option(None, "folder of the model; unset: the embedded one", type=str)
    num_frames: int = option(60, "frames of the video", low=1, high=10_000)
    repeats: int = option(3, "timed turns, of which the median is shown", low=1, high=1000)


@dataclass(frozen=True)
class LiveSettings(_Settings):
    """Streams a video of speech as it comes, and compares its making with its playing."""

    model_dir: str | None = option(None, "folder of the model; unset: the embedded one", type=str)
    preset: str = option("live", "how to sample", choices=tuple(PRESETS))
    num_inference_steps: int | None = option(None, "denoising steps; unset: the preset's", low=1, high=1000, type=int)
    seconds: float = option(10.0, "length of the speech", low=1, high=3600, unit="s")
    repeats: int = option(3, "timed streams, of which medians are shown", low=1, high=1000)


BENCHMARKS = {
    "unet": UNetSettings,
    "training": TrainingSettings,
    "autoencoder": AutoencoderSettings,
    "loading": LoadingSettings,
    "full_run": FullRunSettings,
    "data": DataSettings,
    "index": IndexSettings,
    "startup": StartupSettings,
    "memory": MemorySettings,
    "flops": FlopsSettings,
    "presets": PresetsSettings,
    "live": LiveSettings,
}
"""Module of this package -> its settings."""
