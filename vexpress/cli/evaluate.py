"""Measures how good generated videos are, in the paper's metrics, beside the rows that give such figures a meaning.

vexpress evaluate --generated_dir generated --real_dir real --output_dir report --fid_network ...
vexpress evaluate --meta_path heldout/metadata.json --model_dir model --output_dir report

With --model_dir, videos that --generated_dir lacks are generated first; torchrun's processes share that. See
docs/evaluation.md.
"""

import logging
from argparse import SUPPRESS, Namespace
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from vexpress.cli.adapters import add_adapter_flags, unused_adapter_flags
from vexpress.cli.parser import ArgumentParser, add_options, refuse_unused
from vexpress.cli.program import set_up_logging, torchrun_processes
from vexpress.errors import InputError
from vexpress.evaluation.settings import LANDMARKS, Settings
from vexpress.fields import check_range
from vexpress.options import PRESET_HELP, PRESETS, SamplingOptions, load_model_defaults, option_fields, unlearned
from vexpress.unused import unused_sampling

if TYPE_CHECKING:
    import torch

    from vexpress.evaluation.clips import Pair, Problem

logger = logging.getLogger("evaluate")

GENERATION = tuple(f for f in option_fields() if f.name not in ("fps", "crop_scale", "crop_face_height"))
"""Options of the videos that are generated; their frame rate and crop are those of the real clips."""
MEASURING = tuple(field for field in fields(Settings) if field.name not in ("mouth_meter", "seed"))
NETWORKS = {
    "fid_network": "Inception v3 as TorchScript, or .safetensors of ours",
    "fvd_network": "I3D as TorchScript, or .safetensors of ours",
    "syncnet_path": "syncnet_v2.model, or a SyncNet of other sizes",
    "insightface_model_path": "folder of insightface's models",
}


