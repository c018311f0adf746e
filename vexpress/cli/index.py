"""Makes an index of a data set for training at scale: Parquet, or tar shards with theirs.

vexpress index --meta_path data/metadata.json --save_path data/metadata.parquet
vexpress index --meta_path data/metadata.json --shards_dir s3://bucket/shards
"""

import logging
import sys
from pathlib import Path

from vexpress.cli.clip_arguments import EXIT_FAILURES
from vexpress.cli.parser import ArgumentParser, refuse_unused
from vexpress.cli.program import set_up_logging
from vexpress.errors import InputError
from vexpress.fields import check_range
from vexpress.files import check_output_path
from vexpress.storage import check_reachable, is_remote, to_path

logger = logging.getLogger("index")


def build_parser() -> ArgumentParser:
    """The flags."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--meta_path", required=True, type=Path, help="metadata JSON of clips of this machine")
    parser.add_argument("--save_path", type=to_path, help="Parquet file to write, in the folder of the metadata")
    parser.add_argument(
        "--shards_dir", type=to_path, help="folder or URL (s3://, ...) for tar shards and index.parquet"
    )
    parser.add_argument("--shard_mib", type=int, default=256, help="size of a shard")
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Metadata -> index; rows that cannot serve are logged and left out.

    Args:
        arguments: of the command line; None reads sys.argv.
    """
    parser = build_parser()
    args = parser.parse_args(arguments)
    set_up_logging()
    if (args.save_path is None) == (args.shards_dir is None):
        raise InputError("give one of `save_path` and `shards_dir`")
    check_range("shard_mib", args.shard_mib, 1, 1_000_000)
    refuse_unused(parser.given(), {"shard_mib": "without `shards_dir`"} if args.shards_dir is None else {})
    if not args.meta_path.is_file():
        raise InputError("no such file", "meta_path", args.meta_path)
    from vexpress.data.index import write_index

    if args.shards_dir is not None:
        check_reachable(args.shards_dir, "shards_dir")
        if not is_remote(args.shards_dir):
            args.shards_dir.mkdir(parents=True, exist_ok=True)
        path = args.shards_dir / "index.parquet"
        if path.exists() or (not is_remote(path) and any(args.shards_dir.glob("shard-*.tar"))):
            raise InputError("holds shards already; give an empty folder", "shards_dir", args.shards_dir)
    else:
        path = args.save_path
        if not is_remote(path):
            check_output_path(path, "save_path", [args.meta_path])
        if is_remote(path) or path.resolve().parent != args.meta_path.resolve().parent:
            raise InputError("must lie beside the metadata, since paths are relative to it", "save_path", path)
        if path.suffix != ".parquet":
            raise InputError("must end in .parquet", "save_path", path)
    num_clips, num_failed = write_index(args.meta_path, path, args.shards_dir and args.shard_mib * 2**20)
    print(f"{path}: {num_clips} clips; left out: {num_failed}")
    if num_failed:
        sys.exit(EXIT_FAILURES)
