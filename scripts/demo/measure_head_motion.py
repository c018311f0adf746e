"""Measures motion from speech on drawn people of unseen voices, whose law is known (`scripts.demo.head_motion_law`).

python -m scripts.demo.measure_head_motion --data_dir runs/motion/heldout --network_dir runs/motion/export
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from scripts.demo.drawn_faces import EYE_X, EYE_Y, NOSE_Y
from scripts.demo.head_motion_law import LAW_SHARE
from vexpress.cli.parser import ArgumentParser
from vexpress.cli.program import run_program
from vexpress.data.formats import load_metadata
from vexpress.files import replacing
from vexpress.media.retargeting import measure_pose, move_face, place_points
from vexpress.model_folder import LAYOUT
from vexpress.models.head_motion import HeadMotion, motion_from_speech
from vexpress.training.head_motion import NUMBERS, render_curves
from vexpress.training.head_motion_data import MotionClip, load_clip
from vexpress.weights.head_motion import load_head_motion

LAW_OF = {"shift x": "x", "shift y": "y", "size": "scale", "roll": "roll", "turn": "yaw"}
"""Number of the motion -> the law's part in it; drawn heads do not nod."""
COLUMNS = [NUMBERS.index(name) for name in LAW_OF]
BANDS_HZ = ((0.25, 0.5), (0.5, 1), (1, 2), (2, 4))
LEAST_POWER = 0.05  # of all; a band with less is not judged
EDGE_FRAMES = 60
LONG_SECONDS = 600
FRAME_PX = 512
EYES_RATIO = 0.223 / (2 * EYE_X)  # of drawn heads: how far the nose is ahead of the eyes, in distances of the eyes
NOSE_RATIO = (NOSE_Y - EYE_Y) / (2 * EYE_X)


@dataclass(frozen=True)
class HeldoutMotion:
    """A clip of an unseen voice, with the law's part of its motion, (f 5)."""

    clip: MotionClip
    law: np.ndarray


def load_heldout(data_dir: Path, network: HeadMotion) -> list[HeldoutMotion]:
    """Reads the clips of a data set of `head_motion_law`."""
    found = []
    for record in load_metadata(data_dir / "metadata.json"):
        with np.load(data_dir / "labels" / f"{record.video.stem}.npz") as labels:
            law = np.stack([labels[name] for name in LAW_OF.values()], 1)
        found.append(HeldoutMotion(load_clip(record, network), law))
    return found


def make(network: HeadMotion, clip: MotionClip, seed: int) -> np.ndarray:
    """Motion (f 6) to a clip's speech."""
    return motion_from_speech(network, clip.hidden_states.float(), len(clip.motion), clip.fps, seed).numpy()


def correlations(motions: Sequence[np.ndarray], laws: Sequence[np.ndarray]) -> dict[str, float]:
    """Pearson's r of each number with the law's part, over all clips, each about its own mean.

    The clips' ends are left out: all begin and end with silence, which would make any two of them alike.
    """

    def joined(tracks: Sequence[np.ndarray]) -> np.ndarray:
        inner = [track[EDGE_FRAMES:-EDGE_FRAMES] for track in tracks]
        return np.concatenate([track - track.mean(0) for track in inner])

    motion, law = joined(motions)[:, COLUMNS], joined(laws)
    return {name: float(np.corrcoef(motion[:, i], law[:, i])[0, 1]) for i, name in enumerate(LAW_OF)}


