"""Makes raw videos of drawn people as they are found in the wild, good ones and bad ones, with the truth beside them.

    python -m scripts.demo.make_faulty_dataset --output_dir runs/raw --num_each 20

Each video is a portrait that speaks; FAULTS says what is wrong with it, and truth.json for each video what preparation
should do: the reasons for which it rejects it, any of which is right (none: it keeps it), the number of clips, how
late the sound is. NAME.json beside NAME.mp4 says language and person.
"""

import dataclasses
import functools
import json
import multiprocessing
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from tqdm import tqdm

from scripts.demo.drawn_faces import DrawnFrame, render_frame
from scripts.demo.drawn_people import Person, mouth_from_speech, random_motion, random_person
from scripts.demo.make_drawn_dataset import random_speech
from vexpress.cli.parser import ArgumentParser
from vexpress.cli.program import run_program
from vexpress.fields import check_range
from vexpress.files import replacing
from vexpress.media.audio import WAV2VEC2_RATE_HZ as RATE_HZ
from vexpress.media.audio import Audio
from vexpress.media.video import write_video

FPS, SIZE_PX, SECONDS, MARGIN_SECONDS = 25, 256, 3.0, 0.5
LONG_SECONDS = 5.0  # of videos with a cut that leaves two clips
SHIFTS = (-5, -4, -3, -2, -1, 1, 2, 3, 4, 5)  # frames by which sound comes late
SPLIT = "heldout"


@dataclasses.dataclass
class RawVideo:
    """A video before it is written: frames (f H W 3) uint8 RGB and sound (n,) at 16 kHz that starts MARGIN_SECONDS
    before them and ends as much after.
    """

    frames: np.ndarray
    sound: np.ndarray
    drawn: list[DrawnFrame]
    person: Person
    facts: dict[str, str]


def draw_video(rng: np.random.Generator, seconds: float = SECONDS) -> RawVideo:
    """A portrait whose mouth follows its speech."""
    num_frames, margin = round(seconds * FPS), round(MARGIN_SECONDS * RATE_HZ)
    num_samples = round(seconds * RATE_HZ)
    sound, facts = random_speech(rng, SPLIT, num_samples + 2 * margin)
    mouth = mouth_from_speech(sound[margin : margin + num_samples], RATE_HZ, num_frames, FPS)
    person, motion = random_person(rng), random_motion(rng, num_frames, FPS)
    drawn = [render_frame(person, motion.row(i), mouth[i], SIZE_PX) for i in range(num_frames)]
    return RawVideo(np.stack([frame.pixels for frame in drawn]), sound, drawn, person, facts)


def random_music(rng: np.random.Generator, num_samples: int) -> np.ndarray:
    """Makes chords with overtones and a drum: (n,) float32."""
    t = np.arange(num_samples) / RATE_HZ
    beat_seconds = float(rng.uniform(0.3, 0.6))
    beat, phase = (t / beat_seconds).astype(int), t % beat_seconds
    roots = rng.choice([-5, -3, 0, 2, 4, 5, 7], beat[-1] + 1)
    sound = np.zeros(num_samples)
    for interval in (0, *rng.choice([(4, 7), (3, 7), (5, 9)])):
        hz = 220 * 2 ** ((roots[beat] + interval) / 12)
        for overtone in range(1, 6):
            sound += np.sin(2 * np.pi * np.cumsum(hz * overtone) / RATE_HZ) / overtone**1.5
    sound *= np.exp(-phase / beat_seconds)
    drum = rng.normal(size=num_samples) * np.exp(-phase * 30) * (beat % 2 == 0)
    return (0.08 * sound + 0.1 * drum).astype(np.float32)


# ---- what is wrong -------------------------------------------------------------------------------------------------


def _music(rng: np.random.Generator, video: RawVideo) -> None:
    video.sound = random_music(rng, len(video.sound))


def _silence(rng: np.random.Generator, video: RawVideo) -> None:
    video.sound = rng.normal(0, rng.uniform(1e-5, 1e-3), len(video.sound)).astype(np.float32)


