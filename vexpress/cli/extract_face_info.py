"""Finds the face in each frame of clips that are cut already, and writes it as training reads it.

vexpress extract-face-info --video_path clip.mp4 --save_path face_info.npz
vexpress extract-face-info --input_dir clips
"""

import logging
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from vexpress.cli import clip_arguments
from vexpress.cli.parser import add_options
from vexpress.cli.program import set_up_logging
from vexpress.fields import check_value
from vexpress.model_folder import LAYOUT
from vexpress.prepare.settings import PrepareSettings

if TYPE_CHECKING:
    from vexpress.data.formats import ClipRecord

logger = logging.getLogger("extract")

[MAX_GAP] = [field for field in fields(PrepareSettings) if field.name == "max_gap"]


def main(arguments: list[str] | None = None) -> None:
    """Clips -> face info.

    Args:
        arguments: of the command line; None reads sys.argv.
    """
    parser = clip_arguments.build_parser(__doc__.splitlines()[0], "insightface_model_path")
    add_options(parser, [MAX_GAP])
    args = parser.parse_args(arguments)
    check_value(MAX_GAP, args.max_gap)
    set_up_logging()
    from vexpress.data.formats import FACE_INFO_SUFFIXES, save_face_info
    from vexpress.devices import resolve_device
    from vexpress.media.faces import MODULES, FaceAnalyzer
    from vexpress.prepare.extract import extract_face_info

    model_dir = args.insightface_model_path or args.model_dir / LAYOUT["insightface_model_path"]
    records = clip_arguments.find_clips(args, "face_info", FACE_INFO_SUFFIXES, model_dir)
    analyzer = FaceAnalyzer(model_dir, resolve_device(args.device, args.gpu_id), MODULES)

    def extract(record: "ClipRecord", save_path: Path) -> None:
        face_info, filled = extract_face_info(record.video, analyzer, args.max_gap, clip_arguments.given_field(args))
        if filled:
            logger.info("%s: %d of %d frames are interpolated", record.video, len(filled), face_info.num_frames)
        save_face_info(save_path, face_info)

    clip_arguments.extract_all(args, records, "face_info", extract)
