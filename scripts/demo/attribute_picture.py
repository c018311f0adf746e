"""Shows what a model does of lids, gaze, brows and smile: faces that were asked for them, and curves of a clip.

python -m scripts.demo.attribute_picture --output_path docs/attributes.png
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from scripts.demo.attribute_meter import measure_attributes
from scripts.demo.drawn_people import random_motion
from scripts.demo.heldout_clips import HeldoutClip, load_heldout_clips, regenerate, silenced
from scripts.demo.measure_pack import NUM_FRAMES, load_options
from vexpress.cli.parser import ArgumentParser
from vexpress.cli.program import run_program
from vexpress.files import check_output_path, replacing
from vexpress.models.attributes import ATTRIBUTES
from vexpress.options import SamplingOptions
from vexpress.pipeline import VExpressPipeline

FACES = {
    "as it is": {},
    "lids 0": {"lid_left": 0, "lid_right": 0},
    "left lid 0": {"lid_left": 0},
    "lids 0.5": {"lid_left": 0.5, "lid_right": 0.5},
    "gaze -0.8, 0": {"gaze_x": -0.8},
    "gaze 0.8, 0": {"gaze_x": 0.8},
    "gaze 0, -0.8": {"gaze_y": -0.8},
    "gaze 0, 0.8": {"gaze_y": 0.8},
    "brows -1": {"brows": -1},
    "brows 1": {"brows": 1},
    "smile 1": {"smile": 1},
}
"""Title -> attributes that differ from those of a face at rest."""
REST = {"lid_left": 1.0, "lid_right": 1.0, "gaze_x": 0.0, "gaze_y": 0.0, "brows": 0.0, "smile": 0.0}
CURVES_SEED, BLINK_RATE = 30_058, 3  # where all six move
CROP = np.array([[-1.2, -0.9], [1.2, 1.5]])
"""Of the faces, about the middle of the eyes in distances of these."""
DPI = 110


def asked_faces(pipeline: VExpressPipeline, clip: HeldoutClip, options: SamplingOptions) -> list[np.ndarray]:
    """The face of a silent frame (h w 3) uint8 for each of `FACES`, all of one pose."""
    eyes, faces = clip.kps[0, :2], []
    corners = eyes.mean(0) + CROP * np.linalg.norm(eyes[1] - eyes[0])
    (left, top), (right, bottom) = np.clip(corners, 0, len(clip.frames[0])).round().astype(int)
    inputs = silenced(clip).inputs
    inputs = replace(inputs, kps=inputs.kps[:1].expand(options.context_frames, -1, -1))
    for changes in FACES.values():
        asked = np.tile([(REST | changes)[name] for name in ATTRIBUTES], (options.context_frames, 1)).astype(np.float32)
        told = replace(clip, inputs=replace(inputs, attributes=torch.from_numpy(asked)))
        faces.append(regenerate(pipeline, told, options)[len(asked) // 2, top:bottom, left:right])
    return faces


def render(pipeline: VExpressPipeline, clip: HeldoutClip, options: SamplingOptions, path: Path) -> None:
    """Writes the picture."""
    figure = Figure(figsize=(11, 7), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    upper, lower = figure.subfigures(2, 1, height_ratios=(1.3, 2))
    axes = upper.subplots(2, 6).ravel()
    for axis in axes:
        axis.axis("off")
    for axis, title, face in zip(axes, FACES, asked_faces(pipeline, clip, options)):
        axis.imshow(face)
        axis.set_title(title, fontsize=9)
    rng, fps = np.random.default_rng(CURVES_SEED), float(clip.inputs.fps)
    asked = random_motion(rng, len(clip.frames), fps, blink_rate=BLINK_RATE).attributes.astype(np.float32)
    told = replace(clip, inputs=replace(clip.inputs, attributes=torch.from_numpy(asked)))
    found = measure_attributes(regenerate(pipeline, told, options), clip.kps)
    seconds = np.arange(len(asked)) / fps
    curves = lower.subplots(3, 2, sharex=True).ravel()
    for axis, name, wanted, made in zip(curves, ATTRIBUTES, asked.T, found.T):
        axis.plot(seconds, wanted, color="tab:green", label="asked")
        axis.plot(seconds, made, color="tab:orange", label="generated")
        axis.set_title(name.replace("_", " "), fontsize=9, loc="left")
    curves[0].legend(fontsize=8)
    for axis in curves[-2:]:
        axis.set_xlabel("seconds")
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")


def main(arguments: list[str] | None = None) -> None:
    """Renders a held-out clip's person."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model_dir", type=Path, default=Path("vexpress/demo_pack"))
    parser.add_argument("--clips_dir", type=Path, help="drawn dataset; unset: MODEL_DIR/heldout")
    parser.add_argument("--output_path", type=Path, required=True, help="PNG to write")
    args = parser.parse_args(arguments)
    check_output_path(args.output_path, "output_path")
    clip = load_heldout_clips(args.clips_dir or args.model_dir / "heldout", NUM_FRAMES)[0]
    pipeline = VExpressPipeline.from_pretrained(args.model_dir)
    pipeline.set_progress_bar_config(disable=True)
    render(pipeline, clip, load_options(args.model_dir), args.output_path)
    print(args.output_path)


if __name__ == "__main__":
    sys.exit(run_program(main))
