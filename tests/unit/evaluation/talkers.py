"""Cartoon talkers whose skin is as bright as their speech is loud, and networks without training that measure them.

`ColourDetector` finds the face of `draw_face` by its coloured points. `loudness_syncnet` is a real SyncNet whose
weights pass one number through: brightness in one tower, loudness in the other, so that distances have a known minimum.
"""

import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scripts.demo.drawn_faces import face_info, render_frame
from scripts.demo.drawn_people import mouth_from_speech, random_motion, random_person
from tests.face_models import COLOURS, draw_face
from vexpress.data.formats import save_face_info
from vexpress.evaluation.features import ClipFeatures, FrameFeatures
from vexpress.evaluation.measure import Networks
from vexpress.media.audio import Audio
from vexpress.media.faces import Face
from vexpress.media.video import write_video
from vexpress.network_files import EXTRA_FILE
from vexpress.syncnet import SyncNet, SyncNetConfig, compute_mfcc

FPS, RATE_HZ, SIZE_PX = 25, 16000, 96
SYNC_SIZES = SyncNetConfig(80, (2, 1, 1, 1, 1, 1), (2, 1, 1, 1, 1, 1), hidden_width=1, embedding_width=1)
DARKEST, PER_NEPER = 110, 14.0  # skin in silence, and how much brighter per unit of the logarithm of the energy
QUIETEST = 14.0
MIDDLE = 205  # brightness of the usual speech; embeddings are relative to it, since beyond the ends they are zero


def make_speech(seed: int, num_frames: int) -> np.ndarray:
    """(n) float32: noise, loud and quiet in turn for some frames each."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(4, 9, num_frames)
    levels = np.where(np.arange(num_frames) % 2, rng.uniform(-5, -4, num_frames), rng.uniform(-2, -1, num_frames))
    loudness = np.exp(np.repeat(levels, lengths)[:num_frames])
    samples = rng.normal(0, 0.5, num_frames * RATE_HZ // FPS)
    return (samples * np.repeat(loudness, RATE_HZ // FPS)).clip(-1, 1).astype(np.float32)


def make_frames(speech: np.ndarray, num_frames: int, shift: int = 0, amount: float = 1.0) -> np.ndarray:
    """(f H W 3) uint8: a head that sways and is as bright as its speech, `shift` frames late."""
    energy = compute_mfcc(np.rint(speech * 32768))[:, 0]
    frames = np.full((num_frames, SIZE_PX, SIZE_PX, 3), 20, np.uint8)
    for index, frame in enumerate(frames):
        heard = int(np.clip(index - shift, 0, num_frames - 1)) * 4
        skin = DARKEST + PER_NEPER * (energy[heard : heard + 4].max(initial=QUIETEST) - QUIETEST)
        centre = (SIZE_PX / 2 + 3 * amount * np.sin(index / 4), SIZE_PX * 0.45)
        draw_face(frame, centre, 24, (int(np.clip(skin, 0, 250)),) * 3)
    return frames


def write_talker(path: Path, seed: int, num_frames: int = 40, shift: int = 0, amount: float = 1.0) -> Path:
    """Writes a talker; the same seed says the same."""
    path.parent.mkdir(parents=True, exist_ok=True)
    speech = make_speech(seed, num_frames)
    write_video(path, make_frames(speech, num_frames, shift, amount), FPS, Audio(speech[None], RATE_HZ), crf=8)
    return path


def write_drawn(folder: Path, num_clips: int, num_frames: int = 32, size_px: int = 96) -> Path:
    """A dataset of drawn faces with labels, of two languages."""
    rows = []
    for index in range(num_clips):
        rng = np.random.default_rng(index)
        person, motion = random_person(rng), random_motion(rng, num_frames, FPS)
        speech = make_speech(index, num_frames)
        mouth = mouth_from_speech(speech, RATE_HZ, num_frames, FPS)
        frames = [render_frame(person, motion.row(i), mouth[i], size_px) for i in range(num_frames)]
        folder.mkdir(exist_ok=True)
        sound = Audio(speech[None], RATE_HZ)
        write_video(folder / f"c{index}.mp4", (f.pixels for f in frames), FPS, sound, crf=10)
        save_face_info(folder / f"c{index}.npz", face_info(frames))
        np.savez(folder / f"c{index}_labels.npz", mouth=mouth)
        rows.append({
            "video": f"c{index}.mp4", "face_info": f"c{index}.npz", "audio_embeds": "none.safetensors",
            "labels": f"c{index}_labels.npz", "language": ("fi", "sv")[index % 2],
        })  # fmt: skip
    (folder / "metadata.json").write_text(json.dumps(rows))
    return folder / "metadata.json"


class ColourDetector:
    """Finds one face per image, as `FaceAnalyzer` does; the embedding is the face's own colours, coarsely."""

    def detect(self, image: np.ndarray) -> list[Face]:
        points = []
        for colour in COLOURS:
            rows, columns = np.nonzero(np.abs(image.astype(int) - colour).sum(-1) < 200)
            if len(rows) < 3:
                return []
            points.append((columns.mean() + 0.5, rows.mean() + 0.5))
        kps = np.array(points, np.float32)
        reach = np.linalg.norm(kps[1] - kps[0]) * np.array([1.0, 1.3])
        bbox = np.concatenate([kps[2] - reach, kps[2] + reach]).astype(np.float32)
        x1, y1, x2, y2 = bbox.clip(0).astype(int)
        crop = torch.from_numpy(np.ascontiguousarray(image[y1:y2, x1:x2])).permute(2, 0, 1).float()
        return [Face(bbox, kps, 1.0, None, F.adaptive_avg_pool2d(crop, 4).flatten().numpy())]


