"""Makes a training data set of a folder of videos: clips around the face, face info, audio states, metadata.json.

vexpress prepare --input_dir raw --output_dir dataset --num_processes 4
torchrun --nproc_per_node 8 scripts/prepare_dataset/prepare_dataset.py --input_dir raw --output_dir dataset
vexpress prepare --input_dir raw --output_dir dataset --runner ray --ray_address 10.0.0.1:6379

The same command goes on where it was cut off.
"""

import logging
from argparse import Namespace
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from vexpress.cli.parser import ArgumentParser, add_options
from vexpress.cli.program import set_up_logging
from vexpress.errors import InputError
from vexpress.fields import check_range
from vexpress.model_folder import LAYOUT
from vexpress.prepare.settings import PrepareSettings
from vexpress.storage import to_path

if TYPE_CHECKING:
    from vexpress.prepare.folder import Preparation
    from vexpress.prepare.runner import Runner

logger = logging.getLogger("prepare")

MAX_PROCESSES = 1024


def build_parser() -> ArgumentParser:
    """The flags; those of the clips are the fields of `PrepareSettings`."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--input_dir", required=True, type=to_path, help="folder or URL (s3://, ...) of videos, searched at any depth"
    )
    parser.add_argument("--output_dir", required=True, type=to_path, help="folder or URL; the same command goes on")
    add_options(parser.add_argument_group("clips"), fields(PrepareSettings))
    machine = parser.add_argument_group("models and machine")
    machine.add_argument("--model_dir", type=Path, default=Path("model_ckpts"), help="folder in the released layout")
    for name in ("insightface_model_path", "audio_encoder_path"):
        machine.add_argument(f"--{name}", type=Path, help=f"in place of MODEL_DIR/{LAYOUT[name]}")
    machine.add_argument("--syncnet_path", type=Path, help="in place of MODEL_DIR/evaluation/syncnet...; unset: that")
    machine.add_argument("--device", choices=("cuda", "cpu", "mps"), help="unset: what is there")
    machine.add_argument("--gpu_id", type=int, default=0, help="with torchrun: of its process 0, the others follow")
    machine.add_argument("--runner", choices=("local", "ray"), default="local", help="this machine or a Ray cluster")
    machine.add_argument(
        "--num_processes",
        type=int,
        help="processes here, unset is 1; with torchrun: of each process; with Ray: of the cluster, unset is its CPUs",
    )
    machine.add_argument("--ray_address", help="HOST:PORT of a Ray cluster; unset: one is started here for this run")
    return parser


def build_preparation(args: Namespace) -> "Preparation":
    """Turns flags into what to do.

    Raises:
        InputError: a flag that cannot be.
    """
    settings = PrepareSettings(**{field.name: getattr(args, field.name) for field in fields(PrepareSettings)})
    from vexpress.devices import process_number, resolve_device
    from vexpress.prepare.folder import Preparation

    device = args.device
    if args.runner == "local":
        device = str(resolve_device(device, args.gpu_id + process_number("LOCAL_RANK", 0)))
    return Preparation(
        input_dir=args.input_dir,
        output_dir=args.output_dir,
        settings=settings,
        insightface_model_path=args.insightface_model_path or args.model_dir / LAYOUT["insightface_model_path"],
        audio_encoder_path=args.audio_encoder_path or args.model_dir / LAYOUT["audio_encoder_path"],
        syncnet_path=args.syncnet_path or _find_syncnet(args.model_dir),
        device=device,
    )


def build_runner(args: Namespace, world_size: int) -> "Runner":
    """Turns flags into where to do it.

    Raises:
        InputError: a flag that cannot be.
    """
    if args.num_processes is not None:
        check_range("num_processes", args.num_processes, 1, MAX_PROCESSES)
    if args.runner == "ray" and world_size > 1:
        raise InputError("is one process that shares its work itself; start it without torchrun", "runner", "ray")
    if args.runner != "ray" and args.ray_address is not None:
        raise InputError("is used with `runner` ray only", "ray_address", args.ray_address)
    from vexpress.prepare.runner import Runner

    num_processes = args.num_processes or (None if args.runner == "ray" else 1)
    return Runner(args.runner, num_processes, args.ray_address, uses_gpus=args.device != "cpu")


def _find_syncnet(model_dir: Path) -> Path | None:
    from vexpress.syncnet import PLACES

    return next((model_dir / place for place in PLACES if (model_dir / place).is_file()), None)


def main(arguments: list[str] | None = None) -> None:
    """Videos -> data set.

    Args:
        arguments: of the command line; None reads sys.argv.
    """
    args = build_parser().parse_args(arguments)
    set_up_logging()
    from vexpress.devices import process_number
    from vexpress.prepare.folder import prepare_folder

    rank, world_size = process_number("RANK", 0), process_number("WORLD_SIZE", 1)
    runner, preparation = build_runner(args, world_size), build_preparation(args)
    try:
        num_clips, reasons = prepare_folder(preparation, rank, world_size, runner)
    except KeyboardInterrupt:
        logger.warning("videos that are done are kept, and the same command goes on from there")
        raise
    if rank == 0:
        rejected = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
        print(f"{args.output_dir / 'metadata.json'}: {num_clips} clips; rejected: {rejected or 'none'}")
