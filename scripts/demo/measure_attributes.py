"""Measures whether lids, gaze, brows and smile of the demo pack do what was asked, each without moving the others.

python -m scripts.demo.measure_attributes

Held-out clips are generated with attributes of random other clips (`random_motion`), and again with one kind of them
changed. Frames are measured by the colour-based meter of scripts/demo/attribute_meter.py, which uses no network; `true
frames` is what it reads on drawn frames that do just what was asked.
"""

import json
import sys
from argparse import SUPPRESS
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from scripts.demo.attribute_meter import measure_attributes
from scripts.demo.clip_figures import correlation_or_zero
from scripts.demo.drawn_faces import render_frame
from scripts.demo.drawn_people import random_motion, random_person
from scripts.demo.heldout_clips import HeldoutClip, load_heldout_clips, regenerate
from scripts.demo.measure_pack import NUM_FRAMES, load_options
from scripts.demo.mouth_meter import measure_mouth
from vexpress.cli.parser import ArgumentParser, add_options
from vexpress.cli.program import run_program
from vexpress.files import check_output_path, replacing
from vexpress.models.attributes import ATTRIBUTES
from vexpress.options import CALL, SamplingOptions, option_fields
from vexpress.pipeline import VExpressPipeline

KINDS = {"lids": [0, 1], "gaze": [2, 3], "brows": [4], "smile": [5]}
"""What is changed at once -> its columns of `ATTRIBUTES`."""
MEASURED = (*ATTRIBUTES, "aperture")
SMALLEST_MOVEMENT = 0.05  # standard deviation of what is asked, below which it has no r
SMALLEST_SEEN = 0.5  # share of a clip's frames in which the meter must see something; half-closed lids hide the gaze
SEED, OTHER_SEED = 30_001, 30_002  # of what is asked; of no training data


def asked_of(clip: HeldoutClip, number: int, seed: int) -> np.ndarray:
    """Attributes (f 6) that a clip is asked for."""
    rng = np.random.default_rng((seed, number))
    return random_motion(rng, len(clip.mouth), float(clip.inputs.fps)).attributes


def follow(frames: np.ndarray, kps: np.ndarray, asked: np.ndarray, mouth: np.ndarray) -> np.ndarray:
    """r of `MEASURED` in frames (f H W 3) with the attributes asked for (f 6) and the true mouth (f 2): (7); NaN where
    it was not asked to move, or the meter hardly sees it."""
    found = np.concatenate([measure_attributes(frames, kps), measure_mouth(frames, kps)[:, :1]], 1)
    wanted = np.concatenate([asked, mouth[:, :1]], 1)
    r = np.array([correlation_or_zero(*columns) for columns in zip(found.T, wanted.T)])
    is_still = wanted.std(axis=0) < SMALLEST_MOVEMENT  # such as lids without a blink
    return np.where(is_still | (np.isfinite(found).mean(0) < SMALLEST_SEEN), np.nan, r)


def drawn_as_asked(number: int, asked: np.ndarray, mouth: np.ndarray, size_px: int, fps: float) -> tuple:
    """Frames (f H W 3) and keypoints (f 3 2) of a drawn person who does what is asked."""
    rng = np.random.default_rng((SEED, number))
    person, motion = random_person(rng), random_motion(rng, len(mouth), fps)
    motion = replace(motion, lids=asked[:, :2], gaze=asked[:, 2:4], brows=asked[:, 4], smile=asked[:, 5])
    frames = [render_frame(person, motion.row(i), mouth[i], size_px) for i in range(len(mouth))]
    return np.stack([frame.pixels for frame in frames]), np.stack([frame.kps[:3] for frame in frames])


def measure(pipeline: VExpressPipeline, clips: list[HeldoutClip], options: SamplingOptions) -> dict[str, dict]:
    """All figures: r per attribute, and the largest change of another's when one kind is asked for differently."""
    true, plain, changed = [], [], {kind: [] for kind in KINDS}
    for number, clip in enumerate(clips):
        one, other = (asked_of(clip, number, seed) for seed in (SEED, OTHER_SEED))
        drawn = drawn_as_asked(number, one, clip.mouth, clip.frames.shape[1], float(clip.inputs.fps))
        true.append(follow(*drawn, one, clip.mouth))

        def generated(asked: np.ndarray, clip: HeldoutClip = clip) -> np.ndarray:
            told = replace(clip, inputs=replace(clip.inputs, attributes=torch.from_numpy(asked)))
            return follow(regenerate(pipeline, told, options), clip.kps, asked, clip.mouth)

        plain.append(generated(one))
        for kind, columns in KINDS.items():
            asked = one.copy()
            asked[:, columns] = other[:, columns]
            changed[kind].append(generated(asked))
        print(f"clip {number + 1} of {len(clips)}", file=sys.stderr, flush=True)
    figures = {"true frames": np.nanmean(true, axis=0), "generated": np.nanmean(plain, axis=0)}
    figures |= {f"{kind} changed": np.nanmean(r, axis=0) for kind, r in changed.items()}
    table = {name: dict(zip(MEASURED, r.round(3).tolist())) for name, r in figures.items()}
    for kind, columns in KINDS.items():
        others = [i for i in range(len(MEASURED)) if i not in columns]
        change = np.abs(np.nanmean(np.subtract(changed[kind], plain)[:, others], axis=0))  # of clips that have both
        table[f"{kind} changed"]["largest change of another's r"] = round(float(change.max()), 3)
    return table


def main(arguments: list[str] | None = None) -> None:
    """Prints and writes the figures."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model_dir", type=Path, default=Path("vexpress/demo_pack"))
    parser.add_argument("--clips_dir", type=Path, help="drawn dataset; unset: MODEL_DIR/heldout")
    parser.add_argument("--num_clips", type=int, default=8)
    parser.add_argument("--output_path", type=Path, help="JSON to write")
    add_options(parser.add_argument_group("sampling; unset: the pack's"), option_fields(CALL), default=SUPPRESS)
    args = parser.parse_args(arguments)
    if args.output_path:
        check_output_path(args.output_path, "output_path")
    given = {field.name: getattr(args, field.name) for field in option_fields(CALL) if hasattr(args, field.name)}
    options = load_options(args.model_dir, given)
    clips = load_heldout_clips(args.clips_dir or args.model_dir / "heldout", NUM_FRAMES)[: args.num_clips]
    pipeline = VExpressPipeline.from_pretrained(args.model_dir)
    pipeline.set_progress_bar_config(disable=True)
    figures = json.dumps(measure(pipeline, clips, options), indent=1)
    if args.output_path:
        with replacing(args.output_path) as temporary:
            temporary.write_text(figures + "\n")
    print(figures)


if __name__ == "__main__":
    sys.exit(run_program(main))
