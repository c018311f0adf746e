"""What a user reads: a table on the terminal, report.md and report.json."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from vexpress.evaluation.bootstrap import Estimate
from vexpress.evaluation.clips import Problem
from vexpress.evaluation.measure import Networks, PairMeasures
from vexpress.evaluation.rows import METRICS, Metric, Row
from vexpress.evaluation.settings import Settings
from vexpress.files import replacing

ARROWS = {"higher": "↑", "lower": "↓", "zero": "→0", "": ""}
NUM_SHOWN_PROBLEMS = 8
PICTURES = {
    "clips.png": "The best, the median and the worst clip by {ranking}: generated above real.",
    "mouth.png": "Mouth aperture over the waveform, true and generated, of the same clips.",
    "sync.png": "Sync-C by row and group, and what is lost of the real videos' sync.",
}


@dataclass(frozen=True)
class Report:
    """All that a report says.

    Attributes:
        source: what was compared, for the heading.
        rows: over all clips; likewise group_rows.
        measures: of each pair that could be read.
        problems: all that could not be measured.
        networks: what measured.
        settings: how.
        ranking: title of the metric by which clips are best or worst; None if none could be measured.
        pictures: names of those that were drawn.
    """

    source: str
    rows: Sequence[Row]
    group_rows: Sequence[Row]
    measures: Sequence[PairMeasures]
    problems: Sequence[Problem]
    networks: Networks
    settings: Settings
    ranking: str | None
    pictures: Sequence[str]


def format_table(rows: Sequence[Row]) -> str:
    """The figures with their intervals, as a table for the terminal: a line per metric."""
    metrics = _used_metrics(rows)
    lines = [["", *(row.title for row in rows)]]
    return _aligned(lines + [[_title(metric), *(_cell(row, metric) for row in rows)] for metric in metrics])


def format_groups(rows: Sequence[Row]) -> str:
    """The figures of groups without intervals, which stand in the report: a line per row."""
    metrics = _used_metrics(rows)
    lines = [["", "clips", *(_title(metric) for metric in metrics)]]
    for row in rows:
        lines.append([row.title, str(row.num_clips), *(_cell(row, metric, has_interval=False) for metric in metrics)])
    return _aligned(lines)


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines)]
    padded = ("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines)
    return "\n".join(padded).encode(errors="replace").decode()


def format_markdown(report: Report) -> str:
    """report.md."""
    num_broken = len({problem.clip for problem in report.problems if problem.what == "all"})
    parts = [
        "# Evaluation\n",
        f"{report.source}. {len(report.measures)} clips measured, {num_broken} left out (listed below).",
        "Values with 95 % bootstrap intervals over clips; (n) where fewer clips could be measured.\n",
        _markdown_table(report.rows),
    ]
    if report.group_rows:
        parts += ["## Groups\n", _markdown_table(report.group_rows)]
    parts += ["## What measured\n", "| for | file | SHA-256 | kind | resize |", "|---|---|---|---|---|"]
    for facts in report.networks.facts:
        cells = (facts.metric, _plain(facts.file), facts.sha256, _plain(facts.kind), _plain(facts.resize))
        parts.append(f"| {' | '.join(cells)} |")
    parts.append("")
    parts += [f"- {metric}: not measured, {why}" for metric, why in report.networks.missing.items()]
    parts += [f"\n## What could not be measured ({len(report.problems)})\n"]
    parts += [f"- {_plain(p.clip)}, {p.what}: {_plain(p.reason)}" for p in report.problems] or ["Nothing."]
    captions = {name: text for name, text in PICTURES.items() if name in report.pictures}
    for name, text in captions.items():
        parts += [f"\n![{name}]({name})\n", text.format(ranking=report.ranking)]
    return "\n".join(parts) + "\n"


def _markdown_table(rows: Sequence[Row]) -> str:
    metrics = _used_metrics(rows)
    lines = [
        "| " + " | ".join(["", *(_title(metric) for metric in metrics)]) + " |",
        "|---" * (len(metrics) + 1) + "|",
    ]
    for row in rows:
        lines.append("| " + " | ".join([_plain(row.title), *(_cell(row, metric) for metric in metrics)]) + " |")
    return "\n".join(lines) + "\n"


def _used_metrics(rows: Sequence[Row]) -> list[Metric]:
    return [metric for metric in METRICS if any(metric.key in row.estimates for row in rows)]


def _title(metric: Metric) -> str:
    return f"{metric.title} {ARROWS[metric.better]}".strip()


def _cell(row: Row, metric: Metric, has_interval: bool = True) -> str:
    estimate = row.estimates.get(metric.key)
    if estimate is None:
        return "–"
    text = _number(estimate.value, metric.decimals)
    if has_interval and estimate.low is not None and estimate.high > estimate.low:
        text += f" [{_number(estimate.low, metric.decimals)}, {_number(estimate.high, metric.decimals)}]"
    return text if estimate.num_clips == row.num_clips else f"{text} ({estimate.num_clips})"


def _number(value: float, decimals: int) -> str:
    return "∞" if math.isinf(value) else f"{round(value, decimals) + 0.0:.{decimals}f}"  # never -0


def _plain(text: str) -> str:
    """On one line, and nothing in it that Markdown or a table would take for its own."""
    return " ".join(text.split()).replace("|", "\\|").encode(errors="replace").decode()


def format_problems(problems: Sequence[Problem]) -> str:
    """The first of the problems, for the terminal."""
    lines = [f"  {p.clip}, {p.what}: {p.reason}" for p in problems[:NUM_SHOWN_PROBLEMS]]
    if len(problems) > NUM_SHOWN_PROBLEMS:
        lines.append(f"  and {len(problems) - NUM_SHOWN_PROBLEMS} more, see the report")
    return "\n".join(lines).encode(errors="replace").decode()


def as_json(report: Report) -> dict:
    """report.json; an infinite value is the string "inf"."""

    def values(estimate: Estimate) -> dict:
        return {key: "inf" if value == math.inf else value for key, value in asdict(estimate).items()}

    def row(of: Row) -> dict:
        figures = {key: values(estimate) for key, estimate in of.estimates.items()}
        return {"row": of.key, "group": of.group, "num_clips": of.num_clips, "figures": figures}

    def side(of: dict[str, float]) -> dict:
        return {key: "inf" if value == math.inf else value for key, value in of.items()}

    return {
        "source": report.source,
        "settings": asdict(report.settings),
        "networks": [facts.as_dict() for facts in report.networks.facts],
        "not_measured": report.networks.missing,
        "rows": [row(of) for of in report.rows],
        "groups": [row(of) for of in report.group_rows],
        "clips": [
            {"name": m.pair.name, "generated": side(m.generated.values), "real": side(m.real.values)}
            for m in report.measures
        ],
        "problems": [asdict(problem) for problem in report.problems],
    }


def save_report(folder: Path, report: Report) -> None:
    """Writes report.md and report.json."""
    for name, text in (
        ("report.md", format_markdown(report)),
        ("report.json", json.dumps(as_json(report), indent=1, ensure_ascii=False, allow_nan=False) + "\n"),
    ):
        with replacing(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8", errors="replace")
