"""How drawn heads move with speech, by a stated law, and a data set of people who move so.

    python -m scripts.demo.head_motion_law --output_dir runs/motion/train --split train --num_clips 300
    vexpress extract-audio-embeddings --meta_path runs/motion/train/metadata.json --model_dir vexpress/demo_pack

The law, of the loudness e of the speech (its root mean square relative to the clip's loud level) and its brightness b
(how much the high frequencies prevail while there is speech), each averaged with a Gaussian of so many seconds:

    stress = e(0.12) - e(0.7), 0.08 s late      the head dips with it:                    shift y, down
    phrase = e(0.4) - e(1.2)                    the head sways with it:                   shift x and roll
    colour = b(0.25) - b(0.9)                   the head turns with it:                   yaw
    effort = phrase, 0.3 s late                 the head comes nearer:                    scale

Each is divided by its deviation over the training speech, and what is beyond 2.5 of them is cut off. `LAW_SHARE` of the
motion's variance is the law's; the rest is the drawn people's random motion, which no speech tells.
"""

import dataclasses
import sys
from pathlib import Path

import numpy as np
import scipy.ndimage
import scipy.signal
import torch

from scripts.demo.drawn_people import Motion, mouth_from_speech, random_motion, random_person
from scripts.demo.make_drawn_dataset import (
    SPLITS,
    parse_dataset_arguments,
    random_speech,
    write_dataset,
    write_labelled_clip,
)
from vexpress.cli.parser import ArgumentParser
from vexpress.cli.program import run_program
from vexpress.media.audio import WAV2VEC2_RATE_HZ

STEP_HZ = 100
LOUD_PERCENTILE = 90
LOW_BAND_HZ, HIGH_BAND_HZ = (150, 1000), (1500, 5000)
SILENCE_LEVEL = 0.06  # of the loud level
LAW_SHARE = 0.7
REACH = {"x": 0.012, "y": 0.009, "roll": 0.035, "yaw": 0.09, "scale": 0.015}
"""Deviation of each number of the whole motion: that of `random_motion`."""
DEVIATION = {"stress": 0.18, "phrase": 0.078, "colour": 0.14}
"""Of the law's quantities over the training speech."""
CUT = 2.5


def law_from_speech(waveform: np.ndarray, sample_rate_hz: int, num_frames: int, fps: float) -> dict[str, np.ndarray]:
    """The part of a head's motion that speech decides.

    Args:
        waveform: (n) mono.
        sample_rate_hz: of the waveform; 12 kHz or more.
        num_frames: of the video; likewise its fps.

    Returns:
        By the names of REACH, (num_frames) each: x and y in shares of the picture's size, roll and yaw in rad, and the
        logarithm of the scale; at the middle of each frame.
    """
    num_steps = int(np.ceil(num_frames / fps * STEP_HZ)) + 1

    def level(band_hz: tuple[float, float]) -> np.ndarray:
        """(num_steps) root mean square within a band of frequencies."""
        filter_ = scipy.signal.butter(2, band_hz, "bandpass", fs=sample_rate_hz, output="sos")
        power = np.square(scipy.signal.sosfiltfilt(filter_, waveform.astype(np.float64)))
        edges = np.minimum((np.arange(num_steps + 1) / STEP_HZ * sample_rate_hz).astype(int), len(power))
        power = np.diff(np.concatenate([[0], np.cumsum(power)])[edges]) / np.maximum(1, np.diff(edges))
        return np.sqrt(scipy.ndimage.gaussian_filter1d(np.maximum(power, 0), 0.045 * STEP_HZ))

    def averaged(track: np.ndarray, seconds: float) -> np.ndarray:
        return scipy.ndimage.gaussian_filter1d(track, seconds * STEP_HZ, mode="nearest")

    energy = level((80, 5500))
    loud = max(np.percentile(energy[energy > 0.1 * energy.max()], LOUD_PERCENTILE) if energy.any() else 0, 1e-5)
    loudness = np.clip(energy / loud, 0, 1.5)
    low, high = level(LOW_BAND_HZ), level(HIGH_BAND_HZ)
    spoken = np.clip((loudness - SILENCE_LEVEL) / 0.15, 0, 1)
    brightness = spoken * np.clip(np.log((high + 0.01 * loud) / (low + 0.01 * loud)) + 1.2, -2, 2)

    stress = averaged(loudness, 0.12) - averaged(loudness, 0.7)
    phrase = averaged(loudness, 0.4) - averaged(loudness, 1.2)
    colour = averaged(brightness, 0.25) - averaged(brightness, 0.9)
    times, middles = (np.arange(num_steps) + 0.5) / STEP_HZ, (np.arange(num_frames) + 0.5) / fps

    def moved(track: np.ndarray, name: str, reach: float, delay_seconds: float = 0.0) -> np.ndarray:
        # The soft cut keeps the curve smooth.
        track = CUT * np.tanh(track / DEVIATION[name] / CUT)
        return np.sqrt(LAW_SHARE) * reach * np.interp(middles - delay_seconds, times, track)

    return {
        "x": moved(phrase, "phrase", REACH["x"]),
        "y": moved(stress, "stress", REACH["y"], 0.08),
        "roll": moved(phrase, "phrase", REACH["roll"]),
        "yaw": moved(colour, "colour", REACH["yaw"]),
        "scale": moved(phrase, "phrase", REACH["scale"], 0.3),
    }


def speaking_motion(rng: np.random.Generator, law: dict[str, np.ndarray], fps: float) -> Motion:
    """Random motion and blinks, and the law's part on top of it; the whole moves as much as `random_motion`."""
    wander = random_motion(rng, len(law["x"]), fps, amount=float(np.sqrt(1 - LAW_SHARE)))
    return dataclasses.replace(
        wander,
        shift=wander.shift + np.stack([law["x"], law["y"]], 1),
        roll=wander.roll + law["roll"],
        yaw=wander.yaw + law["yaw"],
        scale=wander.scale * np.exp(law["scale"]),
    )


def write_moving_clip(
    index: int, folder: Path, split: str, seed: int, num_frames: int, fps: int, size_px: int
) -> dict[str, object]:
    """Writes one clip with its labels and returns its row of the metadata."""
    torch.set_num_threads(1)
    rng = np.random.default_rng((seed, 1 + sorted(SPLITS).index(split), index))
    waveform, facts = random_speech(rng, split, round(num_frames / fps * WAV2VEC2_RATE_HZ))
    mouth = mouth_from_speech(waveform, WAV2VEC2_RATE_HZ, num_frames, fps)
    law = law_from_speech(waveform, WAV2VEC2_RATE_HZ, num_frames, fps)
    person, motion = random_person(rng), speaking_motion(rng, law, fps)
    name = f"{split}_{index:04d}"
    return write_labelled_clip(folder, name, person, motion, mouth, waveform, fps, size_px, {"crf": 14}, **law) | facts


def main(arguments: list[str] | None = None) -> None:
    """Writes the data set."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    args = parse_dataset_arguments(parser, arguments, num_clips=320, seconds=8.0, size=64)
    write_dataset(args, write_moving_clip, "drawn people who move as they speak")


if __name__ == "__main__":
    sys.exit(run_program(main))
