"""Re-runs the paper's argument on drawn faces: trains variants of the demo model, measures what drives their mouths.

    OMP_NUM_THREADS=1 python scripts/ablation.py         # hours; the same command goes on where it was cut off
    python scripts/ablation.py --quick                   # minutes; figures mean nothing, everything is run once

See docs/ablation.md, also for the data that it needs. Processes with different --seeds may share an --output_dir; then
the command with all seeds makes the report of all.
"""

import json
import logging
import shutil
import signal
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch

from scripts.demo import ablation_report as ablation
from scripts.demo.ablation_report import FULL, PLAIN, SHORTCUT, Result
from scripts.demo.ablation_variants import (
    STAGES,
    TITLES,
    VARIANTS,
    Settings,
    Variant,
    build_configs,
    digest_of,
    frames_seen,
    leaking_dir,
    sampling,
)
from scripts.demo.measure_pack import (
    Clip,
    colour_error,
    correlation,
    follow,
    generate,
    least_alike,
    load_clips,
)
from scripts.demo.mouth_meter import measure_mouth
from scripts.demo.shortcut_dataset import NeighbourReferenceDataset, write_leaking_keypoints
from vexpress.cli.parser import ArgumentParser
from vexpress.cli.program import run_program
from vexpress.devices import resolve_device
from vexpress.diffusion.latents import vae_downsampling
from vexpress.errors import InputError
from vexpress.files import check_output_path, replacing
from vexpress.logs import set_up_logging
from vexpress.model_folder import ModelPaths
from vexpress.pipeline import VExpressPipeline
from vexpress.training.config import TrainConfig
from vexpress.training.trainer import Trainer

logger = logging.getLogger("ablation")

EXIT_TERMINATED = 128 + signal.SIGTERM
FIRST_MARK, LAST_MARK = "<!-- results: written by scripts/ablation.py -->", "<!-- end of results -->"
FIGURE_NAME = "ablation.png"


# ---- training --------------------------------------------------------------------------------------------------------


def train_stage(config: TrainConfig, data_kind: str) -> None:
    """Trains a stage, unless that is done.

    Raises:
        InputError: data or settings that do not fit.
        SystemExit: SIGTERM came; the state is saved.
    """
    folder = Path(config.output_dir)
    if (folder / "done").exists():
        return
    trainer = Trainer(config)
    if data_kind == SHORTCUT:
        trainer.dataset = NeighbourReferenceDataset(
            config.data,
            seed=config.seed,
            latent_downsampling=vae_downsampling(trainer.vae),
            audio_dim=trainer.networks.audio_projection.config.embedding_dim,
        )
    trainer.train()
    if trainer.step < config.solver.max_train_steps:
        sys.exit(EXIT_TERMINATED)
    (folder / "done").touch()
    shutil.rmtree(folder / "checkpoints")  # four times the size of what is needed from here on


def train_variant(variant: Variant, configs: dict[str, TrainConfig], data_kind: str) -> Path:
    """Trains what the last stage needs; returns the model's folder."""
    needed = [STAGES[-1]]
    while start := variant.starts_from.get(needed[0]):
        needed.insert(0, start)
    for stage in needed:
        train_stage(configs[stage], data_kind)
    return Path(configs[STAGES[-1]].output_dir) / "export"


# ---- measuring -------------------------------------------------------------------------------------------------------


def measure_model(pipeline: VExpressPipeline, clips: list[Clip], **options) -> dict[str, list[float]]:
    """Figures of `ablation.FIGURES`, each with one number per clip."""
    generated = [generate(pipeline, clip, **options) for clip in clips]
    r, mouths = follow(generated, clips)
    swapped = []
    for clip in clips:
        other = least_alike(clip, clips)
        aperture = measure_mouth(generate(pipeline, clip, other.waveform, **options), clip.kps)[:, 0]
        swapped.append(correlation(aperture, other.mouth[:, 0]) - correlation(aperture, clip.mouth[:, 0]))
    figures = {
        "aperture_r": r[:, 0],
        "swapped": swapped,
        "width_r": r[:, 1],
        "movement": [amplitude(mouth[:, 0]) / amplitude(clip.mouth[:, 0]) for mouth, clip in zip(mouths, clips)],
        "colour_error": [colour_error(frames, clip).mean() for frames, clip in zip(generated, clips)],
    }
    return {name: [float(value) for value in values] for name, values in figures.items()}


def amplitude(aperture: np.ndarray) -> float:
    """Standard deviation over the frames where the mouth is found; 0 where it never is."""
    known = aperture[np.isfinite(aperture)]
    return float(known.std()) if len(known) else 0.0