def spectrum_ratios(made: Sequence[np.ndarray], true: Sequence[np.ndarray], fps: float, order: int) -> dict:
    """Amplitude of what is made over that of what is true, of speed (order 1) or acceleration (order 2).

    Returns:
        For each number, the ratio of the root mean squares, and those of the bands that hold a part of the power.
    """

    def power(motions: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        spectra = []
        for motion in motions:
            changes = np.diff(motion[:, COLUMNS], n=order, axis=0)
            window = np.hanning(len(changes))[:, None]
            spectra.append(np.abs(np.fft.rfft(changes * window, axis=0)) ** 2)
        return np.mean(spectra, axis=0), np.fft.rfftfreq(len(changes), 1 / fps)

    (made_power, frequencies), (true_power, _) = power(made), power(true)
    ratios = {}
    for i, name in enumerate(LAW_OF):
        parts = {"all": np.sqrt(made_power[:, i].sum() / true_power[:, i].sum())}
        for low, high in BANDS_HZ:
            band = (frequencies >= low) & (frequencies < high)
            if true_power[band, i].sum() > LEAST_POWER * true_power[:, i].sum():
                parts[f"{low:g}-{high:g} Hz"] = np.sqrt(made_power[band, i].sum() / true_power[band, i].sum())
        ratios[name] = {key: round(float(value), 3) for key, value in parts.items()}
    return ratios


def variety(network: HeadMotion, heldout: Sequence[HeldoutMotion], num_seeds: int) -> dict[str, float]:
    """Deviation over seeds at one speech, over that of what the data's law does not tell (so many clips' own)."""
    made = np.concatenate([np.stack([make(network, h.clip, s) for s in range(num_seeds)], 1) for h in heldout])
    spread = np.sqrt(made.var(axis=1, ddof=1).mean(0))[COLUMNS]
    untold = np.sqrt((1 - LAW_SHARE) * np.concatenate([h.clip.motion for h in heldout]).var(0))[COLUMNS]
    return {name: round(float(a / b), 3) for name, a, b in zip(LAW_OF, spread, untold)}


def random_portrait(rng: np.random.Generator) -> Tensor:
    """The V-Kps (3 2) px of a drawn person at rest, somewhere about the middle of the frame."""
    unit = 0.25 * FRAME_PX * np.exp(rng.uniform(-0.1, 0.1))
    size, turn = np.log(2 * EYE_X * unit * rng.uniform(0.93, 1.05)), rng.uniform(-0.25, 0.25)
    place = FRAME_PX * (0.5 + rng.uniform(-0.05, 0.05, 2))
    below = NOSE_RATIO * rng.uniform(0.95, 1.07)
    return place_points(torch.tensor([*place, size, rng.uniform(-0.1, 0.1), turn, below]), EYES_RATIO)


def distortion(reference: Tensor, kps: Tensor) -> float:
    """Largest error, as a share, of the points' distances against those of the rigid head in the same pose."""
    rest, pose = measure_pose(reference, EYES_RATIO), measure_pose(kps, EYES_RATIO)
    rigid = pose.clone()
    rigid[:, 5] = rest[5]
    pairs = torch.combinations(torch.arange(3))
    points = (kps.double(), place_points(rigid, EYES_RATIO))
    lengths = [(p[:, pairs[:, 0]] - p[:, pairs[:, 1]]).norm(dim=-1) for p in points]
    return (lengths[0] / lengths[1] - 1).abs().max().item()


def long_motion(network: HeadMotion, heldout: Sequence[HeldoutMotion], fps: float) -> dict[str, float]:
    """Ten minutes: each minute's mean and deviation against those of the whole."""
    states = [h.clip.hidden_states.float() for h in heldout]
    per_second = len(states[0]) / heldout[0].clip.seconds
    while sum(map(len, states)) < LONG_SECONDS * per_second:
        states += states
    states = torch.cat(states)[: round(LONG_SECONDS * per_second)]
    motion = motion_from_speech(network, states, round(LONG_SECONDS * fps), fps, seed=0).numpy()[:, COLUMNS]
    minutes = motion.reshape(10, -1, len(COLUMNS))
    deviation = motion.std(0)
    return {
        "largest mean of a minute, in deviations": round(float(np.abs(minutes.mean(1) / deviation).max()), 3),
        "last minute's deviation over the first's": [
            round(float(v), 3) for v in minutes[-1].std(0) / minutes[0].std(0)
        ],
        "largest value in the last minute over that in all others": [
            round(float(v), 3) for v in np.abs(minutes[-1]).max(0) / np.abs(minutes[:-1]).max((0, 1))
        ],
    }


def measure(network: HeadMotion, heldout: Sequence[HeldoutMotion]) -> dict:
    """All figures."""
    laws, true = [h.law for h in heldout], [h.clip.motion.numpy() for h in heldout]
    made = [make(network, h.clip, seed=i) for i, h in enumerate(heldout)]
    others = laws[1:] + laws[:1]
    fps = heldout[0].clip.fps
    rng = np.random.default_rng(0)
    inside, bent = [], []
    for motion in made:
        reference = random_portrait(rng)
        for strength in (1.0, 1.5):
            kps = move_face(reference, strength * torch.from_numpy(motion), FRAME_PX, FRAME_PX)
            inside.append(((kps > 0) & (kps < FRAME_PX)).all().item())
            bent.append(distortion(reference, kps))
    return {
        "clips": len(heldout),
        "r with the law": _rounded(correlations(made, laws)),
        "r of the true motion with the law: the most there is": _rounded(correlations(true, laws)),
        "r with the law of other speech": _rounded(correlations(made, others)),
        "the same of the true motion": _rounded(correlations(true, others)),
        "speed, made over true": spectrum_ratios(made, true, fps, 1),
        "acceleration, made over true": spectrum_ratios(made, true, fps, 2),
        "spread over seeds, made over true": variety(network, heldout[:10], 8),
        "clips within the frame at strength 1 and 1.5": float(np.mean(inside)),
        "largest distortion of the points' distances, %": round(100 * max(bent), 2),
        "ten minutes": long_motion(network, heldout, fps),
    }


def _rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 3) for name, value in values.items()}


def main(arguments: list[str] | None = None) -> None:
    """Prints and writes the figures."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", type=Path, required=True, help="data set of unseen voices, with audio embeds")
    parser.add_argument("--network_dir", type=Path, default=Path("vexpress/demo_pack"), help="model folder")
    parser.add_argument("--output_path", type=Path, help="JSON to write")
    parser.add_argument("--curves_path", type=Path, help="PNG to write: true and made curves of one clip")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    network = load_head_motion(args.network_dir / f"{LAYOUT['head_motion_path']}.safetensors")
    heldout = load_heldout(args.data_dir, network)
    text = json.dumps(measure(network, heldout), indent=1)
    print(text)
    if args.output_path:
        with replacing(args.output_path) as temporary:
            temporary.write_text(f"{text}\n")
    if args.curves_path:
        render_curves(args.curves_path, network, heldout[0].clip)


if __name__ == "__main__":
    sys.exit(run_program(main))
