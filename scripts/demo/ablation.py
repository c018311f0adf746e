"""Re-runs the paper's argument on drawn faces: trains variants of the demo model, measures what drives their mouths.

    OMP_NUM_THREADS=1 python -m scripts.demo.ablation         # hours; the same command resumes
    python -m scripts.demo.ablation --quick                   # minutes; runs everything once, its figures mean nothing

docs/ablation.md describes it, and how to make the data that it needs. Processes with different --seeds may share an
--output_dir; afterwards the command with all seeds reports them together.
"""

import itertools
import logging
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from scripts.demo.ablation_report import FIGURES, FIRST_MARK, LAST_MARK, Result, format_report, write_report
from scripts.demo.ablation_runs import (
    find_results,
    load_test_clips,
    measure_export,
    result_path,
    train_variant,
    write_result,
)
from scripts.demo.ablation_variants import (
    FULL,
    PLAIN,
    SHORTCUT,
    VARIANT_TITLES,
    VARIANTS,
    AblationSettings,
    build_configs,
    leaking_dir,
)
from scripts.demo.shortcut_dataset import write_leaking_keypoints
from vexpress.cli.parser import ArgumentParser
from vexpress.cli.program import run_program, set_up_logging
from vexpress.errors import InputError
from vexpress.files import check_output_path
from vexpress.options import STAGES

logger = logging.getLogger("ablation")


def run_missing(args: Namespace, settings: AblationSettings, on_result: Callable[[], int]) -> None:
    """Trains and measures what is missing, seed by seed, so that all variants soon have one result."""
    models = itertools.product(args.seeds, args.data_kinds, args.variants)
    missing = [model for model in models if not result_path(*model, settings).exists()]
    if not missing:
        return
    recipe = build_configs(VARIANTS[FULL], PLAIN, 0, settings)[STAGES[-1]]
    clips = load_test_clips(settings, recipe)
    if SHORTCUT in args.data_kinds:
        for number, source in enumerate(recipe.data.meta_paths):
            write_leaking_keypoints(Path(source), leaking_dir(number, settings))
    for number, (seed, kind, variant) in enumerate(missing, 1):
        started = time.monotonic()
        title = f"{VARIANT_TITLES[variant]}, {kind} data, seed {seed}"
        logger.info("%d of %d: %s", number, len(missing), title)
        configs = build_configs(VARIANTS[variant], kind, seed, settings)
        export = train_variant(VARIANTS[variant], configs, kind)
        figures = measure_export(export, clips, configs[STAGES[-1]], settings)
        write_result(result_path(seed, kind, variant, settings), Result(kind, variant, seed, figures))
        means = ", ".join(f"{name} {np.mean(figures[key]):.3f}" for key, name in FIGURES.items())
        logger.info("%s: %s; %.1f min", title, means, (time.monotonic() - started) / 60)
        on_result()


def build_parser() -> ArgumentParser:
    """The flags."""
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
    parser.add_argument("--test_dir", type=Path, default=Path("runs/demo/heldout_pack"), help="drawn clips, no leak")
    parser.add_argument("--output_dir", type=Path, help="unset: runs/ablation, with --quick runs/ablation_quick")
    parser.add_argument("--docs_path", type=Path, help="also fill the results into this file, e.g. docs/ablation.md")
    return parser


def read_settings(args: Namespace) -> AblationSettings:
    """The settings that the flags ask for.

    Raises:
        InputError: a flag is out of range, or `docs_path` has no place for results.
    """
    scale = (0.01 if args.quick else 1.0) if args.scale is None else args.scale
    num_clips = (2 if args.quick else 10) if args.num_clips is None else args.num_clips
    if not 0 < scale <= 100:
        raise InputError("must be more than 0, and 100 at most", "scale", scale)
    if num_clips < 2:
        raise InputError("must be 2 or more, for a clip with the speech of another", "num_clips", num_clips)
    if min(args.seeds) < 0 or len(set(args.seeds)) < len(args.seeds):
        raise InputError("must be different numbers, 0 or more", "seeds", " ".join(map(str, args.seeds)))
    if args.docs_path:
        if args.quick:
            raise InputError("`docs_path` with `quick`: its figures mean nothing; leave one of them out")
        check_output_path(args.docs_path, "docs_path")
        text = args.docs_path.read_text(encoding="utf-8") if args.docs_path.exists() else ""
        if (text.count(FIRST_MARK), text.count(LAST_MARK)) != (1, 1) or text.find(LAST_MARK) < text.find(FIRST_MARK):
            raise InputError(f"needs one line {FIRST_MARK} and then one {LAST_MARK}", "docs_path", args.docs_path)
    output_dir = args.output_dir or Path("runs/ablation_quick" if args.quick else "runs/ablation")
    settings = AblationSettings(args.config_dir, output_dir, scale, args.test_dir, num_clips, num_frames=48)
    return replace(settings, num_frames=12, num_inference_steps=2) if args.quick else settings


def main(arguments: list[str] | None = None) -> None:
    """Trains, measures, reports."""
    args = build_parser().parse_args(arguments)
    settings = read_settings(args)
    set_up_logging()
    torch.set_num_threads(1)  # more are slower at these sizes
    report_path = settings.output_dir / "report.md"

    def report() -> int:
        results = list(find_results(args.seeds, settings))
        for path in filter(None, (report_path, args.docs_path)):
            write_report(path, format_report(results, settings, f"{path.stem}.png"), results)
        return len(results)

    run_missing(args, settings, on_result=report)
    print(f"{report_path}: {report()} trained models")


if __name__ == "__main__":
    sys.exit(run_program(main))
