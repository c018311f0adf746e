"""Measures the demo pack on its held-out clips: does the mouth follow the speech, is the picture the person's?

    python -m scripts.demo.measure_pack --model_dir vexpress/demo_pack
    python -m scripts.demo.measure_pack --clips_dir runs/demo/heldout_choice --guidance_scale 4 --context_frames 24

The second tries another sampling, on clips other than those that the published figures come from. Each clip is
generated from one of its own later frames, its own keypoints and some speech. Mouths are measured by the colour-based
meter of scripts/demo/mouth_meter.py, which uses no network; `true frames` is what it reads on the real clips.
"""

import json
import logging
import sys
from argparse import SUPPRESS
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scripts.demo.clip_figures import (
    abs_r_unless_still,
    best_lag,
    colour_error,
    correlation_or_zero,
    encoded_alike,
    flicker,
    follow,
    joint_ratio,
    kps_errors,
    least_alike,
    swapped_difference,
)
from scripts.demo.heldout_clips import HeldoutClip, load_heldout_clips, regenerate, silenced
from scripts.demo.mouth_meter import measure_mouth
from vexpress.cli.parser import ArgumentParser, add_options
from vexpress.cli.program import run_program, set_up_logging
from vexpress.diffusion.schedule import build_scheduler
from vexpress.fields import check_range
from vexpress.files import check_output_path, replacing
from vexpress.media.faces import FaceAnalyzer
from vexpress.model_folder import LAYOUT
from vexpress.options import CALL, PRESET_HELP, PRESETS, SamplingOptions, load_model_defaults, option_fields
from vexpress.pipeline import VExpressPipeline

NUM_FRAMES = 48


def measure_pack(
    pipeline: VExpressPipeline, analyzer: FaceAnalyzer, clips: list[HeldoutClip], options: SamplingOptions
) -> dict[str, float]:
    """All figures of the pack, each a mean over the clips.

    r does not depend on amplitude: for a still mouth it is one of the meter's noise, even on frames rendered with a
    closed mouth (0.19 on average). So a silenced mouth that moves by less than `STILL` counts as one that follows
    nothing. The plain r, its value by chance (with the mouths of other clips) and the movement are reported, too.

    The true frames come out of a video file, and so change by its noise, too; `flicker_ratio_encoded` is that of frames
    that have been through the same encoding.
    """
    generated = [regenerate(pipeline, clip, options) for clip in clips]
    r, mouths = follow(generated, clips)
    ceiling, _ = follow([clip.frames for clip in clips], clips)
    errors = np.concatenate([kps_errors(analyzer, frames, clip.kps) for frames, clip in zip(generated, clips)])
    skin, hair, background = np.mean([colour_error(frames, clip) for frames, clip in zip(generated, clips)], axis=0)
    figures = {
        "aperture_r": r[:, 0].mean(),
        "aperture_r_worst": r[:, 0].min(),
        "aperture_r_true_frames": ceiling[:, 0].mean(),
        "width_r": r[:, 1].mean(),
        "width_r_true_frames": ceiling[:, 1].mean(),
    }
    figures |= measure_other_speech(pipeline, clips, options)
    return figures | {
        "lag_frames": np.median([best_lag(m[:, 0], clip.mouth[:, 0]) for m, clip in zip(mouths, clips)]),
        "kps_error_percent": np.nanmean(errors),
        "frames_without_face_percent": 100 * np.isnan(errors).mean(),
        "skin_error": skin,
        "hair_error": hair,
        "background_error": background,
        "flicker_ratio": np.mean([flicker(f) / flicker(clip.frames) for f, clip in zip(generated, clips)]),
        "flicker_ratio_encoded": np.mean(
            [
                flicker(encoded_alike(f, float(clip.inputs.fps))) / flicker(clip.frames)
                for f, clip in zip(generated, clips)
            ]
        ),
        "joint_ratio": np.mean(
            [
                joint_ratio(f, clip.frames, options.context_frames, options.context_overlap)
                for f, clip in zip(generated, clips)
            ]
        ),
    }


