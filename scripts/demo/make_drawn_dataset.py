"""Makes a dataset of drawn talking faces: speech by espeak-ng, and portraits whose mouths follow it.

    apt-get install espeak-ng
    python -m scripts.demo.make_drawn_dataset --output_dir runs/demo/data --split train --num_clips 400

The result is a dataset as scripts/prepare_dataset writes it, without audio embeds (extract_audio_embeddings.py adds
those), with exact face info and attributes (f 6, see `Motion.attributes`), and with `labels/*.npz`: `mouth` (f 2),
aperture and width, and `probes` (f 3 2) px, where nothing but skin, hair and background is. People, sentences, voices
and, but for English, languages of the split `heldout` are never those of `train`. With --silent nobody speaks and
mouths stay closed; without such clips a model knows silence from short pauses alone.
"""

import functools
import json
import multiprocessing
import shutil
import subprocess
import sys
import tempfile
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from scripts.demo.drawn_faces import face_info, render_frame
from scripts.demo.drawn_people import Motion, Person, mouth_from_speech, random_motion, random_person
from vexpress.cli.parser import ArgumentParser
from vexpress.cli.program import run_program
from vexpress.data.formats import save_face_info
from vexpress.errors import InputError
from vexpress.fields import check_range
from vexpress.files import replacing
from vexpress.media.audio import WAV2VEC2_RATE_HZ, Audio, load_audio
from vexpress.media.video import write_video

SENTENCES = json.loads((Path(__file__).parent / "sentences.json").read_text(encoding="utf-8"))
SPLITS = {
    "train": {
        "languages": ("en", "de", "fr", "es", "it", "pt", "nl"),
        "voices": ("m1", "m2", "m3", "m5", "m8", "f1", "f2", "f3", "belinda", "adam"),
    },
    "heldout": {"languages": ("en", "sv", "pl", "fi"), "voices": ("m4", "m7", "f4", "f5", "linda", "paul")},
}
ENCODING = {"crf": 10, "keyframe_interval": 30}
"""Of clips, as options of `write_video`."""
FEMALE_VOICES = ("f1", "f2", "f3", "f4", "f5", "belinda", "linda")


def speak(text: str, language: str, voice: str, pitch: int = 50, words_per_minute: int = 165) -> np.ndarray:
    """Speaks a sentence: (n) float32 at 16 kHz, without the silence around it.

    Raises:
        InputError: espeak-ng is not installed, or refuses.
    """
    program = shutil.which("espeak-ng")
    if program is None:
        raise InputError("espeak-ng is not installed; it makes the speech: apt-get install espeak-ng")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "speech.wav"
        arguments = ["-v", f"{language}+{voice}", "-p", str(pitch), "-s", str(words_per_minute), "-w", str(path)]
        result = subprocess.run([program, *arguments, "--", text], capture_output=True, text=True)
        if result.returncode:
            raise InputError(f"espeak-ng failed on {language}+{voice}: {result.stderr.strip()}")
        waveform = load_audio(path).resampled_mono(WAV2VEC2_RATE_HZ).numpy()
    loud = np.flatnonzero(np.abs(waveform) > 0.01 * np.abs(waveform).max())
    return waveform[loud[0] : loud[-1] + 1]


def random_speech(rng: np.random.Generator, split: str, num_samples: int) -> tuple[np.ndarray, dict[str, str]]:
    """Speaks random sentences in a random voice, with pauses: (num_samples) float32 at 16 kHz, and what it is."""
    language, voice = (str(rng.choice(SPLITS[split][key])) for key in ("languages", "voices"))
    pitch, words_per_minute = int(rng.integers(30, 70)), int(rng.integers(130, 190))
    pieces = [np.zeros(int(rng.uniform(0.05, 0.5) * WAV2VEC2_RATE_HZ), np.float32)]
    while sum(map(len, pieces)) < num_samples:
        sentences = SENTENCES[language]["heldout" if split == "heldout" else "train"]
        words = str(rng.choice(sentences)).split()
        start = int(rng.integers(0, max(1, len(words) - 3)))
        pieces.append(speak(" ".join(words[start:]), language, voice, pitch, words_per_minute))
        pieces.append(np.zeros(int(rng.uniform(0.1, 0.6) * WAV2VEC2_RATE_HZ), np.float32))
    waveform = np.concatenate(pieces)[:num_samples]
    waveform = waveform * (rng.uniform(0.2, 0.9) / np.abs(waveform).max())
    noise = rng.normal(0, rng.uniform(1e-5, 1e-3), num_samples)
    sex = "female" if voice in FEMALE_VOICES else "male"
    return (waveform + noise).astype(np.float32), {"language": language, "voice": voice, "sex": sex}


def random_silence(rng: np.random.Generator, num_samples: int) -> tuple[np.ndarray, dict[str, str]]:
    """Makes what a microphone records when nobody speaks: faint noise or, half of the time, nothing."""
    noise = rng.normal(0, rng.choice([0, rng.uniform(1e-5, 1e-3)]), num_samples)
    return noise.astype(np.float32), dict.fromkeys(("language", "voice", "sex"), "none")


