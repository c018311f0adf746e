"""Times reading a training sample, and its frames in two ways."""

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from vexpress.benchmarks.measuring import Table
from vexpress.benchmarks.settings import DataSettings
from vexpress.data.config import DataConfig
from vexpress.data.dataset import TalkingFaceDataset
from vexpress.data.formats import ClipRecord, FaceInfo, save_audio_embeds, save_face_info, save_metadata
from vexpress.media.random_access import read_frames_at
from vexpress.media.video import read_frames, write_video

CLIP_FPS = 30
STATES_HZ, STATE_WIDTH = 50, 768  # hidden states of wav2vec2-base
SAMPLE, NEEDED, WHOLE = "a training sample", "its frames: only those decoded", "its frames: the whole clip decoded"


def write_noise_clip(folder: Path, settings: DataSettings) -> Path:
    """Writes a clip of moving noise, with what training needs to know of it; returns its metadata file."""
    width, height, num_frames = settings.width, settings.height, round(settings.clip_seconds * CLIP_FPS)
    noise = np.asarray(Image.effect_noise((width // 8, height // 8), 100).resize((width, height)).convert("RGB"))
    write_video(folder / "clip.mp4", (np.roll(noise, (i, 2 * i), axis=(0, 1)) for i in range(num_frames)), CLIP_FPS)
    landmarks = np.random.default_rng(0).uniform(0.3, 0.7, (num_frames, 106, 2)) * (width, height)
    face_info = FaceInfo(landmarks[:, :2].reshape(-1, 4), landmarks[:, :5], landmarks, np.ones(num_frames))
    save_face_info(folder / "face_info.npz", face_info)
    states = torch.zeros(round(settings.clip_seconds * STATES_HZ), STATE_WIDTH)
    save_audio_embeds(folder / "audio_embeds.safetensors", states)
    record = ClipRecord(folder / "clip.mp4", folder / "face_info.npz", folder / "audio_embeds.safetensors")
    save_metadata(folder / "meta.json", [record])
    return folder / "meta.json"


def decode_whole_clip(path: str, frame_ids: Sequence[int]) -> np.ndarray:
    """The plain way to do what `read_frames_at` does: decodes all frames, keeps some."""
    kept = {i: pixels for i, (_, pixels) in enumerate(read_frames(path)) if i in frame_ids}
    return np.stack([kept[i] for i in frame_ids])


def measure(settings: DataSettings) -> Table:
    """Reads each sample in turns with its frames alone."""
    seconds = dict.fromkeys((SAMPLE, NEEDED, WHOLE), 0.0)
    difference = 0

    def timed(row: str, function, *arguments):
        start = time.perf_counter()
        result = function(*arguments)
        seconds[row] += time.perf_counter() - start
        return result

    with tempfile.TemporaryDirectory() as folder:
        meta_path = settings.meta_path or write_noise_clip(Path(folder), settings)
        config = DataConfig(
            [str(meta_path)],
            train_width=settings.width,
            train_height=settings.height,
            num_frames=settings.num_frames,
        )
        samples = TalkingFaceDataset(config, seed=0)
        for number in range(settings.num_samples):
            sample = timed(SAMPLE, samples.__getitem__, number)
            frame_ids = sample["frame_ids"].tolist()
            needed = timed(NEEDED, read_frames_at, sample["name"], frame_ids)
            whole = timed(WHOLE, decode_whole_clip, sample["name"], frame_ids)
            difference = max(difference, int(np.abs(needed.astype(np.int16) - whole).max()))
    differences = {SAMPLE: "-", NEEDED: str(difference), WHOLE: "0"}
    rows = [
        [row, f"{settings.num_samples / total:.2f}", f"{total / seconds[WHOLE]:.3f}", differences[row]]
        for row, total in seconds.items()
    ]
    return Table(["reading", "per second", "time to the whole clip's", "max difference of pixels"], rows)
