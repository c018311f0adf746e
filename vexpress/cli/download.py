"""Fetches the released V-Express models from the Hugging Face Hub into the layout that `vexpress generate` loads.

vexpress download --model_dir model_ckpts
vexpress download --model_dir model_ckpts --only evaluation      # networks of FVD and SyncNet

The same command again fetches only what is missing, and goes on where an interrupted download stopped.
"""

import logging
import os
import shlex
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vexpress.cli.parser import ArgumentParser
from vexpress.cli.program import set_up_logging
from vexpress.cli.released_files import DEFAULT_REVISION, ON_REQUEST, PARTS, RELEASED_REPOSITORY
from vexpress.errors import InputError

if TYPE_CHECKING:
    from vexpress.cli.hub import Download

logger = logging.getLogger("download")

INFERENCE_PATH = Path(__file__).resolve().parents[2] / "inference.py"
"""The program under its released name, which a clone of the repository has."""
DEFAULT_ENDPOINT = "https://huggingface.co"


def build_parser() -> ArgumentParser:
    """The flags."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model_dir", type=Path, default=Path("model_ckpts"), help="folder to fill")
    parser.add_argument("--revision", default=DEFAULT_REVISION, help=f"branch, tag or commit of {RELEASED_REPOSITORY}")
    parser.add_argument(
        "--endpoint",
        default=os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT,
        help="address of the Hub or of a mirror; the environment variable HF_ENDPOINT does the same",
    )
    parser.add_argument(
        "--only",
        action="append",
        choices=PARTS,
        metavar="PART",
        help=f"one of {', '.join(PARTS)}; may be repeated; unset: all but {', '.join(ON_REQUEST)}",
    )
    parser.add_argument("--dry_run", action="store_true", help="print what would be fetched, with sizes, and stop")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Plans, fetches what is missing, and says how to go on.

    Args:
        arguments: of the command line; None reads sys.argv.

    Raises:
        InputError: what was asked cannot be fetched; the message says why.
    """
    args = build_parser().parse_args(arguments)
    if not args.endpoint.startswith(("https://", "http://")):
        raise InputError("an address that starts with https:// or http:// is needed", "endpoint", args.endpoint)
    set_up_logging()
    try:
        from vexpress.cli import hub
    except ModuleNotFoundError as error:
        raise InputError(f"{error.name} is not installed; get it with: pip install 'vexpress[download]'") from error

    parts = args.only or [part for part in PARTS if part not in ON_REQUEST]
    endpoint = args.endpoint.rstrip("/")
    downloads = hub.plan_downloads(parts, args.model_dir, args.revision, endpoint)
    if args.dry_run:
        _print_plan(downloads)
    hub.check_free_disk(downloads, args.model_dir)
    if args.dry_run:
        return
    with hub.hold_model_dir(args.model_dir):
        missing = [download for download in downloads if not download.is_present]
        if missing:
            size = hub.format_bytes(sum(download.num_missing_bytes for download in missing))
            logger.info("%d files to fetch, %s; Ctrl-C keeps what came", len(missing), size)
        for download in missing:
            hub.fetch(download, endpoint)
    num_present = len(downloads) - len(missing)
    print(f"{args.model_dir}: {len(missing)} files fetched, {num_present} were there. {_next_step(args)}")


def _print_plan(downloads: "Sequence[Download]") -> None:
    from vexpress.cli.hub import format_bytes

    for download in downloads:
        source, remote = download.source, download.remote
        action = "have " if download.is_present else "fetch"
        size = format_bytes(remote.num_bytes)
        origin = f"{source.repository}/{source.remote_path}@{remote.commit[:8]}"
        print(f"{action} {size:>7}  {download.local_path}  <- {origin}")
    print(f"{format_bytes(sum(download.num_missing_bytes for download in downloads))} to fetch")


def _next_step(args: Namespace) -> str:
    if args.only:
        return "Run without --only for the other parts."
    in_clone = INFERENCE_PATH.is_file()
    program = f"python {shlex.quote(os.path.relpath(INFERENCE_PATH))}" if in_clone else "vexpress generate"
    return (
        f"Next: {program} --model_dir {shlex.quote(str(args.model_dir))} "
        "--reference_image_path IMAGE --audio_path AUDIO --output_path VIDEO"
    )