def loudness_syncnet() -> SyncNet:
    """Both towers give one number: brightness, and loudness on the same scale."""
    network = SyncNet(SYNC_SIZES).eval()
    weights = {name: torch.zeros_like(tensor) for name, tensor in network.state_dict().items()}
    for name, tensor in weights.items():
        if name.endswith("running_var") or name.endswith("weight") and tensor.ndim == 1:
            tensor.fill_(1)
        elif name.endswith("weight") and tensor.ndim > 2:  # a convolution passes its middle
            tensor[0, 0][tuple(side // 2 for side in tensor.shape[2:])] = 1
        elif name.endswith("weight"):
            tensor[0, 0] = 1
    weights["netcnnlip.0.weight"][0] = 1 / (3 * 5 * 7 * 7)  # the mean of a patch; pooling takes the brightest
    last = weights["netcnnaud.18.weight"]  # of five rows the first, which holds the energy; the mean over time
    last.zero_()
    last[0, 0, 0] = 1 / last.shape[3]
    weights["netcnnaud.18.bias"][0] = -QUIETEST
    weights["netfcaud.3.weight"][0, 0] = PER_NEPER
    weights["netfcaud.3.bias"][0] = DARKEST - MIDDLE
    weights["netfclip.3.bias"][0] = -MIDDLE
    network.load_state_dict(weights)
    return network


class ColourFeatures(nn.Module):
    """(n 3 H W) uint8 -> (n 12): the colours of quarters."""

    def forward(self, images: Tensor, return_features: bool = True) -> Tensor:
        return F.adaptive_avg_pool2d(images.float(), [4, 4]).flatten(1) + F.pad(
            (images[:, :, 1:].float() - images[:, :, :-1].float()).abs().mean([2, 3]), [0, 45]
        )


class MotionFeatures(nn.Module):
    """(n 3 16 px px) -> (n 15): how much each frame differs from the one before."""

    def forward(
        self, clips: Tensor, rescale: bool = False, resize: bool = False, return_features: bool = True
    ) -> Tensor:
        return (clips[:, :, 1:] - clips[:, :, :-1]).abs().mean([1, 3, 4])


def write_feature_networks(folder: Path) -> tuple[Path, Path]:
    """Writes both as TorchScript files."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / "fid.pt", folder / "fvd.pt"
    facts = {"kind": "for tests", "frame_px": 32}
    for path, network in zip(paths, (ColourFeatures(), MotionFeatures())):
        torch.jit.save(torch.jit.script(network), str(path), _extra_files={EXTRA_FILE: json.dumps(facts)})
    return paths


def build_networks(folder: Path) -> Networks:
    """All that `evaluate` measures with."""
    fid, fvd = write_feature_networks(folder)
    frames, clips = FrameFeatures(fid), ClipFeatures(fvd)
    facts = [frames.facts, clips.facts]
    return Networks(frames, clips, loudness_syncnet(), ColourDetector(), facts)
