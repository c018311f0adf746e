"""What the two extracting programs share: a clip, a folder of clips or those of a metadata file, one after another."""

import dataclasses
import logging
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

from vexpress.cli.parser import ArgumentParser
from vexpress.data.formats import ClipRecord, load_metadata, save_metadata
from vexpress.errors import InputError
from vexpress.files import check_output_path
from vexpress.media.video import probe_video
from vexpress.model_folder import LAYOUT
from vexpress.prepare.extract import FORMATS, find_videos
from vexpress.prepare.verify import measure_video

logger = logging.getLogger(__name__)

EXIT_FAILURES = 1
CLIP_FLAGS = {
    "video_path": "one clip",
    "input_dir": "all clips in a folder, at any depth; files go beside them",
    "meta_path": "all clips of a metadata JSON; files go where it says",
}


def build_parser(description: str, model_flag: str, suffixes: tuple[str, ...]) -> ArgumentParser:
    """The flags of both programs; `model_flag` is one of LAYOUT."""
    parser = ArgumentParser(description=description)
    clips = parser.add_argument_group("clips, one of")
    what = clips.add_mutually_exclusive_group(required=True)
    for name, text in CLIP_FLAGS.items():
        what.add_argument(f"--{name}", type=Path, help=text)
    parser.add_argument("--save_path", type=Path, help=f"with --video_path: {', '.join(suffixes)}; unset: beside it")
    parser.add_argument("--format", choices=tuple(FORMATS), default="npz", help="where no file name says it")
    parser.add_argument("--save_meta_path", type=Path, help="with --input_dir: metadata JSON to write of its clips")
    parser.add_argument("--overwrite", action="store_true", help="extract also what is there")
    parser.add_argument("--model_dir", type=Path, default=Path("model_ckpts"), help="folder in the released layout")
    parser.add_argument(f"--{model_flag}", type=Path, help=f"in place of MODEL_DIR/{LAYOUT[model_flag]}")
    parser.add_argument("--device", choices=("cuda", "cpu", "mps"), help="unset: what is there")
    parser.add_argument("--gpu_id", type=int, default=0)
    return parser


def given_flag(args: Namespace) -> str:
    """The flag that named the clips, for messages."""
    return next(f"--{name}" for name in CLIP_FLAGS if getattr(args, name) is not None)


def check_arguments(args: Namespace, suffixes: tuple[str, ...]) -> None:
    """Raises an InputError for flags that do not go together or outputs that cannot be written."""
    if args.save_path is not None:
        if args.video_path is None:
            raise InputError("goes with --video_path only", "save_path", args.save_path)
        if args.save_path.suffix.lower() not in suffixes:
            raise InputError(f"must end in {' or '.join(suffixes)}", "save_path", args.save_path)
        check_output_path(args.save_path, "--save_path")
    if args.save_meta_path is not None:
        if args.input_dir is None:
            raise InputError("goes with --input_dir only", "save_meta_path", args.save_meta_path)
        check_output_path(args.save_meta_path, "--save_meta_path")


def find_clips(args: Namespace) -> list[ClipRecord]:
    """Lists the clips that the flags name, and where their files are or go."""
    if args.meta_path is not None:
        return load_metadata(args.meta_path)
    face_info_ending, audio_embeds_ending = FORMATS[args.format]
    videos = [args.video_path] if args.video_path is not None else find_videos(args.input_dir)
    return [
        ClipRecord(
            video=video,
            face_info=args.save_path or video.with_name(video.name + face_info_ending),
            audio_embeds=args.save_path or video.with_name(video.name + audio_embeds_ending),
        )
        for video in videos
    ]


def extract_all(
    args: Namespace, records: list[ClipRecord], key: str, extract: Callable[[ClipRecord, Path], None]
) -> None:
    """Extracts what is missing of the records and, if asked for, writes their metadata.

    Args:
        args: from `build_parser`.
        records: from `find_clips`.
        key: field of the records, the file to write.
        extract: gets a record and the file to write.

    Raises:
        InputError: the only clip cannot be used. Of several, those that cannot are logged, and the exit code is 1.
    """
    is_wanted = args.overwrite or args.video_path is not None
    missing = [record for record in records if is_wanted or not getattr(record, key).is_file()]
    num_failed = 0
    for record in tqdm(missing, desc=key, unit="clip", disable=len(records) == 1):
        try:
            extract(record, getattr(record, key))
        except InputError as error:
            if args.video_path is not None:
                raise
            num_failed += 1
            logger.error("%s", " ".join(str(error).split()))
    if args.save_meta_path is not None:
        complete = [r for r in records if r.face_info.is_file() and r.audio_embeds.is_file()]
        save_metadata(args.save_meta_path, [_measured(record) for record in complete])
        print(f"{args.save_meta_path}: {len(complete)} of {len(records)} clips have face info and audio states")
    print(f"{len(missing) - num_failed} written, {len(records) - len(missing)} were there, {num_failed} failed")
    if num_failed:
        sys.exit(EXIT_FAILURES)


def _measured(record: ClipRecord) -> ClipRecord:
    num_frames, seconds = measure_video(record.video)
    fps = float(probe_video(record.video).fps)
    return dataclasses.replace(record, duration=seconds, fps=fps, num_frames=num_frames)
