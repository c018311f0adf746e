"""Checks every clip of a prepared data set, prints a table, and draws a contact sheet; exit code 1 if a clip fails.

python scripts/prepare_dataset/verify_dataset.py --meta_path dataset/metadata.json --contact_sheet sheet.png
"""

import sys
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from vexpress.cli.parser import ArgumentParser
from vexpress.data.config import DataConfig
from vexpress.data.formats import load_metadata
from vexpress.errors import InputError
from vexpress.files import check_output_path, replacing
from vexpress.logs import set_up_logging
from vexpress.prepare.contact_sheet import draw_contact_sheet
from vexpress.prepare.verify import TABLE_HEADER, check_widths, format_report, verify_clips

EXIT_FAILURES = 1


def build_parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--meta_path", required=True, type=Path, help="metadata JSON of the data set")
    parser.add_argument("--num_processes", type=int, default=1)
    sheet = parser.add_argument_group("contact sheet")
    sheet.add_argument("--contact_sheet", type=Path, help="PNG to draw frames with keypoints, lips and mask into")
    sheet.add_argument("--num_clips", type=int, default=8, help="at most so many, those that fail first")
    sheet.add_argument("--num_frames", type=int, default=4, help="of each clip")
    sheet.add_argument("--lip_mask_scale", type=float, default=DataConfig.lip_mask_scale, help="as in training")
    return parser


def main() -> None:
    set_up_logging()
    args = build_parser().parse_args()
    for name in ("num_processes", "num_clips", "num_frames"):
        if getattr(args, name) < 1:
            raise InputError(f"--{name} {getattr(args, name)}: must be 1 or more")
    if args.contact_sheet is not None:
        check_output_path(args.contact_sheet, "--contact_sheet")
        if args.contact_sheet.suffix.lower() != ".png":
            raise InputError("must end in .png", "contact_sheet", args.contact_sheet)
    records = load_metadata(args.meta_path)
    if not records:
        raise InputError("holds no clips", "meta_path", args.meta_path)
    folder = args.meta_path.parent
    found = verify_clips(records, args.num_processes)
    reports = list(tqdm(found, total=len(records), desc="verify", unit="clip"))
    check_widths(reports)
    print(TABLE_HEADER, *(format_report(report, folder) for report in reports), sep="\n")
    if args.contact_sheet is not None:
        sheet = draw_contact_sheet(records, reports, folder, args.lip_mask_scale, args.num_clips, args.num_frames)
        with replacing(args.contact_sheet) as temporary:
            Image.fromarray(sheet).save(temporary)
    num_failed = sum(bool(report.problems) for report in reports)
    num_warned = sum(bool(report.warnings) and not report.problems for report in reports)
    print(
        f"{len(reports)} clips: {len(reports) - num_failed - num_warned} ok, {num_warned} warned, {num_failed} failed"
    )
    if num_failed:
        sys.exit(EXIT_FAILURES)
