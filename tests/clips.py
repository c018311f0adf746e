"""Small generated clips: a drawn face that moves and talks; each frame shows its own number in black and white blocks.

`write_clip` and `write_dataset` make all files of a data set; the numbers survive video compression.
"""

import itertools
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import torch

from vexpress.audio_encoders import EncoderRecord
from vexpress.data.formats import ClipRecord, FaceInfo, save_audio_embeds, save_face_info, save_metadata
from vexpress.media.audio import Audio
from vexpress.media.video import write_video

AUDIO_DIM = 24
BLOCKS = (2, 5)  # rows and columns of blocks, a bit each, across the upper part of the frame
STATES_PER_SECOND = 50
RATE_HZ = 16000


def _blocks(size: int) -> list[tuple[slice, slice]]:
    height, width = size // 10, size // BLOCKS[1]
    return [
        (slice(row * height, (row + 1) * height), slice(column * width, (column + 1) * width))
        for row in range(BLOCKS[0])
        for column in range(BLOCKS[1])
    ]


def make_face_info(num_frames: int, size: int = 64) -> FaceInfo:
    """The face of `make_frame`, without embedding."""
    time = np.arange(num_frames)[:, None]
    centre = size * np.concatenate([0.5 + 0.04 * np.sin(time / 5), 0.62 + 0.02 * np.cos(time / 7)], axis=1)[:, None]

    def ellipse(num_points: int, x: float, y: float, width: float, height: np.ndarray | float) -> np.ndarray:
        angle = 2 * np.pi * np.arange(num_points) / num_points
        offset = np.stack(np.broadcast_arrays(x + width * np.cos(angle), y + height * np.sin(angle)), axis=-1)
        return centre + size * offset

    landmarks = ellipse(106, 0, 0, 0.22, 0.3)
    landmarks[:, 52:72] = ellipse(20, 0, 0.15, 0.08, 0.02 + 0.01 * np.sin(time))
    points = np.array([[-0.08, -0.08], [0.08, -0.08], [0, 0.02], [-0.08, 0.15], [0.08, 0.15]])
    bbox = np.concatenate([landmarks.min(axis=1), landmarks.max(axis=1)], axis=1)
    arrays = {
        "bbox": bbox,
        "kps": centre + size * points,
        "landmark_2d_106": landmarks,
        "det_score": np.ones(num_frames),
    }
    return FaceInfo(**{name: array.astype(np.float32) for name, array in arrays.items()})


def make_frame(index: int, size: int = 64) -> np.ndarray:
    """Frame number `index` of a clip: (size size 3) uint8 RGB."""
    info = make_face_info(index + 1, size)
    frame = np.full((size, size, 3), (40, 60, 90), np.uint8)
    landmarks = info.landmark_2d_106[-1]
    for points, colour in ((landmarks, (220, 170, 140)), (landmarks[52:72], (150, 30, 40))):
        cv2.fillPoly(frame, [cv2.convexHull(points.round().astype(np.int32))], colour)
    for bit, block in enumerate(_blocks(size)):
        frame[block] = 255 * (index >> bit & 1)
    return frame


def shown_index(frame: np.ndarray) -> int:
    """Reads the number off a frame (size size 3) of any range of values."""
    middle = (float(frame.min()) + float(frame.max())) / 2
    return sum(int(frame[block][1:-1, 2:-2].mean() > middle) << bit for bit, block in enumerate(_blocks(len(frame))))


def encode_video(
    path: Path,
    frames: Iterable[np.ndarray],
    fps: Fraction | int = 25,
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    times: Iterable[int] | None = None,
) -> Path:
    """Writes frames (H W 3) with the options of FFmpeg's encoder, without sound; `times` in 1 / fps, else 0, 1, ..."""
    fps, frames = Fraction(fps), list(frames)
    with av.open(path, "w") as container:
        stream = container.add_stream(codec, rate=fps, options=options or {})
        stream.pix_fmt = "yuv420p"
        stream.height, stream.width, _ = frames[0].shape
        for pixels, time in zip(frames, itertools.count() if times is None else times):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = time, 1 / fps
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_clip(
    folder: Path,
    name: str = "clip",
    num_frames: int = 60,
    size: int = 64,
    fps: Fraction | float = 25,
    audio_dim: int = AUDIO_DIM,
    suffixes: Sequence[str] = (".npz", ".safetensors"),
    seed: int = 0,
    encoder: EncoderRecord | None = None,
) -> ClipRecord:
    """Writes a clip: NAME.mp4 with sound, and its face info and audio hidden states under these suffixes."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    seconds = float(num_frames / fps)
    sound = Audio(rng.uniform(-0.3, 0.3, (1, round(seconds * RATE_HZ))).astype(np.float32), RATE_HZ)
    record = ClipRecord(
        video=folder / f"{name}.mp4",
        face_info=folder / f"{name}_face_info{suffixes[0]}",
        audio_embeds=folder / f"{name}_audio_embeds{suffixes[1]}",
        duration=seconds,
        fps=float(fps),
        num_frames=num_frames,
    )
    write_video(record.video, (make_frame(i, size) for i in range(num_frames)), fps, sound)
    save_face_info(record.face_info, make_face_info(num_frames, size))
    hidden_states = rng.standard_normal((round(seconds * STATES_PER_SECOND) - 1, audio_dim)).astype(np.float32)
    save_audio_embeds(record.audio_embeds, torch.from_numpy(hidden_states), encoder)
    return record


def write_dataset(folder: Path, num_clips: int = 2, **options) -> Path:
    """Writes clips (see `write_clip`) and their metadata; returns the path of the metadata."""
    records = [write_clip(folder, f"clip_{i}", seed=i, **options) for i in range(num_clips)]
    save_metadata(folder / "metadata.json", records)
    return folder / "metadata.json"