def measure_other_speech(
    pipeline: VExpressPipeline, clips: list[HeldoutClip], options: SamplingOptions
) -> dict[str, float]:
    """The figures of clips that are made with the speech of another clip, or with silence."""
    swapped, silent, movement = [], [], []
    plain = np.empty((len(clips), len(clips)))  # |r| of each silenced clip with the true mouth of each clip
    for row, clip in enumerate(clips):
        other = least_alike(clip, clips)
        mouth = measure_mouth(regenerate(pipeline, clip, options, speech_of=other), clip.kps)
        swapped.append(swapped_difference(mouth[:, 0], heard=other, shown=clip))
        aperture = measure_mouth(regenerate(pipeline, clip, options, speech_of=silenced(clip)), clip.kps)[:, 0]
        silent.append(abs_r_unless_still(aperture, clip.mouth[:, 0]))
        plain[row] = [abs(correlation_or_zero(aperture, each.mouth[:, 0])) for each in clips]
        movement.append(np.nanstd(aperture) / clip.mouth[:, 0].std())
    own = np.eye(len(clips), dtype=bool)
    return {
        "swapped_difference": np.mean(swapped),
        "silenced_abs_r": np.mean(silent),
        "silenced_abs_r_plain": plain[own].mean(),
        "silenced_abs_r_by_chance": plain[~own].mean(),
        "silenced_movement": np.mean(movement),
    }


def load_options(model_dir: Path, given: Mapping[str, Any] | None = None, preset: str | None = None) -> SamplingOptions:
    """The sampling that the pack asks for, or values of a preset or given in its place.

    Raises:
        InputError: no such option, or a value out of bounds.
    """
    return SamplingOptions(**load_model_defaults(model_dir, preset)).changed(**given or {})


def main(arguments: list[str] | None = None) -> None:
    """Prints and writes the figures."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model_dir", type=Path, default=Path("vexpress/demo_pack"))
    parser.add_argument("--clips_dir", type=Path, help="drawn dataset; unset: MODEL_DIR/heldout")
    parser.add_argument("--output_path", type=Path, help="JSON to write")
    parser.add_argument("--num_clips", type=int, default=10, help="clips that are measured, 2 or more")
    sampling = parser.add_argument_group("sampling; unset: the pack's")
    sampling.add_argument("--preset", choices=PRESETS, help=PRESET_HELP)
    add_options(sampling, option_fields(CALL), default=SUPPRESS)
    args = parser.parse_args(arguments)
    set_up_logging(logging.WARNING)
    check_range("num_clips", args.num_clips, 2, 1000)  # a clip is also made with the speech of another
    given = {field.name: getattr(args, field.name) for field in option_fields(CALL) if hasattr(args, field.name)}
    options = load_options(args.model_dir, given, args.preset)
    if args.output_path:
        check_output_path(args.output_path, "output_path")
    clips = load_heldout_clips(args.clips_dir or args.model_dir / "heldout", NUM_FRAMES)[: args.num_clips]
    pipeline = VExpressPipeline.from_pretrained(args.model_dir, scheduler=build_scheduler(options.scheduler))
    pipeline.set_progress_bar_config(disable=True)
    analyzer = FaceAnalyzer(args.model_dir / LAYOUT["insightface_model_path"], torch.device("cpu"))
    figures = measure_pack(pipeline, analyzer, clips, options)
    figures = {name: round(float(value), 3) for name, value in figures.items()}
    if args.output_path:
        with replacing(args.output_path) as temporary:
            temporary.write_text(json.dumps(figures, indent=1) + "\n")
    print("\n".join(f"{name:28} {value:8.3f}" for name, value in figures.items()))


if __name__ == "__main__":
    sys.exit(run_program(main))
