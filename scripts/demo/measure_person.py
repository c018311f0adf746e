"""Measures adapters of single people: drawn ones of a style that the demo pack has never seen.

    python -m scripts.demo.measure_person --work_dir runs/person --num_people 20 --output_path runs/person/figures.json

Each person has a clip of half a minute to learn from, by `vexpress person`, and another one, with other speech and head
motion, that is generated before and after. What the adapter does to others is measured on the pack's held-out clips,
and that it leaves no trace once it is unloaded. The same command goes on with the next person.
"""

import json
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from scripts.demo.clip_figures import colour_error, follow
from scripts.demo.drawn_people import mouth_from_speech, random_motion
from scripts.demo.drawn_styles import random_styled_person
from scripts.demo.heldout_clips import HeldoutClip, load_heldout_clips, regenerate
from scripts.demo.make_drawn_dataset import ENCODING, random_speech, write_labelled_clip
from vexpress.cli import person as person_command
from vexpress.cli.parser import ArgumentParser
from vexpress.cli.program import run_program, set_up_logging
from vexpress.diffusion.latents import Autoencoder, compute_latents
from vexpress.fields import check_range
from vexpress.files import replacing
from vexpress.media.audio import WAV2VEC2_RATE_HZ
from vexpress.options import SamplingOptions, load_model_defaults
from vexpress.pipeline import VExpressPipeline

FPS, SEED = 30, 11
PARTS = {"train": 30, "test": 3}
"""Data sets of a person -> seconds; each speaks as that split does: other sentences, voices and mostly languages."""
NUM_FRAMES = 48  # that are generated; the portrait is a later one
ADAPTER = "adapter/run/export/adapter.safetensors"
SHEET_PEOPLE, SHEET_COLOURS = 8, 256
PREPARING = ("--min_resolution=32", "--min_face_px=16", "--max_bad_fraction=0.3", "--max_gap=30")


def write_person(index: int, folder: Path, size_px: int) -> None:
    """Writes two clips of one person: `train` and `test`, each a data set of its own."""
    rng = np.random.default_rng((SEED, index))
    someone = random_styled_person(rng)
    for part, seconds in PARTS.items():
        for name in ("clips", "face_info", "labels", "attributes"):
            (folder / part / name).mkdir(parents=True, exist_ok=True)
        num_frames = seconds * FPS
        waveform, _ = random_speech(rng, "train" if part == "train" else "heldout", round(seconds * WAV2VEC2_RATE_HZ))
        mouth = mouth_from_speech(waveform, WAV2VEC2_RATE_HZ, num_frames, FPS)
        motion = random_motion(rng, num_frames, FPS)
        row = write_labelled_clip(folder / part, part, someone, motion, mouth, waveform, FPS, size_px, ENCODING)
        (folder / part / "metadata.json").write_text(json.dumps([row]))


def psnr(frames: np.ndarray, true: np.ndarray) -> float:
    """Of clips (f H W 3) uint8, dB."""
    return float(10 * np.log10(255**2 / np.square(frames.astype(float) - true).mean()))


def figures_of(pipeline: VExpressPipeline, clips: list[HeldoutClip], options: SamplingOptions) -> dict[str, float]:
    """Means over clips of their colour error (of 255), PSNR (dB) and r of aperture and width."""
    return compare([regenerate(pipeline, clip, options) for clip in clips], clips)


def figures_of_autoencoder(pipeline: VExpressPipeline, clips: list[HeldoutClip]) -> dict[str, float]:
    """The same of the true frames, encoded and decoded: no adapter can show more, since it leaves the autoencoder."""
    return compare([through_autoencoder(pipeline.vae, clip.frames) for clip in clips], clips)