def measure_export(folder: Path, clips: list[Clip], config: TrainConfig, settings: Settings) -> dict[str, list[float]]:
    """Measures a trained model."""
    paths = ModelPaths.from_model_dir(folder)
    device = resolve_device()
    pipeline = VExpressPipeline.from_released(paths, device=device).to(device)
    pipeline.set_progress_bar_config(disable=True)
    return measure_model(
        pipeline,
        clips,
        **sampling(settings),
        num_pad_audio_frames=config.data.num_padding_audio_frames,
        median_filter=False,
    )


def load_test_clips(settings: Settings, config: TrainConfig) -> list[Clip]:
    """Reads the test clips.

    Raises:
        InputError: they are missing, too few, too short, or not of the size that is trained.
    """
    try:
        clips = load_clips(settings.test_dir, settings.num_frames)[: settings.num_clips]
    except (OSError, KeyError) as error:
        raise InputError(
            f"--test_dir {settings.test_dir}: is no drawn dataset ({error}); docs/ablation.md says how to make one"
        ) from error
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"--test_dir {settings.test_dir}: its clips must have more than {settings.num_frames} frames ({error})"
        ) from error
    size = (config.data.train_height, config.data.train_width)
    wrong = [clip.name for clip in clips if clip.frames.shape[1:3] != size]
    if wrong:
        raise InputError(
            f"--test_dir {settings.test_dir}: {wrong[0]} is not {size[1]}x{size[0]} px, the size that is trained; "
            "make clips with make_drawn_dataset.py --size"
        )
    if len(clips) < 2:
        raise InputError(f"--test_dir {settings.test_dir}: has {len(clips)} clips, needed are 2 or more")
    return clips


# ---- results ---------------------------------------------------------------------------------------------------------


def result_path(name: str, data_kind: str, seed: int, configs: dict[str, TrainConfig], settings: Settings) -> Path:
    """Where a variant's figures lie; the name tells all that they depend on."""
    test = (str(settings.test_dir), settings.num_clips, settings.num_frames, sampling(settings))
    digest = digest_of(f"{Path(configs[STAGES[-1]].output_dir).name} {test}", settings)
    return settings.output_dir / "results" / f"{data_kind}_{name}_seed{seed}_{digest}.json"


def read_result(path: Path) -> Result:
    """Reads the figures of one trained model.

    Raises:
        InputError: the file is damaged.
    """
    try:
        return Result(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise InputError(f"result {path}: damaged ({error}); delete it, and the same command makes it again") from error


def find_results(seeds: Sequence[int], settings: Settings) -> Iterator[Result]:
    """All results that are there, whichever variants and data were asked for now."""
    for kind in (PLAIN, SHORTCUT):
        for name, variant in VARIANTS.items():
            for seed in seeds:
                path = result_path(name, kind, seed, build_configs(variant, kind, seed, settings), settings)
                if path.exists():
                    yield read_result(path)


def format_report(results: Sequence[Result], settings: Settings) -> str:
    """The results in Markdown; the figure lies beside the file."""
    recipe = build_configs(VARIANTS[FULL], PLAIN, 0, settings)
    seeds = sorted({result.seed for result in results})
    num_clips = len(results[0].figures["aperture_r"])
    lines = [
        f"Every model learned from {frames_seen(recipe):,} frames ({settings.scale:g} of the updates in "
        f"`{settings.config_dir}`), seeds {', '.join(map(str, seeds))}; measured on {num_clips} clips of "
        f"{settings.num_frames} frames from `{settings.test_dir}`; means with 95 % intervals over clips and seeds.",
        "",
        *ablation.format_tables(results, TITLES),
        f"![Results]({FIGURE_NAME})",
        "",
        *ablation.read_results(results, TITLES),
    ]
    return "\n".join(lines) + "\n"


def write_report(path: Path, text: str, results: Sequence[Result]) -> None:
    """Writes text, figure, and the numbers behind both; the text into a file that is there between its marks alone."""
    if path.exists() and FIRST_MARK in (old := path.read_text(encoding="utf-8")):
        before, rest = old.split(FIRST_MARK)
        text = f"{before}{FIRST_MARK}\n\n{text}\n{LAST_MARK}{rest.split(LAST_MARK)[1]}"
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    ablation.render_figure(path.parent / FIGURE_NAME, results, TITLES)
    with replacing(path.with_suffix(".json")) as temporary:
        rows = ",\n".join(json.dumps(asdict(result)) for result in results)  # a model per line
        temporary.write_text(f"[\n{rows}\n]\n", encoding="utf-8")


# ---- the program -----------------------------------------------------------------------------------------------------


def run_missing(args: Namespace, settings: Settings, on_result: Callable[[], int]) -> None:
    """Trains and measures what is missing, seed by seed, so that all variants soon have one."""
    jobs = []
    for seed in args.seeds:
        for kind in args.data_kinds:
            for name in args.variants:
                configs = build_configs(VARIANTS[name], kind, seed, settings)
                path = result_path(name, kind, seed, configs, settings)
                if not path.exists():
                    jobs.append((name, kind, seed, configs, path))
    if not jobs:
        return
    clips = load_test_clips(settings, jobs[0][3][STAGES[-1]])
    if SHORTCUT in args.data_kinds:
        plain = build_configs(VARIANTS[FULL], PLAIN, 0, settings)[STAGES[-1]].data.meta_paths
        for number, source in enumerate(plain):
            write_leaking_keypoints(Path(source), leaking_dir(number, settings))
    for number, (name, kind, seed, configs, path) in enumerate(jobs, 1):
        started = time.time()
        logger.info("%d of %d: %s, %s data, seed %d", number, len(jobs), TITLES[name], kind, seed)
        export = train_variant(VARIANTS[name], configs, kind)
        figures = measure_export(export, clips, configs[STAGES[-1]], settings)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(asdict(Result(kind, name, seed, figures)), indent=1) + "\n")
        minutes = (time.time() - started) / 60
        means = ", ".join(f"{title} {np.mean(figures[key]):.3f}" for key, title in ablation.FIGURES.items())
        logger.info("%s, %s data, seed %d: %s; %.1f min", TITLES[name], kind, seed, means, minutes)
        on_result()


