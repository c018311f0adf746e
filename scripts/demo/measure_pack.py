"""Measures the demo pack on its held-out clips: does the mouth follow the speech, is the picture the person's?

    python scripts/demo/measure_pack.py --model_dir vexpress/demo_pack
    python scripts/demo/measure_pack.py --clips_dir runs/demo/heldout_choice --guidance_scale 4 --context_frames 24

The second tries another sampling, by flags of inference.py, on clips other than those that the figures are told of.
Each clip is generated from one of its own later frames, its own keypoints and some speech; mouths are measured by the
colour-based meter of vexpress/evaluation/mouth.py, which uses no network. `true frames` is that meter's own ceiling.
"""

import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from scripts.demo.mouth_meter import STILL, measure_mouth
from vexpress.cli import generate as inference
from vexpress.cli.parser import ArgumentParser
from vexpress.cli.program import run_program
from vexpress.data.formats import load_face_info
from vexpress.errors import InputError
from vexpress.files import replacing
from vexpress.logs import set_up_logging
from vexpress.media.audio import load_audio
from vexpress.media.faces import FaceAnalyzer
from vexpress.media.video import read_frames
from vexpress.model_folder import LAYOUT
from vexpress.pipeline import VExpressPipeline

logger = logging.getLogger("measure_pack")

NUM_FRAMES = 48
LARGEST_LAG = 5
PATCH = 1  # px around a probe


@dataclass(frozen=True)
class Clip:
    """A held-out clip.

    Attributes:
        reference: a later frame than those that are generated, eyes open.
        frames: (f H W 3) uint8, the true ones.
        kps: (f 5 2) px.
        mouth: (f 2), aperture and width.
        probes: (f 3 2) px, in skin, hair and background.
        waveform: (n) at 16 kHz, as long as the frames.
    """

    name: str
    reference: np.ndarray
    frames: np.ndarray
    kps: np.ndarray
    mouth: np.ndarray
    probes: np.ndarray
    waveform: torch.Tensor


def load_clips(folder: Path, num_frames: int = NUM_FRAMES) -> list[Clip]:
    """Reads the clips of a drawn dataset."""
    clips = []
    for row in json.loads((folder / "metadata.json").read_text(encoding="utf-8")):
        frames = np.stack([frame for _, frame in read_frames(folder / row["video"])])
        info = load_face_info(folder / row["face_info"])
        with np.load(folder / row["labels"]) as labels:
            mouth, probes = labels["mouth"], labels["probes"]
        eyes = np.ptp(info.landmark_2d_106[:, 33:43, 1], axis=1)
        reference = num_frames + int(eyes[num_frames:].argmax())
        waveform = load_audio(folder / row["video"]).resampled_mono(16000)[: round(num_frames / row["fps"] * 16000)]
        parts = (part[:num_frames] for part in (frames, info.kps, mouth, probes))
        clips.append(Clip(Path(row["video"]).stem, frames[reference], *parts, waveform))
    return clips


def generate(pipeline: VExpressPipeline, clip: Clip, waveform: torch.Tensor | None = None, **options) -> np.ndarray:
    """Makes the clip anew, (f H W 3) uint8; with other speech if given."""
    frames = pipeline(
        Image.fromarray(clip.reference),
        clip.waveform if waveform is None else waveform,
        torch.from_numpy(clip.kps[:, :3]),
        output_type="generator",
        **options,
    ).frames
    return np.stack(list(frames))


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Pearson's r over the frames where both are known; 0 where one does not move."""
    known = np.isfinite(one) & np.isfinite(other)
    one, other = one[known], other[known]
    if len(one) < 2 or one.std() < 1e-6 or other.std() < 1e-6:
        return 0.0
    return float(np.corrcoef(one, other)[0, 1])


def abs_r_unless_still(mouth: np.ndarray, true: np.ndarray) -> float:
    """Absolute r of an aperture that was measured; 0 where it moves by less than `STILL`: r would be of noise."""
    return abs(correlation(mouth, true)) if np.nanstd(mouth) >= STILL else 0.0


def best_lag(measured: np.ndarray, true: np.ndarray) -> int:
    """The shift, in frames, at which both agree best; positive where the measured one is late."""
    num_frames = len(true)

    def shifted(lag: int) -> float:
        first, last = max(0, lag), num_frames + min(0, lag)
        return correlation(measured[first:last], true[first - lag : last - lag])

    return max(range(-LARGEST_LAG, LARGEST_LAG + 1), key=lambda lag: (shifted(lag), -abs(lag)))


def colour_error(frames: np.ndarray, clip: Clip) -> np.ndarray:
    """(3) mean absolute difference /255 of skin, hair and background between generated and true frames."""
    errors = []
    for frame, true, probes in zip(frames, clip.frames, np.rint(clip.probes).astype(int)):
        spots = [(slice(y - PATCH, y + PATCH + 1), slice(x - PATCH, x + PATCH + 1)) for x, y in probes]
        errors.append([np.abs(frame[spot].mean((0, 1)) - true[spot].mean((0, 1))).mean() for spot in spots])
    return np.mean(errors, axis=0)


def flicker(frames: np.ndarray) -> float:
    """Mean absolute difference of neighbouring frames, /255."""
    return float(np.abs(np.diff(frames.astype(np.int16), axis=0)).mean())


def kps_errors(analyzer: FaceAnalyzer, frames: np.ndarray, kps: np.ndarray, step: int = 4) -> list[float]:
    """Distances of detected eyes and nose from where they shall be, in % of the frame's width; NaN: no face."""
    errors = []
    for frame, target in zip(frames[::step], kps[::step, :3]):
        faces = analyzer.detect(frame)
        found = min((np.linalg.norm(face.v_kps - target, axis=1).mean() for face in faces), default=float("nan"))
        errors.append(100 * found / frame.shape[1])
    return errors


