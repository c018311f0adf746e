"""Compares ways to distil a demo model: objectives and steps under one budget, measured on held-out clips.

    OMP_NUM_THREADS=1 python -m scripts.demo.distillation --docs_path docs/distillation.md

The same command resumes, and adds what --objectives, --steps and --seeds ask for more. Data are those of
scripts/demo/build_demo_pack.sh; --teacher may be any model folder that fits them, such as runs/demo/stage_3/export.
"""

import json
import logging
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from scripts.demo.ablation_report import estimate_crossed, format_estimate
from scripts.demo.clip_figures import (
    abs_r_unless_still,
    colour_error,
    flicker,
    follow,
    joint_ratio,
    kps_errors,
    least_alike,
    swapped_difference,
)
from scripts.demo.heldout_clips import HeldoutClip, load_heldout_clips, regenerate, silenced
from scripts.demo.mouth_meter import measure_mouth
from vexpress.cli.parser import ArgumentParser
from vexpress.cli.program import run_program, set_up_logging
from vexpress.errors import InputError
from vexpress.fields import check_range
from vexpress.files import read_json, replacing
from vexpress.media.faces import FaceAnalyzer
from vexpress.model_folder import EMBEDDED_MODEL_DIR, LAYOUT
from vexpress.options import SamplingOptions
from vexpress.pipeline import VExpressPipeline
from vexpress.training.config import DISTILLATIONS, TrainConfig
from vexpress.training.config_file import load_config
from vexpress.training.teacher import student_values, teacher_options
from vexpress.training.trainer import Trainer

NUM_FRAMES = 48
FIGURES = {
    "aperture_r": "aperture r",
    "width_r": "width r",
    "swapped": "swapped speech",
    "silenced": "silenced r",
    "flicker": "flicker",
    "joints": "joints",
    "kps_percent": "keypoints %",
    "colour": "colour error",
}
"""Figures of a clip -> their titles. The first three are better high, flicker and joints are best at 1."""
FIRST_MARK, LAST_MARK = "<!-- results: written by scripts/demo/distillation.py -->", "<!-- end of results -->"

Figures = Mapping[str, Sequence[float]]
"""Key of `FIGURES` -> a number per clip."""


def measure(
    pipeline: VExpressPipeline, analyzer: FaceAnalyzer, clips: list[HeldoutClip], options: SamplingOptions
) -> Figures:
    """Regenerates clips with their own speech, that of another and silence, and measures them."""
    generated = [regenerate(pipeline, clip, options) for clip in clips]
    r, _ = follow(generated, clips)
    swapped, still = [], []
    for clip in clips:
        other = least_alike(clip, clips)
        mouth = measure_mouth(regenerate(pipeline, clip, options, speech_of=other), clip.kps)
        swapped.append(swapped_difference(mouth[:, 0], heard=other, shown=clip))
        mouth = measure_mouth(regenerate(pipeline, clip, options, speech_of=silenced(clip)), clip.kps)
        still.append(abs_r_unless_still(mouth[:, 0], clip.mouth[:, 0]))
    sizes = options.context_frames, options.context_overlap
    pairs = list(zip(generated, clips))
    figures = {
        "aperture_r": r[:, 0],
        "width_r": r[:, 1],
        "swapped": swapped,
        "silenced": still,
        "flicker": [flicker(frames) / flicker(clip.frames) for frames, clip in pairs],
        "joints": [joint_ratio(frames, clip.frames, *sizes) for frames, clip in pairs],
        "kps_percent": [np.nanmean(kps_errors(analyzer, frames, clip.kps)) for frames, clip in pairs],
        "colour": [colour_error(frames, clip).mean() for frames, clip in pairs],
    }
    return {name: [float(value) for value in values] for name, values in figures.items()}


def student_config(args: Namespace, objective: str, num_steps: int, seed: int) -> TrainConfig:
    """The recipe for one student; of a budget of network passes, the teacher's part is for regression alone.

    A backward pass counts as two. An update of regression, or onto the truth, passes through each step of the student;
    one of consistency through the student, its moving average, and the teacher with and without audio.
    """
    config = load_config(args.config, [f"init.path={args.teacher}", f"seed={seed}", *args.overrides])
    distill = replace(config.distill, objective=objective, num_steps=num_steps)
    distill = replace(distill, trajectories_dir=str(args.work_dir / "trajectories"))
    config = replace(config, distill=distill, output_dir=str(args.work_dir / f"{objective}_{num_steps}_seed{seed}"))
    per_sample, passes = 6 if objective == "consistency" else 3 * num_steps, args.passes
    if objective == "regression":
        passes -= distill.num_trajectories * 2 * teacher_options(config).num_inference_steps
    num_updates = passes // (per_sample * config.data.train_bs)
    if num_updates < 1:
        raise InputError("leaves nothing for training, after the teacher's trajectories", "passes", args.passes)
    return replace(config, solver=replace(config.solver, max_train_steps=num_updates))


