"""Measures how good generated videos are, in the paper's metrics, beside the rows that give such figures a meaning.

    python scripts/evaluate.py --generated_dir generated --real_dir real --output_dir report --fid_network ...
    python scripts/evaluate.py --meta_path heldout/metadata.json --model_dir model --output_dir report

With --model_dir, videos that --generated_dir lacks are generated first; torchrun's processes share that, and flags of
inference.py about sampling, size and dtype are taken as well. See docs/evaluation.md.
"""

import logging
import math
import os
from argparse import Namespace
from pathlib import Path

import torch
import torch.distributed as dist
from tqdm import tqdm

from vexpress.cli import generate as inference
from vexpress.cli.parser import ArgumentParser
from vexpress.devices import resolve_device, resolve_dtype
from vexpress.errors import InputError
from vexpress.evaluation.clips import Pair, Problem, check_groups, pair_folders, pair_metadata
from vexpress.evaluation.evaluate import NETWORK_FLAGS, evaluate, find_networks, load_networks
from vexpress.evaluation.generate import Generation, check_generation, generate_missing
from vexpress.evaluation.measure import MOUTH_METERS, Settings
from vexpress.evaluation.report import format_groups, format_problems, format_table
from vexpress.logs import set_up_logging
from vexpress.model_folder import ModelPaths
from vexpress.pipeline import VExpressPipeline

logger = logging.getLogger("evaluate")

GENERATION = (
    *inference.SAMPLING,
    "image_width",
    "image_height",
    "no_median_filter",
    "scheduler",
    "test_stage",
    "dtype",
)
"""Flags of inference.py that say how videos are generated."""


def build_parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    videos = parser.add_argument_group("what is compared")
    videos.add_argument("--generated_dir", type=Path, help="folder of generated videos; unset: OUTPUT_DIR/generated")
    videos.add_argument("--real_dir", type=Path, help="folder of real videos of the same names")
    videos.add_argument("--meta_path", type=Path, help="metadata JSON of a dataset, in place of --real_dir")
    videos.add_argument("--model_dir", type=Path, help="generate what is missing with this model; also, its networks")
    videos.add_argument("--output_dir", type=Path, required=True, help="folder for report and pictures")
    videos.add_argument("--group_by", nargs="+", default=[], help="columns of --meta_path, a row per value")
    networks = parser.add_argument_group("networks; unset: those in MODEL_DIR")
    networks.add_argument("--fid_network", help="Inception v3 as TorchScript")
    networks.add_argument("--fvd_network", help="I3D as TorchScript")
    networks.add_argument("--syncnet_path", help="syncnet_v2.model, or a SyncNet of other sizes")
    networks.add_argument("--insightface_model_path", help="folder of insightface's models")
    how = parser.add_argument_group("how")
    how.add_argument("--max_seconds", type=float, default=Settings.max_seconds, help="of each video, from its start")
    how.add_argument("--max_clips", type=int, help="the first so many clips only")
    how.add_argument("--reference_frame", type=int, default=Settings.reference_frame, help="of the real clip: portrait")
    how.add_argument("--mouth_meter", choices=MOUTH_METERS, default=Settings.mouth_meter, help="drawn: by colours")
    how.add_argument("--num_resamples", type=int, default=Settings.num_resamples, help="for intervals of means")
    how.add_argument(
        "--num_distance_resamples", type=int, default=Settings.num_distance_resamples, help="for those of FID and FVD"
    )
    how.add_argument("--bootstrap_seed", type=int, default=Settings.seed, help="of resamples and shuffling")
    how.add_argument("--device", choices=("cuda", "cpu", "mps"), help="unset: what is there")
    how.add_argument("--gpu_id", type=int, default=0, help="index of the CUDA device")
    return parser


def parse_arguments(arguments: list[str] | None) -> tuple[Namespace, list[str]]:
    """Our flags, checked, and the rest, which are inference.py's."""
    args, rest = build_parser().parse_known_args(arguments)
    for name, low, high in (
        ("max_seconds", 0.1, 3600), ("max_clips", 1, 10**9), ("reference_frame", 0, 10**9),
        ("num_resamples", 10, 10**6), ("num_distance_resamples", 2, 10**6), ("bootstrap_seed", 0, 2**63 - 1),
    ):  # fmt: skip
        value = getattr(args, name)
        if value is not None and not (math.isfinite(value) and low <= value <= high):
            raise InputError(f"--{name} {value}: must be {low} to {high}")
    if (args.real_dir is None) == (args.meta_path is None):
        raise InputError("give either --real_dir or --meta_path: a folder of real videos, or a dataset's metadata")
    if args.real_dir is not None and args.generated_dir is None:
        raise InputError("`generated_dir` is missing: give the folder of generated videos")
    if args.real_dir is not None and args.group_by:
        raise InputError("--group_by needs the columns of --meta_path, in place of --real_dir")
    if args.meta_path is not None and args.model_dir is None and args.generated_dir is None:
        raise InputError("give --model_dir to generate the videos of --meta_path, or --generated_dir with them")
    if args.model_dir is not None and not args.model_dir.is_dir():
        raise InputError("no such folder", "model_dir", args.model_dir)
    unknown = [flag for flag in rest if flag.startswith("--") and flag[2:].partition("=")[0] not in GENERATION]
    if unknown or rest and not rest[0].startswith("--"):
        raise InputError(f"unrecognized arguments: {' '.join(unknown or rest)}; see --help")
    if rest and (args.model_dir is None or args.meta_path is None):
        raise InputError(f"{rest[0]} says how to generate, which needs --meta_path and --model_dir")
    args.output_dir.mkdir(parents=True, exist_ok=True)
    return args, rest