def _other_sound(rng: np.random.Generator, video: RawVideo) -> None:
    video.sound, _ = random_speech(rng, SPLIT, len(video.sound))


def _two_speakers(rng: np.random.Generator, video: RawVideo) -> None:
    video.frames = np.concatenate([video.frames, draw_video(rng).frames], axis=2)


def _cut(rng: np.random.Generator, video: RawVideo) -> None:
    """Another person at the same place, half of the time before the same background."""
    at, person = len(video.frames) // 2, random_person(rng)
    if rng.random() < 0.5:
        person = dataclasses.replace(person, background=video.person.background, light=video.person.light)
    num_frames, margin = len(video.frames), round(MARGIN_SECONDS * RATE_HZ)
    mouth = mouth_from_speech(video.sound[margin:-margin], RATE_HZ, num_frames, FPS)
    motion = random_motion(rng, num_frames, FPS)
    after = [render_frame(person, motion.row(i), mouth[i], SIZE_PX).pixels for i in range(at, num_frames)]
    video.frames = np.concatenate([video.frames[:at], after])


def _frozen(rng: np.random.Generator, video: RawVideo) -> None:
    start = int(rng.integers(0, len(video.frames) - round(1.5 * FPS)))
    stop = start + round(rng.uniform(1.3, 1.5) * FPS)
    video.frames[start:stop] = video.frames[start]


def _blurred(rng: np.random.Generator, video: RawVideo) -> None:
    width = rng.uniform(3, 5) * SIZE_PX / 256
    video.frames = np.stack([cv2.GaussianBlur(frame, (0, 0), width) for frame in video.frames])


def _dark(rng: np.random.Generator, video: RawVideo) -> None:
    video.frames = (video.frames * rng.uniform(0.02, 0.07)).astype(np.uint8)


def _covered(rng: np.random.Generator, video: RawVideo) -> None:
    """A microphone or a sleeve comes up before the mouth and goes, of a colour that the skin does not have."""
    start = int(rng.integers(5, len(video.frames) - 25))
    below = np.abs(np.linspace(-1, 1, 19)).clip(0.5) * 2 - 1  # of its way, for the 19 frames in which it is seen
    colour = np.array([(40, 40, 44), (60, 90, 150), (230, 230, 230)])[rng.integers(3)].tolist()
    for frame, drawn, way in zip(video.frames[start:], video.drawn[start:], below):
        middle, reach = drawn.kps[3:].mean(0), float(np.linalg.norm(drawn.kps[1] - drawn.kps[0]))
        middle = middle + [0, way * 3 * reach]
        axes = (round(0.95 * reach), round(0.75 * reach))
        cv2.ellipse(frame, np.rint(middle).astype(int).tolist(), axes, 20, 0, 360, colour, -1, cv2.LINE_AA)


def _nothing(rng: np.random.Generator, video: RawVideo) -> None:
    pass


def _mirrored(rng: np.random.Generator, video: RawVideo) -> None:
    video.frames, video.sound = video.frames[:, :, ::-1], video.sound * rng.uniform(0.5, 1)


def _copied(rng: np.random.Generator, video: RawVideo) -> None:
    video.sound = video.sound * rng.uniform(0.5, 1)


@dataclasses.dataclass(frozen=True)
class Fault:
    """What is wrong with some videos.

    Attributes:
        make: changes a video.
        reasons: for any of which it should be rejected; none: it should be kept.
        num_clips: that should be made of it.
        seconds: of the video.
        is_copy: of the clean video of the same number.
        shift: frames by which its sound comes late.
    """

    make: Callable[[np.random.Generator, RawVideo], None] = _nothing
    reasons: tuple[str, ...] = ()
    num_clips: int = 1
    seconds: float = SECONDS
    is_copy: bool = False
    shift: int = 0


def _bad(make: Callable, *reasons: str, is_copy: bool = False) -> Fault:
    return Fault(make, reasons, num_clips=0, is_copy=is_copy)


