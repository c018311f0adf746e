"""SyncNet v2: whether lips and speech belong together, and by how many frames they are apart.

Source: Chung and Zisserman, "Out of time: automated lip sync in the wild" (2016), in the released sizes and procedure.
The sizes are a configuration, so that a small network of the same kind can be trained.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path

import cv2
import numpy as np
import safetensors.torch
import scipy.fft
import scipy.ndimage as ndi
import torch
from torch import Tensor, nn

from vexpress.errors import InputError, first_line
from vexpress.files import read_json, replacing
from vexpress.network_files import NetworkFacts, give_weights, hash_prefix

FPS = 25
RATE_HZ = 16000
WINDOW_FRAMES, WINDOW_STEPS, STEPS_PER_FRAME = 5, 20, 4
MAX_SHIFT = 15  # frames, to both sides
NUM_CEPSTRA = 13

# Mel-frequency cepstra with the defaults of python_speech_features.
WINDOW_SAMPLES, STEP_SAMPLES, FFT_SIZE, NUM_FILTERS = 400, 160, 512, 26
PREEMPHASIS, LIFTER = 0.97, 22

PLACES = ("evaluation/syncnet.safetensors", "evaluation/syncnet_v2.model")
"""Where in a model folder a SyncNet may lie."""

SMOOTHING_FRAMES = 13
CROP_SCALE, PADDING_VALUE = 0.40, 110
WINDOWS_PER_BATCH = 16
MIN_CROP_PX, MAX_CROP_PX, MAX_WIDTH = 60, 1024, 8192


@dataclass(frozen=True)
class SyncNetConfig:
    """Sizes; the defaults are SyncNet v2's.

    Attributes:
        crop_px: width and height of the crops.
        visual_widths: channels of the six convolutions, likewise audio_widths.
        hidden_width: of the heads.
        embedding_width: of what is compared.
    """

    crop_px: int = 224
    visual_widths: tuple[int, ...] = (96, 256, 256, 256, 256, 512)
    audio_widths: tuple[int, ...] = (64, 192, 384, 256, 256, 512)
    hidden_width: int = 512
    embedding_width: int = 1024

    def __post_init__(self):
        widths = (*self.visual_widths, *self.audio_widths, self.hidden_width, self.embedding_width)
        if len(self.visual_widths) != 6 or len(self.audio_widths) != 6:
            raise InputError("SyncNet: visual_widths and audio_widths are six numbers each")
        if not all(type(width) is int and 1 <= width <= MAX_WIDTH for width in widths):
            raise InputError(f"SyncNet: widths are whole numbers, 1 to {MAX_WIDTH}")
        if type(self.crop_px) is not int or not MIN_CROP_PX <= self.crop_px <= MAX_CROP_PX:
            raise InputError(f"SyncNet: crop_px is {self.crop_px}, allowed are {MIN_CROP_PX} to {MAX_CROP_PX}")


class SyncNet(nn.Module):
    """Two towers that bring 5 frames and 0.2 s of speech to comparable embeddings. Names are the released ones."""

    def __init__(self, config: SyncNetConfig | None = None):
        super().__init__()
        self.config = config = config or SyncNetConfig()
        v, a = config.visual_widths, config.audio_widths
        side = _pooled_side(config.crop_px)
        self.netcnnlip = nn.Sequential(
            *_convolution(3, 3, v[0], (5, 7, 7), stride=(1, 2, 2)),
            nn.MaxPool3d((1, 3, 3), (1, 2, 2)),
            *_convolution(3, v[0], v[1], (1, 5, 5), stride=(1, 2, 2), padding=(0, 1, 1)),
            nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)),
            *_convolution(3, v[1], v[2], (1, 3, 3), padding=(0, 1, 1)),
            *_convolution(3, v[2], v[3], (1, 3, 3), padding=(0, 1, 1)),
            *_convolution(3, v[3], v[4], (1, 3, 3), padding=(0, 1, 1)),
            nn.MaxPool3d((1, 3, 3), (1, 2, 2)),
            *_convolution(3, v[4], v[5], (1, side, side)),
        )
        self.netfclip = _head(v[5], config)
        self.netcnnaud = nn.Sequential(
            *_convolution(2, 1, a[0], 3, padding=1),
            nn.MaxPool2d(1, 1),
            *_convolution(2, a[0], a[1], 3, padding=1),
            nn.MaxPool2d(3, (1, 2)),
            *_convolution(2, a[1], a[2], 3, padding=1),
            *_convolution(2, a[2], a[3], 3, padding=1),
            *_convolution(2, a[3], a[4], 3, padding=1),
            nn.MaxPool2d(3, 2),
            *_convolution(2, a[4], a[5], (5, 4)),
        )
        self.netfcaud = _head(a[5], config)

    def encode_frames(self, crops: Tensor) -> Tensor:
        """Crops (n 3 5 crop_px crop_px) BGR in 0..255 -> (n embedding_width)."""
        return self.netfclip(self.netcnnlip(crops).flatten(1))

    def encode_speech(self, cepstra: Tensor) -> Tensor:
        """Cepstra (n 1 13 20) -> (n embedding_width)."""
        return self.netfcaud(self.netcnnaud(cepstra).flatten(1))


def _convolution(dimensions: int, width_in: int, width_out: int, kernel, **options) -> tuple[nn.Module, ...]:
    conv, norm = {2: (nn.Conv2d, nn.BatchNorm2d), 3: (nn.Conv3d, nn.BatchNorm3d)}[dimensions]
    return conv(width_in, width_out, kernel, **options), norm(width_out), nn.ReLU()


def _head(width: int, config: SyncNetConfig) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(width, config.hidden_width), nn.BatchNorm1d(config.hidden_width), nn.ReLU(),
        nn.Linear(config.hidden_width, config.embedding_width),
    )  # fmt: skip


def _pooled_side(crop_px: int) -> int:
    """Side of what reaches the last visual convolution, which covers all of it."""
    side = (crop_px - 7) // 2 + 1
    side = (side - 3) // 2 + 1
    side = (side + 2 - 5) // 2 + 1
    side = (side + 2 - 3) // 2 + 1
    return (side - 3) // 2 + 1


def load_syncnet(path: str | PathLike, device: torch.device | str = "cpu") -> tuple[SyncNet, NetworkFacts]:
    """Reads a SyncNet: the released `syncnet_v2.model`, or ours with its sizes beside it in a .json of the same name.

    Raises:
        InputError: missing, damaged, or not such a network.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError("no such file; give syncnet_v2.model or another SyncNet", "syncnet_path", path)
    sizes_path = path.with_suffix(".json")
    try:
        sizes = read_json(sizes_path) if sizes_path.is_file() else {}
        sizes = {name: tuple(size) if isinstance(size, list) else size for name, size in sizes.items()}
        with torch.device("meta"):
            network = SyncNet(SyncNetConfig(**sizes))
    except (ValueError, TypeError, AttributeError, OSError) as error:
        raise InputError(
            f"{sizes_path.name} beside it does not hold sizes ({first_line(error)})", "syncnet_path", path
        ) from error
    network = give_weights(network, path, "syncnet_path", device)
    kind = "SyncNet v2" if network.config == SyncNetConfig() else "SyncNet of other sizes"
    resize = f"face crop to {network.config.crop_px} px (OpenCV's bilinear)"
    return network, NetworkFacts("Sync-C, Sync-D", path.name, hash_prefix(path), kind, resize)


