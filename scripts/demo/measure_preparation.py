"""How well preparation knows good data from bad: what it made of make_faulty_dataset's videos, against the truth.

    python -m scripts.demo.make_faulty_dataset --output_dir runs/raw
    vexpress prepare --input_dir runs/raw --output_dir runs/prepared --model_dir vexpress/demo_pack --size 128 --fps 25
    python -m scripts.demo.measure_preparation --raw_dir runs/raw --data_dir runs/prepared

Exit code 1 if it is worse than BARS.
"""

import dataclasses
import json
import sys
from collections import Counter, defaultdict
from pathlib import Path

from vexpress.cli.parser import ArgumentParser
from vexpress.cli.program import run_program
from vexpress.prepare.records import read_record, record_paths

EXIT_WORSE = 1
BARS = {
    "shifts found within 1 frame": (0.95, 1.0),
    "rejected for their reason": (0.95, 1.0),
    "false rejections": (0, 0.02),
}
"""Figure -> least and most."""


@dataclasses.dataclass
class Judgement:
    """What preparation made of the videos of one fault.

    Attributes:
        num_videos: of this fault.
        num_right: that became as many clips as they should, or were rejected for their reasons alone.
        reasons: of rejections; how often.
        shift_errors: frames by which measured and true shift of the sound differ, of clips that were kept.
    """

    num_videos: int = 0
    num_right: int = 0
    reasons: Counter = dataclasses.field(default_factory=Counter)
    shift_errors: list[float] = dataclasses.field(default_factory=list)


def judge(truth: list[dict], data_dir: Path) -> dict[str, Judgement]:
    """Compares the rows of truth.json with a prepared data set: fault -> what became of it."""
    rejected = [json.loads(line) for line in (data_dir / "rejected.jsonl").read_text(encoding="utf-8").splitlines()]
    records = {record["source"]: record for record in map(read_record, record_paths(data_dir)) if record}
    reasons = defaultdict(list)
    left_out = set()  # duplicates, which have clips
    for row in rejected:
        reasons[row["video"]].append(row["reason"])
        left_out |= {(row["video"], row["clip"])} if row["reason"] in ("duplicate", "mirrored") else set()
    judgements: dict[str, Judgement] = defaultdict(Judgement)
    for row in truth:
        name, judgement = row["video"], judgements[row["fault"]]
        kept = [clip for clip in records[name]["clips"] if (name, int(Path(clip["video"]).stem)) not in left_out]
        judgement.num_videos += 1
        judgement.reasons.update(reasons[name])
        is_as_told = set(reasons[name]) <= set(row["reasons"]) and bool(reasons[name]) == bool(row["reasons"])
        judgement.num_right += len(kept) == row["num_clips"] and is_as_told
        for clip in kept:
            if "sync_offset" in clip["quality"]:
                found = -clip["quality"]["sync_offset"] * row["fps"]
                judgement.shift_errors.append(abs(found - row["sound_late_frames"]))
    return dict(judgements)


def summarize(judgements: dict[str, Judgement], truth: list[dict]) -> dict[str, float]:
    """The figures of BARS."""
    is_bad = {row["fault"]: bool(row["reasons"]) for row in truth}
    bad = [judgement for name, judgement in judgements.items() if is_bad[name]]
    good = [judgement for name, judgement in judgements.items() if not is_bad[name]]
    shifted = [judgement for name, judgement in judgements.items() if name.startswith("sound_late")]
    found = sum(error <= 1 for judgement in shifted for error in judgement.shift_errors)
    return {
        "shifts found within 1 frame": found / max(1, sum(j.num_videos for j in shifted)),
        "rejected for their reason": sum(j.num_right for j in bad) / max(1, sum(j.num_videos for j in bad)),
        "false rejections": 1 - sum(j.num_right for j in good) / max(1, sum(j.num_videos for j in good)),
    }


def main(arguments: list[str] | None = None) -> None:
    """Prints the table."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--raw_dir", type=Path, required=True, help="from make_faulty_dataset")
    parser.add_argument("--data_dir", type=Path, required=True, help="from vexpress prepare")
    args = parser.parse_args(arguments)
    truth = json.loads((args.raw_dir / "truth.json").read_text(encoding="utf-8"))
    judgements = judge(truth, args.data_dir)
    print("| videos | number | as they should | rejections |\n|---|---|---|---|")
    for name, judgement in judgements.items():
        reasons = ", ".join(f"{count} {reason}" for reason, count in judgement.reasons.most_common())
        print(f"| {name} | {judgement.num_videos} | {judgement.num_right} | {reasons or 'none'} |")
    figures = summarize(judgements, truth)
    print(*(f"{name}: {100 * figure:.1f} %" for name, figure in figures.items()), sep="\n")
    if not all(low <= figures[name] <= high for name, (low, high) in BARS.items()):
        sys.exit(EXIT_WORSE)


if __name__ == "__main__":
    sys.exit(run_program(main))