FAULTS = {
    "clean": Fault(),
    **{f"sound_late_{shift:+d}": Fault(shift=shift) for shift in SHIFTS},
    "music": _bad(_music, "not_speech"),
    "silence": _bad(_silence, "no_speech"),
    "other_sound": _bad(_other_sound, "no_sync"),
    "two_speakers": _bad(_two_speakers, "not_one_face"),
    "cut": _bad(_cut, "cut"),
    "long_with_cut": Fault(_cut, num_clips=2, seconds=LONG_SECONDS),
    "frozen": _bad(_frozen, "frozen"),
    "blurred": _bad(_blurred, "blurred"),
    "dark": _bad(_dark, "too_dark"),
    "covered": _bad(_covered, "covered", "not_one_face", "too_short"),  # the detector may see no face behind it
    "duplicate": _bad(_copied, "duplicate", is_copy=True),
    "mirrored": _bad(_mirrored, "mirrored", is_copy=True),
}
"""Name of a fault -> what it is; the names are those of the files, NAME_000.mp4."""


# ---- files ---------------------------------------------------------------------------------------------------------


def write_faulty_video(job: tuple[str, int], folder: Path, seed: int) -> dict:
    """Writes one video and what is known of it; returns its row of truth.json."""
    torch.set_num_threads(1)
    (name, index), fault = job, FAULTS[job[0]]
    rng = np.random.default_rng((seed, 0 if fault.is_copy else list(FAULTS).index(name), index))
    video = draw_video(rng, fault.seconds)
    fault.make(np.random.default_rng((seed, 1000 + list(FAULTS).index(name), index)), video)
    start = round((MARGIN_SECONDS - fault.shift / FPS) * RATE_HZ)
    sound = Audio(video.sound[None, start : start + round(fault.seconds * RATE_HZ)].astype(np.float32), RATE_HZ)
    path = folder / f"{name}_{index:03}.mp4"
    write_video(path, iter(video.frames), FPS, sound, crf=23 if fault.is_copy else 16)
    person = f"{name}-{index}" if not fault.is_copy else f"clean-{index}"
    with replacing(path.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps(video.facts | {"person": person}), encoding="utf-8")
    row = {"video": path.name, "fault": name, "reasons": fault.reasons, "num_clips": fault.num_clips}
    return row | {"sound_late_frames": fault.shift, "fps": FPS}


def write_faulty_dataset(folder: Path, num_each: dict[str, int], seed: int, num_processes: int = 1) -> list[dict]:
    """Writes videos and truth.json.

    Args:
        folder: made if missing.
        num_each: name of a fault -> number of its videos; copies are of the first clean ones.
        seed: of all that is random.
        num_processes: that draw.

    Returns:
        The rows of truth.json.
    """
    folder.mkdir(parents=True, exist_ok=True)
    jobs = [(name, index) for name, number in num_each.items() for index in range(number)]
    write = functools.partial(write_faulty_video, folder=folder, seed=seed)
    if num_processes == 1:
        rows = [write(job) for job in tqdm(jobs, "videos", disable=len(jobs) < 50)]
    else:
        with multiprocessing.get_context("spawn").Pool(num_processes) as pool:
            rows = list(tqdm(pool.imap(write, jobs), "videos", len(jobs)))
    with replacing(folder / "truth.json") as temporary:
        temporary.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return rows


def main(arguments: list[str] | None = None) -> None:
    """Writes the videos."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--num_each", type=int, default=20, help="videos of each fault")
    parser.add_argument("--num_clean", type=int, default=100, help="videos without a fault")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num_processes", type=int, default=1)
    args = parser.parse_args(arguments)
    for key, low in (("num_each", 0), ("num_clean", 1), ("num_processes", 1)):
        check_range(key, getattr(args, key), low, 100_000)
    check_range("num_each", args.num_each, 0, args.num_clean)  # copies are of clean ones
    rows = write_faulty_dataset(
        args.output_dir, dict.fromkeys(FAULTS, args.num_each) | {"clean": args.num_clean}, args.seed, args.num_processes
    )
    print(f"{args.output_dir / 'truth.json'}: {len(rows)} videos, {sum(bool(row['reasons']) for row in rows)} bad")


if __name__ == "__main__":
    sys.exit(run_program(main))