def build_parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="NAME")
    parser.add_argument("--data_kinds", nargs="+", choices=(PLAIN, SHORTCUT), default=[PLAIN, SHORTCUT], metavar="KIND")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1], metavar="N")
    parser.add_argument("--scale", type=float, help="share of the updates in --config_dir; unset: 1, with --quick 0.01")
    parser.add_argument("--num_clips", type=int, help="test clips; unset: 10, with --quick 2")
    parser.add_argument("--quick", action="store_true", help="minutes instead of hours, to see that all works")
    parser.add_argument(
        "--config_dir", type=Path, default=Path("training_configs/ablation"), help="of stage_1.yaml ..."
    )
    parser.add_argument("--test_dir", type=Path, default=Path("runs/demo/heldout_64"), help="drawn clips, no leak")
    parser.add_argument("--output_dir", type=Path, help="unset: runs/ablation, with --quick runs/ablation_quick")
    parser.add_argument("--docs_path", type=Path, help="also fill the results into this file, e.g. docs/ablation.md")
    return parser


def read_settings(args: Namespace) -> Settings:
    """Fills what was left open, and looks at the rest.

    Raises:
        InputError: a flag out of range, or a file that cannot be filled.
    """
    scale = (0.01 if args.quick else 1.0) if args.scale is None else args.scale
    num_clips = (2 if args.quick else 10) if args.num_clips is None else args.num_clips
    if not 0 < scale <= 100:
        raise InputError(f"--scale {scale}: must be more than 0, and 100 at most")
    if num_clips < 2:
        raise InputError(f"--num_clips {num_clips}: must be 2 or more, for a clip with the speech of another")
    if min(args.seeds) < 0 or len(set(args.seeds)) < len(args.seeds):
        raise InputError(f"--seeds {' '.join(map(str, args.seeds))}: must be different numbers, 0 or more")
    if args.docs_path:
        if args.quick:
            raise InputError("--docs_path with --quick: its figures mean nothing; leave one of them out")
        check_output_path(args.docs_path, "--docs_path")
        text = args.docs_path.read_text(encoding="utf-8") if args.docs_path.exists() else ""
        if (text.count(FIRST_MARK), text.count(LAST_MARK)) != (1, 1) or text.find(LAST_MARK) < text.find(FIRST_MARK):
            raise InputError(f"--docs_path {args.docs_path}: needs one line {FIRST_MARK} and then one {LAST_MARK}")
    output_dir = args.output_dir or Path("runs/ablation_quick" if args.quick else "runs/ablation")
    settings = Settings(args.config_dir, output_dir, scale, args.test_dir, num_clips, num_frames=48)
    return replace(settings, num_frames=12, num_inference_steps=2) if args.quick else settings


def main(arguments: list[str] | None = None) -> None:
    """Trains, measures and reports."""
    args = build_parser().parse_args(arguments)
    settings = read_settings(args)
    set_up_logging()
    torch.set_num_threads(1)  # more are slower at these sizes
    report_path = settings.output_dir / "report.md"

    def report() -> int:
        results = list(find_results(args.seeds, settings))
        for path in filter(None, (report_path, args.docs_path)):
            write_report(path, format_report(results, settings), results)
        return len(results)

    run_missing(args, settings, on_result=report)
    print(f"{report_path}: {report()} trained models")


if __name__ == "__main__":
    sys.exit(run_program(main))
