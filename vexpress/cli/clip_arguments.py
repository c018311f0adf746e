"""What the two extracting programs share: a clip, a folder of clips or those of a metadata file, one after another."""

import dataclasses
import logging
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from vexpress.cli.parser import ArgumentParser
from vexpress.cli.program import worded
from vexpress.errors import InputError
from vexpress.files import check_output_path
from vexpress.model_folder import LAYOUT
from vexpress.prepare.settings import FORMATS

if TYPE_CHECKING:
    from vexpress.data.formats import ClipRecord

logger = logging.getLogger("extract")

EXIT_FAILURES = 1
CLIP_FLAGS = {
    "video_path": "one clip",
    "input_dir": "all clips in a folder, at any depth; files are written beside them",
    "meta_path": "all clips of a metadata JSON; files are written where it says, in its folder only",
}


def build_parser(description: str, model_flag: str) -> ArgumentParser:
    """The flags of both programs; `model_flag` is one of LAYOUT."""
    parser = ArgumentParser(description=description)
    clips = parser.add_argument_group("clips, one of")
    what = clips.add_mutually_exclusive_group(required=True)
    for name, text in CLIP_FLAGS.items():
        what.add_argument(f"--{name}", type=Path, help=text)
    parser.add_argument("--save_path", type=Path, help="with --video_path: the file to write; unset: beside it")
    parser.add_argument("--format", choices=tuple(FORMATS), default="npz", help="where no file name says it")
    parser.add_argument("--save_meta_path", type=Path, help="with --input_dir: metadata JSON to write of its clips")
    parser.add_argument("--overwrite", action="store_true", help="extract also what is there")
    parser.add_argument("--model_dir", type=Path, default=Path("model_ckpts"), help="folder in the released layout")
    parser.add_argument(f"--{model_flag}", type=Path, help=f"in place of MODEL_DIR/{LAYOUT[model_flag]}")
    parser.add_argument("--device", choices=("cuda", "cpu", "mps"), help="unset: what is there")
    parser.add_argument("--gpu_id", type=int, default=0, help="index of the CUDA device")
    return parser


def given_field(args: Namespace) -> str:
    """The flag that named the clips, for messages."""
    return next(name for name in CLIP_FLAGS if getattr(args, name) is not None)


def find_clips(args: Namespace, key: str, suffixes: tuple[str, ...], model_path: Path) -> "list[ClipRecord]":
    """Lists the clips that the flags name, and where their files are or go.

    Args:
        args: from `build_parser`.
        key: field of the records: the file that is to be written.
        suffixes: that it may have.
        model_path: of the model that is used.

    Raises:
        InputError: flags that do not go together, no clips, or a file to write that cannot be written, would replace
            an input, another clip's file or a file of the model, or is not where metadata may place it.
    """
    if args.save_path is not None:
        if args.video_path is None:
            raise InputError("goes with `video_path` only", "save_path", args.save_path)
        if args.save_path.suffix.lower() not in suffixes:
            raise InputError(f"must end in {' or '.join(suffixes)}", "save_path", args.save_path)
    if args.save_meta_path is not None and args.input_dir is None:
        raise InputError("goes with `input_dir` only", "save_meta_path", args.save_meta_path)
    records = _named_clips(args)
    if args.save_path is not None:
        records = [dataclasses.replace(record, **{key: args.save_path}) for record in records]
    model_dirs = (args.model_dir, model_path)
    if args.save_path is not None:
        check_output_path(args.save_path, "save_path", [args.video_path], model_dirs)
    _check_outputs(args, records, key, model_dirs)
    if args.save_meta_path is not None:
        from vexpress.prepare.verify import files_of

        files = [path for record in records for path in files_of(record).values()]
        check_output_path(args.save_meta_path, "save_meta_path", files, model_dirs)
    return records


def _named_clips(args: Namespace) -> "list[ClipRecord]":
    from vexpress.data.formats import ClipRecord, load_metadata
    from vexpress.prepare.extract import find_videos

    if args.meta_path is not None:
        return load_metadata(args.meta_path)
    face_info_ending, audio_embeds_ending = FORMATS[args.format]
    videos = [args.video_path] if args.video_path is not None else find_videos(args.input_dir)
    return [
        ClipRecord(
            video=video,
            face_info=video.with_name(video.name + face_info_ending),
            audio_embeds=video.with_name(video.name + audio_embeds_ending),
        )
        for video in videos
    ]


def _missing(args: Namespace, records: "list[ClipRecord]", key: str) -> "list[ClipRecord]":
    """The records whose file is to be written."""
    is_wanted = args.overwrite or args.video_path is not None
    return [record for record in records if is_wanted or not getattr(record, key).is_file()]


def _check_outputs(args: Namespace, records: "list[ClipRecord]", key: str, model_dirs: tuple[Path, ...]) -> None:
    """Checks the files that are written of many clips; `check_output_path` would compare each with each.

    Raises:
        InputError: one would replace an input, another clip's file or a file of the model, or metadata place it outside
            of their own folder: they may come from anyone.
    """
    from vexpress.prepare.verify import files_of

    field = given_field(args)
    allowed = None if args.meta_path is None else args.meta_path.parent.resolve()
    others = {path.resolve() for record in records for name, path in files_of(record).items() if name != key}
    models = [folder.resolve() for folder in model_dirs]
    video_of: dict[Path, Path] = {}
    for record in _missing(args, records, key):
        path, video = getattr(record, key).resolve(), record.video.resolve()
        if allowed is not None and not path.is_relative_to(allowed):
            raise InputError(f"{path} would be written, and is not in the folder of the metadata, {allowed}", field)
        if path in others:
            raise InputError(f"{path} would be written, and is also an input or another file of a clip", field)
        if video_of.setdefault(path, video) != video:
            raise InputError(f"{path} would be written for two clips, {video_of[path].name} and {video.name}", field)
        if path.exists() and any(path.is_relative_to(model) for model in models):
            raise InputError(f"{path} would be written, and is a file of the model", field)


def extract_all(
    args: Namespace, records: "list[ClipRecord]", key: str, extract: "Callable[[ClipRecord, Path], None]"
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
    from tqdm import tqdm

    from vexpress.data.formats import save_metadata

    missing = _missing(args, records, key)
    num_failed = 0
    for record in tqdm(missing, desc=key, unit="clip", disable=len(records) == 1):
        try:
            extract(record, getattr(record, key))
        except InputError as error:
            if args.video_path is not None:
                raise
            num_failed += 1
            logger.error("%s", worded(error))
    if args.save_meta_path is not None:
        complete = [r for r in records if r.face_info.is_file() and r.audio_embeds.is_file()]
        save_metadata(args.save_meta_path, [_measured(record) for record in complete])
        print(f"{args.save_meta_path}: {len(complete)} of {len(records)} clips have face info and audio states")
    print(f"{len(missing) - num_failed} written, {len(records) - len(missing)} were there, {num_failed} failed")
    if num_failed:
        sys.exit(EXIT_FAILURES)


def _measured(record: "ClipRecord") -> "ClipRecord":
    from vexpress.media.video import probe_video
    from vexpress.prepare.verify import measure_video

    num_frames, seconds = measure_video(record.video)
    fps = float(probe_video(record.video).fps)
    return dataclasses.replace(record, duration=seconds, fps=fps, num_frames=num_frames)
