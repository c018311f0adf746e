"""Makes the videos that are to be measured: each real clip anew, from one of its frames, its keypoints, its sound."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from vexpress.data.formats import load_face_info
from vexpress.errors import InputError
from vexpress.evaluation.clips import Pair, Problem
from vexpress.files import replacing
from vexpress.media.audio import Audio, load_audio
from vexpress.media.random_access import count_frames, read_frames_at
from vexpress.media.video import probe_video, write_video
from vexpress.pipeline import VExpressPipeline

SETTINGS_NAME = "generation.json"


@dataclass(frozen=True)
class Generation:
    """How videos are generated.

    Attributes:
        model: what by, for the record that keeps a folder from mixing models.
        width: px, likewise height.
        max_seconds: of each clip.
        reference_frame: of the real clip, that is the portrait.
        sampling: keyword arguments of the pipeline.
    """

    model: str
    width: int
    height: int
    max_seconds: float
    reference_frame: int
    sampling: dict[str, Any]


def check_generation(folder: Path, generation: Generation) -> None:
    """Writes down how the videos of a folder are made, or compares with what stands there.

    Raises:
        InputError: videos in the folder were made otherwise.
    """
    path = folder / SETTINGS_NAME
    ours = json.loads(json.dumps(asdict(generation)))
    if path.is_file():
        try:
            theirs = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            theirs = {}
        differing = [key for key in ours if not isinstance(theirs, dict) or theirs.get(key) != ours[key]]
        if differing:
            raise InputError(
                f"its videos were made with other {', '.join(differing)}, see {path.name}; "
                "give another folder or delete it",
                "generated_dir",
                folder,
            )
        return
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(ours, indent=1) + "\n", encoding="utf-8")


def generate_missing(
    pipeline: VExpressPipeline, pairs: Sequence[Pair], generation: Generation, device: torch.device
) -> list[Problem]:
    """Generates the videos that are not there yet; returns those that could not be made, and why."""
    problems = []
    for pair in pairs:
        if pair.generated.is_file():
            continue
        try:
            generate_clip(pipeline, pair, generation, device)
        except InputError as error:
            problems.append(Problem(pair.name, "all", f"could not be generated: {' '.join(str(error).split())}"))
    return problems


def generate_clip(pipeline: VExpressPipeline, pair: Pair, generation: Generation, device: torch.device) -> None:
    """Generates one video.

    Raises:
        InputError: a part of the clip is missing or damaged.
    """
    if pair.face_info is None:
        raise InputError("its face_info file is missing, which holds the target keypoints")
    info = probe_video(pair.real, "real videos")
    kps = load_face_info(pair.face_info).kps[:, :3]
    num_frames = min(len(kps), count_frames(pair.real, "real videos"), max(1, round(generation.max_seconds * info.fps)))
    size = (generation.width, generation.height)
    target = torch.from_numpy(kps[:num_frames] * np.divide(size, (info.width, info.height))).float()
    if not target.isfinite().all():
        raise InputError("its face_info holds keypoints that are not finite")
    [portrait] = read_frames_at(pair.real, [min(generation.reference_frame, num_frames - 1)], "real videos")
    audio = load_audio(pair.sound, "sound")
    audio = Audio(audio.samples[:, : round(num_frames / info.fps * audio.sampling_rate_hz)], audio.sampling_rate_hz)
    output = pipeline(
        Image.fromarray(portrait).resize(size, Image.Resampling.LANCZOS),
        audio.resampled_mono(pipeline.audio_processor.sampling_rate),
        target,
        output_type="generator",
        device=device,
        **generation.sampling,
    )
    write_video(pair.generated, output.frames, info.fps, audio)
