"""Makes the videos that are to be measured: each real clip anew, from one of its frames, its keypoints, its sound."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vexpress.errors import InputError
from vexpress.evaluation.clips import Pair, Problem
from vexpress.files import replacing
from vexpress.media.video import probe_video, write_video
from vexpress.network_files import compute_sha256
from vexpress.options import CALL, SamplingOptions
from vexpress.pipeline import VExpressPipeline
from vexpress.pipeline.adapters import split_weight
from vexpress.provenance import video_metadata
from vexpress.request import load_clip_inputs

SETTINGS_NAME = "generation.json"


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
        adapters = [f"{text} sha256 {compute_sha256(split_weight(text)[0])}" for text in self.adapters]
        facts = {"adapters": adapters} if adapters else {}
        facts |= {"model": self.model, "max_seconds": self.max_seconds, "reference_frame": self.reference_frame}
        return facts | self.options.recorded() | {"dtype": str(self.dtype).removeprefix("torch.")}


def check_generation(folder: Path, generation: Generation) -> None:
    """Writes down how the videos of a folder are made, or compares with what stands there.

    Raises:
        InputError: videos in the folder were made otherwise.
    """
    path = folder / SETTINGS_NAME
    ours = generation.recorded()
    if path.is_file():
        try:
            theirs = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError):
            theirs = {}
        differing = [key for key in ours if not isinstance(theirs, dict) or theirs.get(key) != ours[key]]
        if differing:
            raise InputError(
                f"its videos were made with other {', '.join(differing)}, see {path.name}; give another folder or "
                "delete it",
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