@torch.inference_mode()
def through_autoencoder(vae: Autoencoder, frames: np.ndarray) -> np.ndarray:
    """Encodes and decodes frames (f H W 3) uint8."""
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2) / 127.5 - 1
    decoded = vae.decode(compute_latents(vae, pixels)).sample
    return ((decoded.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()


def compare(generated: Sequence[np.ndarray], clips: list[HeldoutClip]) -> dict[str, float]:
    """The figures of generated clips, each (f H W 3) uint8."""
    r, _ = follow(generated, clips)
    return {
        "colour_error": float(np.mean([colour_error(frames, clip) for frames, clip in zip(generated, clips)])),
        "psnr": float(np.mean([psnr(frames, clip.frames) for frames, clip in zip(generated, clips)])),
        "aperture_r": float(r[:, 0].mean()),
        "width_r": float(r[:, 1].mean()),
    }


def measure_person(
    index: int, folder: Path, model_dir: Path, others: list[HeldoutClip], overrides: list[str], prior: list[str]
) -> dict[str, object]:
    """Trains an adapter for one person, and measures them and others before and after."""
    options = SamplingOptions(**load_model_defaults(model_dir))
    size = options.image_width
    if not (folder / "test" / "metadata.json").exists():
        write_person(index, folder, size)
    settings = [f"data.train_width={size}", f"data.train_height={size}", *overrides]
    flags = ["--model_dir", str(model_dir), "--config", "training_configs/demo/person.yaml", *PREPARING]
    started = time.process_time()
    video = folder / "train" / "clips" / "train.mp4"
    sets = [part for setting in settings for part in ("--set", setting)]
    person_command.main([*flags, *prior, *sets, "--output_dir", str(folder / "adapter"), str(video)])
    seconds = time.process_time() - started

    clips = load_heldout_clips(folder / "test", NUM_FRAMES)
    pipeline = VExpressPipeline.from_pretrained(model_dir)
    pipeline.set_progress_bar_config(disable=True)
    before = figures_of(pipeline, clips, options)
    others_before = figures_of(pipeline, others, options)
    frames = regenerate(pipeline, clips[0], options)
    pipeline.load_lora_weights(folder / ADAPTER)
    pipeline.fuse_lora()
    after, others_after = (figures_of(pipeline, some, options) for some in (clips, others))
    pipeline.unload_lora_weights()
    return {
        "person": index,
        "cpu_seconds": seconds,  # of preparation, latents and training; 0 where they were done before
        "before": before,
        "after": after,
        "autoencoder": figures_of_autoencoder(pipeline, clips),
        "others_before": others_before,
        "others_after": others_after,
        "exact_after_unloading": bool(np.array_equal(regenerate(pipeline, clips[0], options), frames)),
    }


def render_sheet(work_dir: Path, model_dir: Path, people: list[int]) -> np.ndarray:
    """A frame of each of these people, who have been measured: true, before and after, one below the other."""
    options = SamplingOptions(**load_model_defaults(model_dir))
    pipeline = VExpressPipeline.from_pretrained(model_dir)
    pipeline.set_progress_bar_config(disable=True)
    columns = []
    for index in people:
        folder = work_dir / f"person_{index:02d}"
        [clip] = load_heldout_clips(folder / "test", NUM_FRAMES)
        shown = [clip.frames, regenerate(pipeline, clip, options)]
        pipeline.load_lora_weights(folder / ADAPTER)
        shown.append(regenerate(pipeline, clip, options))
        pipeline.unload_lora_weights()
        columns.append(np.concatenate([frames[NUM_FRAMES // 2] for frames in shown]))
    return np.concatenate(columns, axis=1)


def main(arguments: list[str] | None = None) -> None:
    """Prints and writes the figures of each person."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work_dir", type=Path, required=True, help="a folder per person is made in it")
    parser.add_argument("--model_dir", type=Path, default=Path("vexpress/demo_pack"))
    parser.add_argument("--num_people", type=int, default=20)
    parser.add_argument("--first", type=int, default=0, help="number of the first person")
    parser.add_argument("--num_others", type=int, default=4, help="held-out clips of others")
    parser.add_argument("--prior_meta_path", type=Path, help="clips of others to mix in, as `vexpress person` has it")
    parser.add_argument("--prior_share", type=float, help="of the samples; unset: as `vexpress person` has it")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change of the configuration")
    parser.add_argument("--output_path", type=Path, required=True, help="JSON to write")
    parser.add_argument("--sheet_path", type=Path, help="PNG to write: the first people, true, before and after")
    args = parser.parse_args(arguments)
    check_range("num_people", args.num_people, 1, 1000)
    others = load_heldout_clips(args.model_dir / "heldout", NUM_FRAMES)[: args.num_others]
    prior = [f"--prior_meta_path={args.prior_meta_path}"] if args.prior_meta_path else []
    prior += [f"--prior_share={args.prior_share}"] if args.prior_share is not None else []
    done = json.loads(args.output_path.read_text()) if args.output_path.exists() else []
    for index in range(args.first, args.first + args.num_people):
        if any(row["person"] == index for row in done):
            continue
        folder = args.work_dir / f"person_{index:02d}"
        row = measure_person(index, folder, args.model_dir, others, args.set, prior)
        set_up_logging(logging.WARNING)
        done.append(row)
        with replacing(args.output_path) as temporary:
            temporary.write_text(json.dumps(done, indent=1) + "\n")
        print(json.dumps(row))
    if args.sheet_path:
        sheet = render_sheet(args.work_dir, args.model_dir, [row["person"] for row in done][:SHEET_PEOPLE])
        with replacing(args.sheet_path) as temporary:
            Image.fromarray(sheet).quantize(SHEET_COLOURS).save(temporary, format="PNG", optimize=True)
    for key in ("before", "after", "autoencoder", "others_before", "others_after"):
        for word, average in (("mean", np.mean), ("median", np.median)):  # the meter misreads a few people
            figures = {name: average([row[key][name] for row in done]) for name in done[0][key]}
            print(f"{key:14} {word:6}", "  ".join(f"{name} {value:.3f}" for name, value in figures.items()))


if __name__ == "__main__":
    sys.exit(run_program(main))
