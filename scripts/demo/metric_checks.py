"""How good the metric networks are, on people and clips that they have not seen."""

import cv2
import numpy as np
import torch
from einops import rearrange
from torch import nn

from scripts.demo.metric_tasks import DrawnClip, Pictures
from vexpress.evaluation.frechet import compute_frechet_distance
from vexpress.evaluation.metric_networks import CLIP_FRAMES
from vexpress.syncnet import SyncNet, compute_mfcc, count_windows, encode_clip, score_sync

DISORDER_SEED = 40_000


@torch.no_grad()
def measure_fid(network: nn.Module, pictures: Pictures) -> dict[str, float]:
    """Distances of half of unseen people from the other half as it is, blurred, recoloured and with closed mouths."""
    half = len(pictures.pixels) // 2
    one, other = pictures.pixels[:half], pictures.pixels[half:]

    def features(pixels: np.ndarray) -> np.ndarray:
        parts = torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2).split(64)
        return torch.cat([network(part) for part in parts]).double().numpy()

    reference = features(one)
    changed = {
        "halves": other,
        "blur of 1 px": np.stack([cv2.GaussianBlur(p, (0, 0), 1.0) for p in other]),
        "blur of 2 px": np.stack([cv2.GaussianBlur(p, (0, 0), 2.0) for p in other]),
        "15 % darker": (other * 0.85).astype(np.uint8),
    }
    return {name: compute_frechet_distance(features(pixels), reference) for name, pixels in changed.items()}


@torch.no_grad()
def measure_fvd(network: nn.Module, clips: list[DrawnClip]) -> dict[str, float]:
    """Distances of half of unseen clips from the other half as it is, in disorder, and standing still."""

    def features(of: list[np.ndarray]) -> np.ndarray:
        parts = [frames[: len(frames) // CLIP_FRAMES * CLIP_FRAMES] for frames in of]
        pixels = torch.from_numpy(np.concatenate(parts)).float() / 127.5 - 1
        batches = rearrange(pixels, "(n f) h w c -> n c f h w", f=CLIP_FRAMES).split(16)
        return torch.cat([network(batch) for batch in batches]).double().numpy()

    rng = np.random.default_rng(DISORDER_SEED)
    smalls = [clip.small for clip in clips]
    one, other = smalls[::2], smalls[1::2]
    changed = {
        "halves": other,
        "disorder": [
            frames[
                np.arange(len(frames)) + rng.integers(0, 3, len(frames)) * (np.arange(len(frames)) < len(frames) - 3)
            ]
            for frames in other
        ],
        "still": [np.repeat(frames[::CLIP_FRAMES], CLIP_FRAMES, 0) for frames in other],
    }
    reference = features(one)
    return {name: compute_frechet_distance(features(of), reference) for name, of in changed.items()}


def measure_sync(network: SyncNet, clips: list[DrawnClip]) -> dict[str, float]:
    """Sync-C and Sync-D of unseen clips, with the sound of others, and how often a shift of 4 frames is found."""
    encoded = []
    for clip in clips:
        num_windows = count_windows(len(clip.crops), len(clip.samples))
        encoded.append(encode_clip(network, clip.crops, compute_mfcc(clip.samples), num_windows))
    true = [score_sync(of.visual, of.audio) for of in encoded]
    shifted = [score_sync(of.visual[:-4], of.audio[4:]) for of in encoded]
    swapped = [score_sync(of.visual, other.audio) for of, other in zip(encoded, encoded[1:] + encoded[:1])]
    return {
        "sync_c": float(np.mean([score.confidence for score in true])),
        "sync_d": float(np.mean([score.distance for score in true])),
        "sync_c of other sound": float(np.mean([score.confidence for score in swapped])),
        "sync_d of other sound": float(np.mean([score.distance for score in swapped])),
        "offset within 1 frame, %": 100 * float(np.mean([abs(score.offset) <= 1 for score in true])),
        "shift of 4 found within 1 frame, %": 100 * float(np.mean([abs(score.offset - 4) <= 1 for score in shifted])),
    }
