"""Makes the videos that are to be measured: each real clip anew, from one of its frames, its keypoints, its sound."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vexpress.errors import InputError
from vexpress.evaluation.clips import Pair, Problem, videos_in
from vexpress.files import hash_file, read_json, replacing
from vexpress.media.video import probe_video, write_video
from vexpress.model_folder import ModelPaths
from vexpress.options import CALL, SamplingOptions
from vexpress.pipeline import VExpressPipeline
from vexpress.pipeline.adapters import split_weight
from vexpress.provenance import video_metadata
from vexpress.request import load_clip_inputs

SETTINGS_NAME = "generation.json"
MODEL_DIGEST = "model_sha256"
NOT_USED = ("insightface_model_path", "head_motion_path")
"""Parts of a model: faces and motion are those of the real clips."""


@dataclass(frozen=True)
class Generation:
    """How videos are generated.

    Attributes:
        model: what by, for the record that keeps a folder from mixing models.
        max_seconds: of each clip.
        reference_frame: of the real clip, that is the portrait.
        options: size and sampling.
        dtype: number type that is used.
        adapters: `PATH` or `PATH:WEIGHT` each.
    """

    model: str
    max_seconds: float
    reference_frame: int
    options: SamplingOptions
    dtype: torch.dtype
    adapters: tuple[str, ...] = ()

    def recorded(self) -> dict[str, Any]:
        """All that decides how the videos look."""
        # With digests, since training goes on under the same name.
        adapters = [f"{text} sha256 {hash_file(split_weight(text)[0])}" for text in self.adapters]
        facts = {"adapters": adapters} if adapters else {}
        facts |= {"model": self.model, MODEL_DIGEST: digest_model(self.model)}
        facts |= {"max_seconds": self.max_seconds, "reference_frame": self.reference_frame}
        return facts | self.options.recorded() | {"dtype": str(self.dtype).removeprefix("torch.")}


def digest_model(model_dir: str) -> str:
    """A digest of the files of a model that videos are generated with."""
    paths = [path for name, path in vars(ModelPaths.from_model_dir(model_dir)).items() if name not in NOT_USED]
    paths += [path.with_suffix(".json") for path in paths]  # sizes stand beside weights
    files = {file for path in paths for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file()}
    return hashlib.sha256("".join(map(hash_file, sorted(files))).encode()).hexdigest()


def check_generation(folder: Path, pairs: Sequence[Pair], ours: dict[str, Any]) -> None:
    """Looks whether the videos that a folder holds were made as `ours`, of `Generation.recorded`, says.

    Raises:
        InputError: they were not, or nobody knows, or they are the real ones.
    """
    if any(pair.real.resolve().parent == folder.resolve() for pair in pairs):
        raise InputError("is the folder of the real clips; give another folder", "generated_dir", folder)
    if not folder.is_dir() or not videos_in(folder):
        return
    path = folder / SETTINGS_NAME
    if not path.is_file():
        problem = f"holds videos and no {path.name}, which says how they were generated; give another folder, or leave "
        raise InputError(f"{problem}out `model_dir` to measure them", "generated_dir", folder)
    try:
        theirs = dict(read_json(path))
    except (ValueError, TypeError):
        theirs = {}
    if theirs:  # files of earlier versions do not say it
        theirs.setdefault(MODEL_DIGEST, ours[MODEL_DIGEST])
    differing = [key for key in {**ours, **theirs} if theirs.get(key) != ours.get(key)]
    if differing:
        problem = f"its videos were made with other {', '.join(differing)}, see {path.name}; give another folder or "
        raise InputError(f"{problem}delete it", "generated_dir", folder)


def record_generation(folder: Path, recorded: dict[str, Any]) -> None:
    """Writes down how the videos of a folder are made."""
    with replacing(folder / SETTINGS_NAME) as temporary:
        temporary.write_text(json.dumps(recorded, indent=1) + "\n", encoding="utf-8")


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
            problems.append(Problem(pair.name, "all", f"could not be generated: {error}"))
    return problems


def generate_clip(pipeline: VExpressPipeline, pair: Pair, generation: Generation, device: torch.device) -> None:
    """Generates one video.

    Raises:
        InputError: a part of the clip is missing or damaged.
    """
    if pair.face_info is None:
        raise InputError("its face_info file is missing, which holds the target keypoints")
    options = generation.options
    inputs = load_clip_inputs(
        pair.real,
        pair.face_info,
        pair.sound,
        (options.image_width, options.image_height),
        max_frames=round(generation.max_seconds * probe_video(pair.real, "video").fps),
        reference_frame=generation.reference_frame,
    )
    output = pipeline(
        **inputs.pipeline_arguments(pipeline.audio_processor.sampling_rate),
        **options.values_at(CALL),
        output_type="generator",
        device=device,
    )
    metadata = video_metadata(generation.model, options, adapters=generation.adapters)
    write_video(pair.generated, output.frames, inputs.fps, inputs.audio, metadata=metadata)
