"""Finds the face in each frame of clips that are cut already, and writes it as training reads it.

python scripts/prepare_dataset/extract_face_info.py --video_path clip.mp4 --save_path face_info.npz
python scripts/prepare_dataset/extract_face_info.py --input_dir clips
"""

import logging
from pathlib import Path

from vexpress.cli import clip_arguments
from vexpress.data.formats import FACE_INFO_SUFFIXES, ClipRecord, save_face_info
from vexpress.devices import resolve_device
from vexpress.errors import InputError
from vexpress.logs import set_up_logging
from vexpress.media.faces import MODULES, FaceAnalyzer
from vexpress.model_folder import LAYOUT
from vexpress.prepare.extract import extract_face_info
from vexpress.prepare.settings import PrepareSettings

logger = logging.getLogger(__name__)


def main() -> None:
    set_up_logging()
    parser = clip_arguments.build_parser(__doc__.splitlines()[0], "insightface_model_path", FACE_INFO_SUFFIXES)
    parser.add_argument(
        "--max_gap", type=int, default=PrepareSettings.max_gap, help="frames in a row without the face to interpolate"
    )
    args = parser.parse_args()
    clip_arguments.check_arguments(args, FACE_INFO_SUFFIXES)
    if args.max_gap < 0:
        raise InputError("must be 0 or more", "max_gap", args.max_gap)
    records = clip_arguments.find_clips(args)
    model_dir = args.insightface_model_path or args.model_dir / LAYOUT["insightface_model_path"]
    analyzer = FaceAnalyzer(model_dir, resolve_device(args.device, args.gpu_id), MODULES)

    def extract(record: ClipRecord, save_path: Path) -> None:
        face_info, filled = extract_face_info(record.video, analyzer, args.max_gap, clip_arguments.given_flag(args))
        if filled:
            logger.info("%s: %d of %d frames are interpolated", record.video, len(filled), face_info.num_frames)
        save_face_info(save_path, face_info)

    clip_arguments.extract_all(args, records, "face_info", extract)