def follow(generated: Sequence[np.ndarray], clips: Sequence[Clip]) -> tuple[np.ndarray, list[np.ndarray]]:
    """r of aperture and width per clip, (n 2), and the measured mouths."""
    mouths = [measure_mouth(frames, clip.kps) for frames, clip in zip(generated, clips)]
    return np.array([[correlation(m[:, i], c.mouth[:, i]) for i in (0, 1)] for m, c in zip(mouths, clips)]), mouths


def least_alike(clip: Clip, clips: Sequence[Clip]) -> Clip:
    """The clip whose mouth moves least like this one's, so that following one is not following the other."""
    return min(clips, key=lambda other: correlation(clip.mouth[:, 0], other.mouth[:, 0]))


def measure(pipeline: VExpressPipeline, analyzer: FaceAnalyzer, clips: list[Clip], **options) -> dict[str, float]:
    """All figures of the pack, each a mean over the clips.

    r knows no size: that of a still mouth is one of the meter's noise, also for frames drawn with a closed mouth (0.19
    on average). So a silenced mouth that moves by less than `STILL` counts as one that follows nothing. The plain r,
    that with the mouths of other clips, which is chance, and how much it moves are told, too.
    """
    generated = [generate(pipeline, clip, **options) for clip in clips]
    r, mouths = follow(generated, clips)
    ceiling, _ = follow([clip.frames for clip in clips], clips)
    swapped, silent, plain, movement = [], [], [], []
    own = np.eye(len(clips), dtype=bool)
    for clip in clips:
        other = least_alike(clip, clips)
        mouth = measure_mouth(generate(pipeline, clip, other.waveform, **options), clip.kps)[:, 0]
        swapped.append(correlation(mouth, other.mouth[:, 0]) - correlation(mouth, clip.mouth[:, 0]))
        mouth = measure_mouth(generate(pipeline, clip, torch.zeros_like(clip.waveform), **options), clip.kps)[:, 0]
        silent.append(abs_r_unless_still(mouth, clip.mouth[:, 0]))
        plain.append([abs(correlation(mouth, each.mouth[:, 0])) for each in clips])
        movement.append(np.nanstd(mouth) / clip.mouth[:, 0].std())
    plain = np.array(plain)
    errors = np.concatenate([kps_errors(analyzer, frames, clip.kps) for frames, clip in zip(generated, clips)])
    skin, hair, background = np.mean([colour_error(frames, clip) for frames, clip in zip(generated, clips)], axis=0)
    return {
        "aperture_r": r[:, 0].mean(),
        "aperture_r_worst": r[:, 0].min(),
        "aperture_r_true_frames": ceiling[:, 0].mean(),
        "width_r": r[:, 1].mean(),
        "width_r_true_frames": ceiling[:, 1].mean(),
        "swapped_difference": np.mean(swapped),
        "silenced_abs_r": np.mean(silent),
        "silenced_abs_r_plain": plain[own].mean(),
        "silenced_abs_r_by_chance": plain[~own].mean(),
        "silenced_movement": np.mean(movement),
        "lag_frames": np.median([best_lag(m[:, 0], clip.mouth[:, 0]) for m, clip in zip(mouths, clips)]),
        "kps_error_percent": np.nanmean(errors),
        "frames_without_face_percent": 100 * np.isnan(errors).mean(),
        "skin_error": skin,
        "hair_error": hair,
        "background_error": background,
        "flicker_ratio": np.mean([flicker(f) / flicker(clip.frames) for f, clip in zip(generated, clips)]),
    }


def load_options(model_dir: Path, flags: Sequence[str] = ()) -> dict:
    """The pack's sampling, or what flags of inference.py make of it, as arguments of the pipeline.

    Raises:
        InputError: a flag that says nothing of sampling, or a value out of range.
    """
    allowed = (*inference.SAMPLING, "no_median_filter")
    for flag in flags:
        if flag.startswith("--") and flag[2:].partition("=")[0] not in allowed:
            raise InputError(f"{flag}: allowed are --{', --'.join(allowed)}, and those of --help")
    return inference.sampling_options(inference.parse_generation_flags(model_dir, flags))


def main(arguments: list[str] | None = None) -> None:
    """Prints and writes the figures."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model_dir", type=Path, default=Path("vexpress/demo_pack"))
    parser.add_argument("--clips_dir", type=Path, help="drawn dataset; unset: MODEL_DIR/heldout")
    parser.add_argument("--output_path", type=Path, help="JSON to write")
    parser.add_argument("--num_clips", type=int, default=10)
    args, sampling_flags = parser.parse_known_args(arguments)
    set_up_logging(logging.WARNING)
    options = load_options(args.model_dir, sampling_flags)
    pipeline = VExpressPipeline.from_pretrained(args.model_dir)
    pipeline.set_progress_bar_config(disable=True)
    analyzer = FaceAnalyzer(args.model_dir / LAYOUT["insightface_model_path"], torch.device("cpu"))
    clips = load_clips(args.clips_dir or args.model_dir / "heldout")[: args.num_clips]
    figures = measure(pipeline, analyzer, clips, **options)
    figures = {name: round(float(value), 3) for name, value in figures.items()}
    if args.output_path:
        with replacing(args.output_path) as temporary:
            temporary.write_text(json.dumps(figures, indent=1) + "\n")
    print("\n".join(f"{name:28} {value:8.3f}" for name, value in figures.items()))


if __name__ == "__main__":
    sys.exit(run_program(main))
