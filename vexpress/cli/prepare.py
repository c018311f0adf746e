"""Makes a training data set of a folder of videos: clips around the face, face info, audio states, metadata.json.

python scripts/prepare_dataset/prepare_dataset.py --input_dir raw --output_dir dataset --num_processes 4
torchrun --nproc_per_node 8 scripts/prepare_dataset/prepare_dataset.py --input_dir raw --output_dir dataset
"""

import dataclasses
import logging
import os
import sys
from argparse import Namespace
from pathlib import Path

from vexpress.cli.parser import ArgumentParser
from vexpress.cli.program import EXIT_INTERRUPTED
from vexpress.devices import resolve_device
from vexpress.errors import InputError
from vexpress.logs import set_up_logging
from vexpress.model_folder import LAYOUT
from vexpress.prepare.extract import FORMATS
from vexpress.prepare.folder import Preparation, prepare_folder
from vexpress.prepare.settings import PrepareSettings

logger = logging.getLogger(__name__)

SETTINGS_HELP = {
    "size": "width and height of the clips in px, a multiple of 8",
    "fps": "constant frame rate of the clips",
    "min_clip_seconds": "shorter clips are rejected",
    "max_clip_seconds": "longer stretches are cut into equal parts",
    "margin": "room on each side of the face, in sides of its box; less where the frame ends",
    "min_resolution": "least shorter side of a video in px",
    "min_face_px": "least longer side of the face in px of the video, median over the clip",
    "min_face_fraction": "the same as a share of the video's shorter side",
    "max_bad_fraction": "largest share of a clip's frames without exactly one face",
    "max_gap": "frames in a row without the face that are interpolated",
    "speech_db": "sound counts as speech from this level on, in dB of full scale",
    "min_speech_fraction": "least share of a clip's sound that is as loud",
}


def build_parser() -> ArgumentParser:
    """The flags; those of the clips are the fields of `PrepareSettings`."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--input_dir", required=True, type=Path, help="folder of videos, searched at any depth")
    parser.add_argument("--output_dir", required=True, type=Path, help="made if missing; the same command goes on")
    clips = parser.add_argument_group("clips")
    defaults = PrepareSettings()
    for name, text in SETTINGS_HELP.items():
        default = getattr(defaults, name)
        clips.add_argument(f"--{name}", type=type(default), default=default, help=text)
    clips.add_argument(
        "--format", choices=tuple(FORMATS), default=defaults.format, help="npz: .npz and .safetensors; pt: as released"
    )
    machine = parser.add_argument_group("models and machine")
    machine.add_argument("--model_dir", type=Path, default=Path("model_ckpts"), help="folder in the released layout")
    for name in ("insightface_model_path", "audio_encoder_path"):
        machine.add_argument(f"--{name}", type=Path, help=f"in place of MODEL_DIR/{LAYOUT[name]}")
    machine.add_argument("--device", choices=("cuda", "cpu", "mps"), help="unset: what is there")
    machine.add_argument("--gpu_id", type=int, default=0, help="with torchrun: of its process 0, the others follow")
    machine.add_argument("--num_processes", type=int, default=1, help="processes here; with torchrun: of each process")
    return parser


def build_preparation(args: Namespace) -> Preparation:
    """Turns flags into what to do.

    Raises:
        InputError: a flag that cannot be.
    """
    names = [field.name for field in dataclasses.fields(PrepareSettings)]
    settings = PrepareSettings(**{name: getattr(args, name) for name in names})
    if args.num_processes < 1:
        raise InputError("must be 1 or more", "num_processes", args.num_processes)
    device = resolve_device(args.device, args.gpu_id + int(os.environ.get("LOCAL_RANK", 0)))
    return Preparation(
        input_dir=args.input_dir,
        output_dir=args.output_dir,
        settings=settings,
        insightface_model_path=args.insightface_model_path or args.model_dir / LAYOUT["insightface_model_path"],
        audio_encoder_path=args.audio_encoder_path or args.model_dir / LAYOUT["audio_encoder_path"],
        device=str(device),
    )


def main() -> None:
    set_up_logging()
    args = build_parser().parse_args()
    rank, world_size = (int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1)))
    preparation = build_preparation(args)
    try:
        num_clips, reasons = prepare_folder(preparation, rank, world_size, args.num_processes)
    except KeyboardInterrupt:
        logger.warning("interrupted: videos that are done are kept, and the same command goes on from there")
        sys.exit(EXIT_INTERRUPTED)
    if rank == 0:
        rejected = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
        print(f"{args.output_dir / 'metadata.json'}: {num_clips} clips; rejected: {rejected or 'none'}")
