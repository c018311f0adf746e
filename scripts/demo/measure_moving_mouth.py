"""Measures whether mouths of the demo pack follow the speech as well when the head moves to it as with true motion.

python -m scripts.demo.measure_moving_mouth

Held-out clips are generated from a portrait and speech alone, with natural motion and with a still head.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from scripts.demo.clip_figures import correlation_or_zero, kps_errors
from scripts.demo.heldout_clips import HeldoutClip, load_heldout_clips, regenerate
from scripts.demo.measure_pack import NUM_FRAMES, load_options
from scripts.demo.mouth_meter import measure_mouth
from vexpress.cli.parser import ArgumentParser
from vexpress.cli.program import run_program
from vexpress.media.faces import FaceAnalyzer
from vexpress.model_folder import LAYOUT, ModelPaths
from vexpress.options import MotionOptions, SamplingOptions
from vexpress.pipeline import VExpressPipeline
from vexpress.request import Request, SpeechMotion, prepare_request


def from_portrait(
    clip: HeldoutClip, options: SamplingOptions, motion: str, analyzer: FaceAnalyzer, speech_motion: SpeechMotion
) -> HeldoutClip:
    """The clip with the keypoints that a user with its portrait and its speech gets."""
    options = options.changed(fps=float(clip.inputs.fps), image_width=clip.inputs.portrait.width)
    options = options.changed(image_height=clip.inputs.portrait.height)
    request = Request(clip.inputs.portrait, clip.inputs.audio, motion=MotionOptions(motion=motion))
    kps = prepare_request(request, options, lambda: analyzer, lambda: speech_motion).kps[: len(clip.mouth)]
    return replace(clip, inputs=replace(clip.inputs, kps=kps))


def main(arguments: list[str] | None = None) -> None:
    """Prints the figures."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model_dir", type=Path, default=Path("vexpress/demo_pack"))
    parser.add_argument("--num_clips", type=int, default=10)
    args = parser.parse_args(arguments)
    clips = load_heldout_clips(args.model_dir / "heldout", NUM_FRAMES)[: args.num_clips]
    options = load_options(args.model_dir)
    pipeline = VExpressPipeline.from_pretrained(args.model_dir)
    pipeline.set_progress_bar_config(disable=True)
    analyzer = FaceAnalyzer(args.model_dir / LAYOUT["insightface_model_path"], torch.device("cpu"))
    speech_motion = SpeechMotion(ModelPaths.from_model_dir(args.model_dir))
    figures = {}
    for name in ("true", "natural", "still"):
        r, errors = [], []
        for clip in clips:
            if name != "true":
                clip = from_portrait(clip, options, name, analyzer, speech_motion)
            frames = regenerate(pipeline, clip, options)
            mouth = measure_mouth(frames, clip.kps)
            r.append([correlation_or_zero(mouth[:, i], clip.mouth[:, i]) for i in (0, 1)])
            errors += kps_errors(analyzer, frames, clip.kps)
        aperture, width = np.array(r).T
        figures[f"{name} motion"] = {
            "aperture r": round(float(aperture.mean()), 3),
            "aperture r, worst clip": round(float(aperture.min()), 3),
            "width r": round(float(width.mean()), 3),
            "keypoint error, %": round(float(np.nanmean(errors)), 3),
        }
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    sys.exit(run_program(main))
