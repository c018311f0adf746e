"""Checks every clip of a prepared data set and prints a table; exit code 1 if a clip fails.

vexpress verify --meta_path dataset/metadata.json --contact_sheet sheet.png
"""

import sys
from pathlib import Path

from vexpress.cli.parser import ArgumentParser, refuse_unused
from vexpress.cli.program import set_up_logging
from vexpress.data.config import DataConfig
from vexpress.errors import InputError
from vexpress.fields import check_range

EXIT_FAILURES = 1
LIMITS = {"num_processes": (1, 1024), "num_clips": (1, 1000), "num_frames": (1, 32), "lip_mask_scale": (0.1, 100)}


def build_parser() -> ArgumentParser:
    """The flags."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--meta_path", required=True, type=Path, help="metadata JSON of the data set")
    parser.add_argument("--num_processes", type=int, default=1, help="processes that check clips")
    sheet = parser.add_argument_group("contact sheet")
    sheet.add_argument("--contact_sheet", type=Path, help="PNG to write: frames with keypoints, lips and mask")
    sheet.add_argument("--num_clips", type=int, default=8, help="most clips that are shown, those that fail first")
    sheet.add_argument("--num_frames", type=int, default=4, help="frames of each clip")
    sheet.add_argument("--lip_mask_scale", type=float, default=DataConfig.lip_mask_scale, help="as in training")
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Data set -> table and picture.

    Args:
        arguments: of the command line; None reads sys.argv.
    """
    parser = build_parser()
    args = parser.parse_args(arguments)
    for name, (low, high) in LIMITS.items():
        check_range(name, getattr(args, name), low, high)
    if args.contact_sheet is None:
        unused = dict.fromkeys(("num_clips", "num_frames", "lip_mask_scale"), "without `contact_sheet`")
        refuse_unused(parser.given(), unused)
    set_up_logging()
    from PIL import Image
    from tqdm import tqdm

    from vexpress.data.formats import load_metadata
    from vexpress.files import check_output_path, replacing
    from vexpress.prepare.contact_sheet import render_contact_sheet
    from vexpress.prepare.verify import TABLE_HEADER, check_widths, files_of, format_report, verify_clips

    records = load_metadata(args.meta_path)
    if not records:
        raise InputError("holds no clips", "meta_path", args.meta_path)
    if args.contact_sheet is not None:
        files = [path for record in records for path in files_of(record).values()]
        check_output_path(args.contact_sheet, "contact_sheet", [args.meta_path, *files], suffixes=(".png",))
    folder = args.meta_path.parent
    found = verify_clips(records, args.num_processes)
    reports = list(tqdm(found, total=len(records), desc="verify", unit="clip"))
    check_widths(reports)
    print(TABLE_HEADER, *(format_report(report, folder) for report in reports), sep="\n")
    if args.contact_sheet is not None:
        sheet = render_contact_sheet(records, reports, folder, args.lip_mask_scale, args.num_clips, args.num_frames)
        with replacing(args.contact_sheet) as temporary:
            Image.fromarray(sheet).save(temporary)
    num_failed = sum(bool(report.problems) for report in reports)
    num_warned = sum(bool(report.warnings) and not report.problems for report in reports)
    num_ok = len(reports) - num_failed - num_warned
    print(f"{len(reports)} clips: {num_ok} ok, {num_warned} warned, {num_failed} failed")
    if num_failed:
        sys.exit(EXIT_FAILURES)