def save_syncnet(path: str | PathLike, network: SyncNet) -> None:
    """Writes `.safetensors`, and the sizes beside it as .json."""
    path = Path(path)
    with replacing(path) as temporary:
        safetensors.torch.save_file(
            {name: tensor.contiguous() for name, tensor in network.state_dict().items()}, temporary
        )
    with replacing(path.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps(asdict(network.config), indent=1) + "\n", encoding="utf-8")


# ---- speech --------------------------------------------------------------------------------------------------------


def compute_mfcc(samples: np.ndarray) -> np.ndarray:
    """Computes cepstra of 16 kHz speech as python_speech_features does by default.

    Args:
        samples: (n) int16, or floats on that scale.

    Returns:
        (steps 13) float32, one step per 10 ms; the first column is the logarithm of the energy.
    """
    samples = np.asarray(samples, np.float64)
    signal = np.append(samples[:1], samples[1:] - PREEMPHASIS * samples[:-1])
    num_steps = 1 + max(0, -(-(len(signal) - WINDOW_SAMPLES) // STEP_SAMPLES))
    signal = np.pad(signal, (0, max(0, (num_steps - 1) * STEP_SAMPLES + WINDOW_SAMPLES - len(signal))))
    windows = np.lib.stride_tricks.sliding_window_view(signal, WINDOW_SAMPLES)[::STEP_SAMPLES][:num_steps]
    power = np.square(np.abs(np.fft.rfft(windows, FFT_SIZE))) / FFT_SIZE
    smallest = np.finfo(float).eps
    energy = power.sum(1)
    bands = power @ _mel_filters().T
    logs = np.log(np.where(bands == 0, smallest, bands))
    cepstra = scipy.fft.dct(logs, type=2, axis=1, norm="ortho")[:, :NUM_CEPSTRA]
    cepstra *= 1 + LIFTER / 2 * np.sin(np.pi * np.arange(NUM_CEPSTRA) / LIFTER)
    cepstra[:, 0] = np.log(np.where(energy == 0, smallest, energy))
    return cepstra.astype(np.float32)


def _mel_filters() -> np.ndarray:
    """(26, 257): triangles between bins of the FFT that are evenly spaced in mel up to half the rate."""
    highest = 2595 * np.log10(1 + RATE_HZ / 2 / 700)
    hz = 700 * (10 ** (np.linspace(0, highest, NUM_FILTERS + 2) / 2595) - 1)
    edges = np.floor((FFT_SIZE + 1) * hz / RATE_HZ)
    bins = np.arange(FFT_SIZE // 2 + 1)
    filters = np.zeros((NUM_FILTERS, len(bins)))
    for row, low, middle, high in zip(filters, edges, edges[1:], edges[2:]):
        rising, falling = (bins >= low) & (bins < middle), (bins >= middle) & (bins < high)
        row[rising] = (bins[rising] - low) / (middle - low)
        row[falling] = (high - bins[falling]) / (high - middle)
    return filters


# ---- faces ---------------------------------------------------------------------------------------------------------


def crop_track(frames: np.ndarray, boxes: np.ndarray, crop_px: int = 224) -> np.ndarray:
    """Cuts the followed face out of each frame, the mouth below the middle.

    Args:
        frames: (f H W 3) uint8 RGB at 25 fps.
        boxes: (f 4) px, x1 y1 x2 y2 of the face, finite.
        crop_px: width and height of the result.

    Returns:
        (f crop_px crop_px 3) uint8 BGR.
    """
    return np.stack([crop_face(frame, at, crop_px) for frame, at in zip(frames, smooth_track(boxes))])


def smooth_track(boxes: np.ndarray) -> np.ndarray:
    """Boxes (f 4) px of consecutive frames -> (f 3): half of the face's side, and its middle."""
    half = np.maximum(boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]) / 2
    track = np.stack([half, (boxes[:, 0] + boxes[:, 2]) / 2, (boxes[:, 1] + boxes[:, 3]) / 2], 1)
    return ndi.median_filter(track, (SMOOTHING_FRAMES, 1), mode="nearest")


def crop_corners(track: np.ndarray) -> np.ndarray:
    """Corners (f 2 2) px of what is cut out around a face, the mouth below the middle, of rows of `smooth_track`."""
    s, x, y = track.T
    low, high = (x - s * (1 + CROP_SCALE), y - s), (x + s * (1 + CROP_SCALE), y + s * (1 + 2 * CROP_SCALE))
    return np.stack([np.stack(low, -1), np.stack(high, -1)], -2)


def crop_face(frame: np.ndarray, place: np.ndarray, crop_px: int) -> np.ndarray:
    """Cuts a face out of frame (H W 3) uint8 RGB: (crop_px crop_px 3) uint8 BGR; `place` is a row of `smooth_track`."""
    s, x, y = place
    margin = int(s * (1 + 2 * CROP_SCALE)) + 1
    padded = np.pad(frame, ((margin, margin), (margin, margin), (0, 0)), constant_values=PADDING_VALUE)
    x, y = (np.clip([x, y], 0, frame.shape[1::-1]) + margin).tolist()
    top, bottom = int(y - s), int(y + s * (1 + 2 * CROP_SCALE))
    left, right = int(x - s * (1 + CROP_SCALE)), int(x + s * (1 + CROP_SCALE))
    return cv2.resize(padded[top : max(bottom, top + 1), left : max(right, left + 1), ::-1], (crop_px, crop_px))


# ---- both ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SyncFeatures:
    """Embeddings of windows, one per frame (n d): windows i of frames i..i+4 and of the speech meanwhile."""

    visual: np.ndarray
    audio: np.ndarray


@dataclass(frozen=True)
class SyncScore:
    """How well lips and speech go together.

    Attributes:
        confidence: Sync-C, median minus minimum of the mean distances over shifts; higher is better.
        distance: Sync-D, that minimum; lower is better.
        offset: frames of 25 fps by which the lips come late (positive) or early.
    """

    confidence: float
    distance: float
    offset: int

    def as_values(self) -> dict[str, float]:
        """Metric -> figure; in sync is a clip that is at most one frame off, in percent."""
        return {
            "sync_c": self.confidence,
            "sync_d": self.distance,
            "offset": self.offset,
            "in_sync": 100.0 * (abs(self.offset) <= 1),
        }


def count_windows(num_frames: int, num_samples: int) -> int:
    """Counts the windows for which there are frames and speech: those of a clip of 25 fps and 16 kHz."""
    return max(0, min(num_frames, num_samples // (RATE_HZ // FPS)) - WINDOW_FRAMES)


def encode_clip(network: SyncNet, crops: np.ndarray, cepstra: np.ndarray, num_windows: int) -> SyncFeatures:
    """Computes the embeddings of a clip.

    Args:
        network: in evaluation mode.
        crops: (f px px 3) uint8 BGR at 25 fps.
        cepstra: (steps 13), 100 per second.
        num_windows: see `count_windows`.
    """
    starts = range(num_windows)
    return SyncFeatures(encode_frames(network, crops, starts), encode_speech(network, cepstra, starts))


def encode_frames(network: SyncNet, crops: np.ndarray, starts: Sequence[int]) -> np.ndarray:
    """Computes embeddings (n d) of the windows of crops (f px px 3) uint8 BGR that start at these frames."""
    frames = torch.from_numpy(crops).movedim(-1, 0)  # (3 f px px)
    return _encode(network, network.encode_frames, [frames[:, i : i + WINDOW_FRAMES] for i in starts])


def encode_speech(network: SyncNet, cepstra: np.ndarray, starts: Sequence[int]) -> np.ndarray:
    """Computes embeddings (n d) of the windows of cepstra (steps 13) that start at these frames."""
    steps = torch.from_numpy(cepstra).T[None]  # (1 13 steps)
    parts = [steps[..., i * STEPS_PER_FRAME :][..., :WINDOW_STEPS] for i in starts]
    return _encode(network, network.encode_speech, parts)


@torch.no_grad()
def _encode(network: SyncNet, encode: Callable[[Tensor], Tensor], windows: list[Tensor]) -> np.ndarray:
    device = next(network.parameters()).device
    parts = [windows[i : i + WINDOWS_PER_BATCH] for i in range(0, len(windows), WINDOWS_PER_BATCH)]
    return torch.cat([encode(torch.stack(part).to(device).float()).cpu() for part in parts]).numpy()


def score_sync(visual: np.ndarray, audio: np.ndarray, max_shift: int = MAX_SHIFT) -> SyncScore:
    """Compares frames with the speech around them.

    Args:
        visual: (n d) embeddings.
        audio: (n d) embeddings of the same windows; beyond the ends there are zeros.
        max_shift: frames to both sides.
    """
    distances = np.mean(compute_distances(visual, audio, max_shift), axis=0)
    best = int(distances.argmin())
    return SyncScore(float(np.median(distances) - distances[best]), float(distances[best]), max_shift - best)


def compute_distances(visual: np.ndarray, audio: np.ndarray, max_shift: int = MAX_SHIFT) -> np.ndarray:
    """Computes |visual i - audio (i + k)| for shifts k: (n 2 max_shift + 1), from -max_shift on."""
    padded = np.pad(audio, ((max_shift, max_shift), (0, 0)))
    shifts = range(2 * max_shift + 1)
    # As PyTorch's pairwise distance, which the released procedure uses.
    return np.stack([np.linalg.norm(visual - padded[k : k + len(visual)] + 1e-6, axis=1) for k in shifts], 1)