def write_drawn_clip(
    index: int,
    folder: Path,
    split: str,
    seed: int,
    num_frames: int,
    fps: int,
    size_px: int,
    silent: bool = False,
    **rates: float,
) -> dict:
    """Writes one clip with its labels and returns its row of the metadata; `rates` are those of `random_motion`."""
    torch.set_num_threads(1)
    rng = np.random.default_rng((seed, sorted(SPLITS).index(split), index))
    num_samples = round(num_frames / fps * WAV2VEC2_RATE_HZ)
    waveform, facts = random_silence(rng, num_samples) if silent else random_speech(rng, split, num_samples)
    # Loudness is relative to the clip, so noise alone would open the mouth.
    mouth = mouth_from_speech(np.zeros_like(waveform) if silent else waveform, WAV2VEC2_RATE_HZ, num_frames, fps)
    person, motion = random_person(rng), random_motion(rng, num_frames, fps, **rates)
    name = f"{split}_{index:04d}"
    return write_labelled_clip(folder, name, person, motion, mouth, waveform, fps, size_px, ENCODING) | facts


def write_labelled_clip(
    folder: Path,
    name: str,
    person: Person,
    motion: Motion,
    mouth: np.ndarray,
    waveform: np.ndarray,
    fps: int,
    size_px: int,
    encoding: dict[str, int],
    **labels: np.ndarray,
) -> dict:
    """Renders and writes a clip of a data set with its exact labels.

    Args:
        folder: of the data set.
        name: of the clip's files, without suffix.
        person: who is seen; likewise `motion` and `mouth` (f 2), a row a frame, and `waveform` (n) at 16 kHz.
        fps: frames per second.
        size_px: width and height.
        encoding: options of `write_video`.
        labels: arrays to keep beside `mouth` and `probes`.

    Returns:
        The clip's row of the metadata.
    """
    frames = [render_frame(person, motion.row(i), mouth[i], size_px) for i in range(len(mouth))]
    paths = {"video": f"clips/{name}.mp4"} | {
        part: f"{part}/{name}.npz" for part in ("face_info", "labels", "attributes")
    }
    audio = Audio(waveform[None], WAV2VEC2_RATE_HZ)
    write_video(folder / paths["video"], (frame.pixels for frame in frames), fps, audio, **encoding)
    save_face_info(folder / paths["face_info"], face_info(frames))
    with replacing(folder / paths["labels"]) as temporary:
        np.savez(temporary, mouth=mouth, probes=np.stack([frame.probes for frame in frames]), **labels)
    with replacing(folder / paths["attributes"]) as temporary:
        np.savez(temporary, attributes=motion.attributes)
    paths["audio_embeds"] = f"audio_embeds/{name}.safetensors"
    return paths | {"duration": len(mouth) / fps, "fps": fps, "num_frames": len(mouth)}


def parse_dataset_arguments(
    parser: ArgumentParser, arguments: list[str] | None, num_clips: int, seconds: float, size: int
) -> Namespace:
    """Adds the flags of a program that makes a data set, with these defaults, and reads them.

    Raises:
        InputError: a number that cannot be.
    """
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--split", choices=sorted(SPLITS), default="train")
    parser.add_argument("--num_clips", type=int, default=num_clips)
    parser.add_argument("--seconds", type=float, default=seconds, help="length of a clip")
    parser.add_argument("--fps", type=int, default=30)
    parser.add_argument("--size", type=int, default=size, help="width and height in px")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num_processes", type=int, default=2)
    args = parser.parse_args(arguments)
    for name in ("num_clips", "seconds", "fps", "num_processes"):
        if getattr(args, name) <= 0:
            raise InputError("must be more than 0", name, getattr(args, name))
    if args.size < 32 or args.size % 2:
        raise InputError("must be an even number of px, 32 or more", "size", args.size)
    return args


def write_dataset(args: Namespace, write_clip: Callable[..., dict], what: str, **options) -> None:
    """Writes the clips in processes, and their metadata.

    Args:
        args: from `parse_dataset_arguments`.
        write_clip: such as `write_drawn_clip`; `options` are its arguments beside those of `args`.
        what: the clips are of, for the last line.
    """
    for part in ("clips", "face_info", "labels", "attributes", "audio_embeds"):
        (args.output_dir / part).mkdir(parents=True, exist_ok=True)
    write = functools.partial(
        write_clip, folder=args.output_dir, split=args.split, seed=args.seed,
        num_frames=round(args.seconds * args.fps), fps=args.fps, size_px=args.size, **options,
    )  # fmt: skip
    with multiprocessing.get_context("spawn").Pool(args.num_processes) as pool:
        rows = list(tqdm(pool.imap(write, range(args.num_clips)), "clips", args.num_clips))
    with replacing(args.output_dir / "metadata.json") as temporary:
        temporary.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    print(f"{args.output_dir / 'metadata.json'}: {len(rows)} clips of {what}")


def main(arguments: list[str] | None = None) -> None:
    """Writes the dataset."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--silent", action="store_true", help="nobody speaks, and mouths stay closed")
    parser.add_argument("--blink_rate", type=float, default=1.0, help="how much more often than people faces blink")
    parser.add_argument("--glance_rate", type=float, default=1.0, help="likewise, and further, they look aside")
    args = parse_dataset_arguments(parser, arguments, num_clips=400, seconds=3.0, size=128)
    rates = {name: getattr(args, name) for name in ("blink_rate", "glance_rate")}
    for name, rate in rates.items():
        check_range(name, rate, 0.01, 10)
    write_dataset(args, write_drawn_clip, "drawn faces", silent=args.silent, **rates)


if __name__ == "__main__":
    sys.exit(run_program(main))
