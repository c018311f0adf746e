"""Runs of the programs in scripts/prepare_dataset on small generated videos, for tests."""

import importlib.util
import json
from pathlib import Path

import numpy as np

from tests import tiny
from tests.face_models import build_face_models, draw_face
from vexpress.cli.program import run_program
from vexpress.data.formats import load_metadata
from vexpress.media.audio import Audio
from vexpress.media.video import write_video

SCRIPTS_DIR = Path(__file__).parents[2] / "scripts" / "prepare_dataset"
FPS, SIZE, RATE_HZ = 4, 256, 16000  # a rate that costs no import of librosa
SKIN = (150, 140, 130)
LIMITS = {
    "fps": FPS,
    "size": SIZE,
    "min_clip_seconds": 1,
    "max_clip_seconds": 2,
    "min_face_px": 60,
    "min_resolution": 200,
    "max_gap": 2,
    "max_bad_fraction": 0.2,
    # These videos are of dots that hardly move, with noise for speech, the same in all.
    "speech_detector": "loudness",
    "max_still_seconds": 1000,
    "max_blur": 1,
    "max_duplicate_difference": -1,
}


def speech(seconds: float) -> Audio:
    """Noise in syllables, stereo."""
    t = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    noise = np.random.default_rng(0).standard_normal((2, len(t))) * 0.1 * (1 + np.sin(2 * np.pi * 4 * t))
    return Audio(noise.astype(np.float32), RATE_HZ)


def make_video(path, num_frames, width=320, height=240, fps=FPS, faces=lambda i: [((150 + i, 120), 40)], sound=speech):
    """Writes a video; `faces` gives per frame the centres and eye distances, `sound` the audio of so many seconds."""

    def frames():
        for i in range(num_frames):
            image = np.full((height, width, 3), 90, np.uint8)
            for center, eye_distance in faces(i):
                draw_face(image, center, eye_distance, SKIN)
            yield image

    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, frames(), fps, sound and sound(num_frames / fps))


def write_models(folder: Path) -> dict[str, Path]:
    """Writes a face model folder and an audio encoder folder; gives the flags that name them."""
    tiny.audio_encoder().save_pretrained(folder / "encoder")
    tiny.audio_processor().save_pretrained(folder / "encoder")
    return {"insightface_model_path": build_face_models(folder / "faces"), "audio_encoder_path": folder / "encoder"}


def arguments_of(flags: dict[str, object]) -> list[str]:
    """The flags as a command line."""
    return [text for flag, value in flags.items() for text in (f"--{flag}", str(value))]


def run_script(name: str, **flags) -> int:
    """Runs one of the programs in this process; gives its exit status."""
    spec = importlib.util.spec_from_file_location(name, SCRIPTS_DIR / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    try:
        return run_program(lambda: module.main(arguments_of(flags)))
    except SystemExit as exit:
        return exit.code


def records_of(folder):
    """The record of each source, by its name."""
    records = [json.loads(path.read_text()) for path in folder.glob("clips/*/record.json")]
    return {record["source"]: record for record in records}


def clips_of(folder, source):
    """The rows of the metadata that came from a source."""
    [clips_dir] = [path.parent for path in folder.glob("clips/*/record.json") if
                   json.loads(path.read_text())["source"] == source]  # fmt: skip
    return [record for record in load_metadata(folder / "metadata.json") if record.video.parent == clips_dir]


def rejections_of(folder):
    return [json.loads(line) for line in (folder / "rejected.jsonl").read_text().splitlines()]


def state_of(folder):
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in (folder / "clips").rglob("*")}
