"""Measures the presets, and writes the tables of docs/speed.md: arithmetic, time, likeness, a live stream, the pack.

python -m scripts.demo.speed_report                     # all of it: about an hour on one core
python -m scripts.demo.speed_report --only live pack    # some tables; the others stay as they are
"""

import re
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from scripts.demo.heldout_clips import load_heldout_clips
from scripts.demo.measure_pack import NUM_FRAMES, load_options, measure_pack
from vexpress.benchmarks import flops, live, presets
from vexpress.benchmarks.measuring import Table
from vexpress.benchmarks.settings import FlopsSettings, LiveSettings, PresetsSettings
from vexpress.cli.parser import ArgumentParser
from vexpress.cli.program import run_program, set_up_logging
from vexpress.diffusion.schedule import build_scheduler
from vexpress.errors import InputError
from vexpress.fields import check_range
from vexpress.files import replacing
from vexpress.media.faces import FaceAnalyzer
from vexpress.model_folder import EMBEDDED_MODEL_DIR, LAYOUT
from vexpress.options import PRESETS
from vexpress.pipeline import VExpressPipeline

PAGE = Path("docs/speed.md")
FIGURES = (
    *("aperture_r", "width_r", "swapped_difference", "silenced_abs_r", "kps_error_percent"),
    *("skin_error", "hair_error", "background_error", "flicker_ratio"),
)
OWN = "the pack's own"


def measure_presets(num_clips: int) -> Table:
    """The embedded pack's figures with each preset, and with its own options."""
    clips = load_heldout_clips(EMBEDDED_MODEL_DIR / "heldout", NUM_FRAMES)[:num_clips]
    pipeline = VExpressPipeline.from_pretrained(EMBEDDED_MODEL_DIR)
    pipeline.set_progress_bar_config(disable=True)
    analyzer = FaceAnalyzer(EMBEDDED_MODEL_DIR / LAYOUT["insightface_model_path"], torch.device("cpu"))
    columns = {}
    for name in (OWN, *PRESETS):
        options = load_options(EMBEDDED_MODEL_DIR, preset=None if name == OWN else name)
        pipeline.scheduler = build_scheduler(options.scheduler)
        columns[name] = measure_pack(pipeline, analyzer, clips, options)
    rows = [[figure, *(f"{figures[figure]:.3f}" for figures in columns.values())] for figure in FIGURES]
    return Table([f"mean of {len(clips)} held-out clips", *columns], rows)


def write_table(text: str, name: str, table: Table) -> str:
    """The page with this table between its marks.

    Raises:
        InputError: the page has no such marks.
    """
    lines = [table.header, ["---"] * len(table.header), *table.rows]
    marks = rf"(<!-- {name}: .*? -->\n).*?(<!-- end of {name} -->)"
    body = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    text, number = re.subn(marks, lambda match: match[1] + body + match[2], text, flags=re.DOTALL)
    if not number:
        raise InputError(f"has no marks of a table {name}", "page", PAGE)
    return text


def main(arguments: list[str] | None = None) -> None:
    """Writes each table as soon as it is measured."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    names = ("flops", "presets", "live", "pack")
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="tables to measure anew")
    parser.add_argument("--num_clips", type=int, default=10, help="held-out clips of the table pack, 2 or more")
    args = parser.parse_args(arguments)
    check_range("num_clips", args.num_clips, 2, 1000)
    set_up_logging()
    tables: dict[str, Callable[[], Table]] = {
        "flops": lambda: flops.measure(FlopsSettings()),
        "presets": lambda: presets.measure(PresetsSettings()),
        "live": lambda: live.measure(LiveSettings()),
        "pack": lambda: measure_presets(args.num_clips),
    }
    for name in args.only:
        table = tables[name]()
        text = write_table(PAGE.read_text(encoding="utf-8"), name, table)
        with replacing(PAGE) as temporary:
            temporary.write_text(text, encoding="utf-8")
        print(f"{PAGE}: {name}\n{table.format()}")


if __name__ == "__main__":
    sys.exit(run_program(main))