def build_parser(meters: Mapping[str, Callable]) -> ArgumentParser:
    """The flags; `meters` are the mouth meters to choose from, by name."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    videos = parser.add_argument_group("what is compared")
    videos.add_argument("--generated_dir", type=Path, help="folder of generated videos; unset: OUTPUT_DIR/generated")
    videos.add_argument("--real_dir", type=Path, help="folder of real videos of the same names")
    videos.add_argument("--meta_path", type=Path, help="metadata JSON of a data set, in place of --real_dir")
    videos.add_argument("--model_dir", type=Path, help="generate what is missing with this model; also, its networks")
    videos.add_argument("--output_dir", type=Path, required=True, help="folder for report and pictures")
    videos.add_argument("--group_by", nargs="+", default=[], help="columns of --meta_path, a row per value")
    networks = parser.add_argument_group("networks; unset: those in MODEL_DIR")
    for name, text in NETWORKS.items():
        networks.add_argument(f"--{name}", help=text)
    networks.add_argument("--trusted_sha256", nargs="+", default=[], help="TorchScript in MODEL_DIR that may be loaded")
    how = parser.add_argument_group("how")
    add_options(how, MEASURING)
    how.add_argument("--max_clips", type=int, help="most clips that are measured, from the first on")
    names = ("auto", LANDMARKS, *meters)
    how.add_argument("--mouth_meter", choices=names, default="auto", help="what measures the mouths")
    how.add_argument("--bootstrap_seed", type=int, default=0, help="of resampling and shuffling")
    add_adapter_flags(how)
    how.add_argument("--device", choices=("cuda", "cpu", "mps"), help="unset: what is there")
    how.add_argument("--gpu_id", type=int, default=0, help="index of the CUDA device")
    sampling = parser.add_argument_group("generation; unset: what the model suggests")
    sampling.add_argument("--preset", choices=PRESETS, help=PRESET_HELP)
    add_options(sampling, GENERATION, default=SUPPRESS)
    return parser


def parse_arguments(arguments: list[str] | None, meters: Mapping[str, Callable]) -> Namespace:
    """The flags, checked; `settings` and, with a model to generate with, `sampling` hold those of the tables."""
    parser = build_parser(meters)
    args = parser.parse_args(arguments)
    if args.max_clips is not None:
        check_range("max_clips", args.max_clips, 1, 10**9)
    check_range("bootstrap_seed", args.bootstrap_seed, 0, 2**63 - 1)
    measuring = {field.name: getattr(args, field.name) for field in MEASURING}
    args.settings = Settings(**measuring, mouth_meter=args.mouth_meter, seed=args.bootstrap_seed)
    if (args.real_dir is None) == (args.meta_path is None):
        raise InputError("give either `real_dir` or `meta_path`: a folder of real videos, or a data set's metadata")
    if args.real_dir is not None and args.generated_dir is None:
        raise InputError("`generated_dir` is missing: give the folder of generated videos")
    if args.real_dir is not None and args.group_by:
        raise InputError("`group_by` needs the columns of `meta_path`, in place of `real_dir`")
    if args.meta_path is not None and args.model_dir is None and args.generated_dir is None:
        raise InputError("give `model_dir` to generate the videos of `meta_path`, or `generated_dir` with them")
    if args.model_dir is not None and not args.model_dir.is_dir():
        raise InputError("no such folder", "model_dir", args.model_dir)
    given = {field.name: getattr(args, field.name) for field in GENERATION if hasattr(args, field.name)}
    generates = args.model_dir is not None and args.meta_path is not None
    if (given or args.preset or args.lora) and not generates:
        name = next(iter(given), "preset" if args.preset else "lora")
        raise InputError(f"`{name}` says how to generate, which needs `meta_path` and `model_dir`")
    args.sampling = SamplingOptions(**load_model_defaults(args.model_dir, args.preset) | given) if generates else None
    unused = unused_sampling(args.sampling) if generates else {}
    refuse_unused(parser.given(), unused | unused_adapter_flags(args))
    args.generated_dir = args.generated_dir or args.output_dir / "generated"
    return args


def generate(
    args: Namespace, pairs: "list[Pair]", device: "torch.device", rank: int, num_processes: int
) -> "list[Problem]":
    """Makes the videos that are missing, this process its share of them; all processes return all problems."""
    from torch import distributed
    from tqdm import tqdm

    from vexpress.devices import resolve_dtype
    from vexpress.evaluation.generate import Generation, check_generation, generate_missing, record_generation
    from vexpress.model_folder import ModelPaths
    from vexpress.pipeline import VExpressPipeline

    options, settings = args.sampling, args.settings
    dtype = resolve_dtype(options.dtype, device)
    facts = str(args.model_dir), settings.max_seconds, settings.reference_frame, options, dtype
    generation = Generation(*facts, tuple(args.lora))
    if rank == 0:
        recorded = generation.recorded()
        check_generation(args.generated_dir, pairs, recorded)
    problems: list[Problem] = []
    if not all(pair.generated.is_file() for pair in pairs):
        if warning := unlearned(options, load_model_defaults(args.model_dir)):
            logger.warning(warning)
        paths = ModelPaths.from_model_dir(args.model_dir)
        pipeline = VExpressPipeline.from_released(paths, dtype, device, options.test_stage, options.scheduler)
        pipeline.set_progress_bar_config(disable=True)
        pipeline.use_adapters(args.lora, check_base=not args.lora_any_base)
        if rank == 0:
            args.output_dir.mkdir(parents=True, exist_ok=True)  # before hours of work
            args.generated_dir.mkdir(parents=True, exist_ok=True)
            record_generation(args.generated_dir, recorded)
        if num_processes > 1:
            distributed.barrier()  # nothing is generated into a folder that was refused
        share = tqdm(pairs[rank::num_processes], "generate", disable=rank != 0)
        problems = generate_missing(pipeline, share, generation, device)
    if num_processes > 1:
        gathered: list[list[Problem]] = [[] for _ in range(num_processes)]
        distributed.all_gather_object(gathered, problems)
        problems = [problem for part in gathered for problem in part]
    return problems


def main(arguments: list[str] | None = None, meters: Mapping[str, Callable] | None = None) -> None:
    """Pairs, videos, measures, report.

    Args:
        arguments: of the command line; None reads sys.argv.
        meters: name -> mouth meter, beside the package's own, which reads landmarks; see `evaluation.measure`.
    """
    meters = meters or {}
    args = parse_arguments(arguments, meters)
    from vexpress.devices import process_number, resolve_device

    with torchrun_processes() as (rank, num_processes):
        set_up_logging(logging.INFO if rank == 0 else logging.ERROR)
        device = resolve_device(args.device, process_number("LOCAL_RANK", args.gpu_id))
        run(args, meters, device, rank, num_processes)


def run(args: Namespace, meters: Mapping[str, Callable], device: "torch.device", rank: int, num_processes: int) -> None:
    """The work, as one of the processes; process 0 measures and reports."""
    from tqdm import tqdm

    from vexpress.evaluation.clips import check_groups, pair_folders, pair_metadata
    from vexpress.evaluation.evaluate import evaluate, find_networks, load_networks
    from vexpress.evaluation.report import format_groups, format_problems, format_table

    problems: list[Problem] = []
    if args.meta_path is not None:
        pairs = pair_metadata(args.meta_path, args.generated_dir)[: args.max_clips]
        check_groups(pairs, args.group_by)
    else:
        pairs, problems = pair_folders(args.generated_dir, args.real_dir)
        pairs = pairs[: args.max_clips]
    networks = None
    if rank == 0:  # before hours of work, so that a wrong file is found at once
        given = {name: getattr(args, name) for name in NETWORKS if getattr(args, name)}
        trusted = [text.lower() for text in args.trusted_sha256]
        networks = load_networks(find_networks(args.model_dir, **given), device, given, trusted)
        for metric, why in networks.missing.items():
            logger.warning("%s will not be measured: %s", metric, why)
    if args.sampling is not None:
        problems += generate(args, pairs, device, rank, num_processes)
    if rank != 0:
        return
    args.output_dir.mkdir(parents=True, exist_ok=True)
    failed = {problem.clip for problem in problems}
    report = evaluate(
        [pair for pair in pairs if pair.name not in failed],
        networks,
        args.settings,
        args.output_dir,
        source=f"Generated videos in `{args.generated_dir}` against `{args.real_dir or args.meta_path}`",
        group_by=args.group_by,
        problems=problems,
        progress=lambda chosen: tqdm(chosen, "measure", unit="clip"),
        meters=meters,
    )
    print(format_table(report.rows))
    if report.group_rows:
        print("", format_groups(report.group_rows), sep="\n")
    if report.problems:
        print(f"\nnot measured, or in part ({len(report.problems)}):", format_problems(report.problems), sep="\n")
    print(f"\n{args.output_dir / 'report.md'}: {len(report.measures)} clips")