def result_of(args: Namespace, name: str, clips: list[HeldoutClip], folder: Path, options: SamplingOptions) -> Figures:
    """Measures a model folder, unless that was done before."""
    path = args.work_dir / "results" / f"{name}.json"
    if not path.exists():
        pipeline = VExpressPipeline.from_pretrained(folder)
        pipeline.set_progress_bar_config(disable=True)
        analyzer = FaceAnalyzer(EMBEDDED_MODEL_DIR / LAYOUT["insightface_model_path"], torch.device("cpu"))
        path.parent.mkdir(parents=True, exist_ok=True)
        figures = measure(pipeline, analyzer, clips, options)
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(figures, indent=1) + "\n")
    return read_json(path)


def run(args: Namespace, clips: list[HeldoutClip]) -> list[str]:
    """Trains and measures what is missing; gives the table, line by line."""
    config = load_config(args.config, [f"init.path={args.teacher}", *args.overrides])
    options, untrained = teacher_options(config), SamplingOptions(**student_values(config))
    rows = {f"teacher, {options.num_inference_steps} steps with guidance": ["teacher"]}
    result_of(args, "teacher", clips, args.teacher, options)
    for num_steps in args.steps:
        name = f"untrained_{num_steps}"
        rows[f"not trained, {num_steps} steps"] = [name]
        result_of(args, name, clips, args.teacher, untrained.changed(num_inference_steps=num_steps))
    for objective in args.objectives:
        for num_steps in args.steps:
            for seed in args.seeds:
                config = student_config(args, objective, num_steps, seed)
                name = Path(config.output_dir).name
                if not (args.work_dir / "results" / f"{name}.json").exists():
                    Trainer(config).train()
                    export = Path(config.output_dir) / "export"
                    result_of(args, name, clips, export, SamplingOptions(**student_values(config)))
                rows.setdefault(f"{objective}, {num_steps} steps", []).append(name)
    lines = [f"| model | seeds | {' | '.join(FIGURES.values())} |", "|---" * (len(FIGURES) + 2) + "|"]
    for title, names in rows.items():
        found = [read_json(args.work_dir / "results" / f"{name}.json") for name in names]
        cells = [format_estimate(estimate_crossed(np.array([figures[key] for figures in found]))) for key in FIGURES]
        lines.append(f"| {title} | {len(names)} | {' | '.join(cells)} |")
    return lines


def build_parser() -> ArgumentParser:
    """The flags."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", type=Path, default=Path("runs/demo/stage_3/export"), help="model folder")
    parser.add_argument("--config", type=Path, default=Path("training_configs/demo/stage_4.yaml"))
    parser.add_argument("--work_dir", type=Path, default=Path("runs/distillation"))
    parser.add_argument("--clips_dir", type=Path, default=Path("runs/demo/heldout_choice"), help="drawn dataset")
    parser.add_argument("--num_clips", type=int, default=16, help="clips that are measured, 2 or more")
    parser.add_argument("--objectives", nargs="*", choices=DISTILLATIONS, default=list(DISTILLATIONS))
    parser.add_argument("--steps", nargs="+", type=int, choices=(1, 2, 4), default=[1, 2])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--passes", type=int, default=20_000, help="budget of each student, in passes of a network")
    parser.add_argument("--overrides", nargs="*", default=[], metavar="key=value", help="of the configuration")
    parser.add_argument("--docs_path", type=Path, help="also fill the table into this file")
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Trains, measures, reports."""
    args = build_parser().parse_args(arguments)
    set_up_logging(logging.INFO)
    torch.set_num_threads(1)  # more are slower at these sizes
    check_range("num_clips", args.num_clips, 2, 1000)
    clips = load_heldout_clips(args.clips_dir, NUM_FRAMES)[: args.num_clips]
    table = "\n".join(run(args, clips))
    if args.docs_path:
        head, rest = args.docs_path.read_text(encoding="utf-8").split(FIRST_MARK)
        with replacing(args.docs_path) as temporary:
            temporary.write_text(f"{head}{FIRST_MARK}\n{table}\n{LAST_MARK}{rest.split(LAST_MARK)[1]}")
    print(table)


if __name__ == "__main__":
    sys.exit(run_program(main))