def join_processes() -> tuple[int, int]:
    """Joins torchrun's processes; returns this one's rank and their number."""
    num_processes = int(os.environ.get("WORLD_SIZE", "1"))
    if num_processes > 1:
        dist.init_process_group("gloo")
        return dist.get_rank(), num_processes
    return 0, 1


def generate(
    args: Namespace, rest: list[str], pairs: list[Pair], device: torch.device, rank: int, num_processes: int
) -> list[Problem]:
    """Makes the videos that are missing, this process its share of them; all processes return all problems."""
    flags = inference.parse_generation_flags(args.model_dir, rest)
    sampling = inference.sampling_options(flags)
    size = (flags.image_width, flags.image_height)
    generation = Generation(str(args.model_dir), *size, args.max_seconds, args.reference_frame, sampling)
    args.generated_dir.mkdir(parents=True, exist_ok=True)
    if rank == 0:
        check_generation(args.generated_dir, generation)
    if num_processes > 1:
        dist.barrier()  # nothing is generated into a folder that was refused
    problems: list[Problem] = []
    if not all(pair.generated.is_file() for pair in pairs):
        dtype = resolve_dtype(flags.dtype or ("fp16" if device.type == "cuda" else "fp32"))
        paths = ModelPaths.from_model_dir(args.model_dir)
        pipeline = VExpressPipeline.from_released(paths, dtype, device, flags.test_stage, flags.scheduler)
        pipeline.set_progress_bar_config(disable=True)
        share = tqdm(pairs[rank::num_processes], "generate", disable=rank != 0)
        problems = generate_missing(pipeline, share, generation, device)
    if num_processes > 1:
        gathered: list[list[Problem]] = [[] for _ in range(num_processes)]
        dist.all_gather_object(gathered, problems)
        problems = [problem for part in gathered for problem in part]
    return problems


def main(arguments: list[str] | None = None) -> None:
    """Pairs, videos, measures, report."""
    args, rest = parse_arguments(arguments)
    rank, num_processes = join_processes()
    set_up_logging(logging.INFO if rank == 0 else logging.ERROR)
    try:
        device = resolve_device(args.device, int(os.environ.get("LOCAL_RANK", args.gpu_id)))
        run(args, rest, device, rank, num_processes)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def run(args: Namespace, rest: list[str], device: torch.device, rank: int, num_processes: int) -> None:
    """The work, as one of the processes; process 0 measures and reports."""
    args.generated_dir = args.generated_dir or args.output_dir / "generated"
    problems: list[Problem] = []
    if args.meta_path is not None:
        pairs = pair_metadata(args.meta_path, args.generated_dir)[: args.max_clips]
        check_groups(pairs, args.group_by)
    else:
        pairs, problems = pair_folders(args.generated_dir, args.real_dir)
        pairs = pairs[: args.max_clips]
    networks = None
    if rank == 0:  # before hours of work, so that a wrong file is found at once
        networks = load_networks(find_networks(args.model_dir, **{f: getattr(args, f) for f in NETWORK_FLAGS}), device)
        for metric, why in networks.missing.items():
            logger.warning("%s will not be measured: %s", metric, why)
    if args.model_dir is not None and args.meta_path is not None:
        problems += generate(args, rest, pairs, device, rank, num_processes)
    if rank != 0:
        return
    failed = {problem.clip for problem in problems}
    settings = Settings(
        args.max_seconds, args.reference_frame, args.mouth_meter, args.bootstrap_seed, args.num_resamples,
        args.num_distance_resamples,
    )  # fmt: skip
    real = args.real_dir or args.meta_path
    source = f"Generated videos in `{args.generated_dir}` against `{real}`"
    chosen = [pair for pair in pairs if pair.name not in failed]
    report = evaluate(
        chosen, networks, settings, args.output_dir, source, args.group_by, problems,
        lambda chosen: tqdm(chosen, "measure", unit="clip"),
    )  # fmt: skip
    print(format_table(report.rows))
    if report.group_rows:
        print("", format_groups(report.group_rows), sep="\n")
    if report.problems:
        print(f"\nnot measured, or in part ({len(report.problems)}):", format_problems(report.problems), sep="\n")
    print(f"\n{args.output_dir / 'report.md'}: {len(report.measures)} clips")
