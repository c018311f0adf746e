"""Makes a page about a prepared data set: counts, reasons, histograms, samples, minutes by language and person.

vexpress data report --meta_path data/metadata.json --save_path report.html
"""

from pathlib import Path

from vexpress.cli.parser import ArgumentParser
from vexpress.cli.program import set_up_logging
from vexpress.fields import check_range


def build_parser() -> ArgumentParser:
    """The flags."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--meta_path", required=True, type=Path, help="metadata JSON that preparation wrote")
    parser.add_argument("--save_path", required=True, type=Path, help="HTML file to write; it needs no other file")
    parser.add_argument(
        "--group_by",
        action="append",
        default=[],
        help="column to count minutes by, beside language and person",
    )
    parser.add_argument("--num_samples", type=int, default=6, help="pictures of kept clips, and of each reason")
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Data set -> page.

    Args:
        arguments: of the command line; None reads sys.argv.
    """
    args = build_parser().parse_args(arguments)
    check_range("num_samples", args.num_samples, 0, 1000)
    set_up_logging()
    from vexpress.files import check_output_path, replacing
    from vexpress.prepare.data_report import build_report

    check_output_path(args.save_path, "save_path", [args.meta_path], suffixes=(".html", ".htm"))
    page = build_report(args.meta_path, args.group_by, args.num_samples)
    with replacing(args.save_path) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="replace")
    print(args.save_path)
