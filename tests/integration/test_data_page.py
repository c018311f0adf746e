"""docs/data.md takes raw videos to a trained stage: its commands, as they stand there, but in a folder of the test."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.runs import ROOT
from vexpress.media.random_access import count_frames

pytestmark = pytest.mark.long


def run_block(name: str, runs: Path) -> None:
    """Runs the block of commands that stands under a comment of the page."""
    page = (ROOT / "docs" / "data.md").read_text()
    [block] = re.findall(rf"<!-- {name}: run by .*? -->\n```bash\n(.*?)```", page, flags=re.DOTALL)
    env = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    commands = "set -euo pipefail\n" + block.replace("runs/", f"{runs}/")
    done = subprocess.run(["bash", "-c", commands], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A folder in which the local block has been run."""
    folder = tmp_path_factory.mktemp("runs")
    run_block("local", folder)
    return folder


def test_raw_videos_become_a_trained_stage(runs):
    rejected = [json.loads(line) for line in (runs / "prepared" / "rejected.jsonl").read_text().splitlines()]
    truth = json.loads((runs / "raw" / "truth.json").read_text())
    bad = {row["video"] for row in truth if row["reasons"]}
    assert len(bad & {row["video"] for row in rejected}) >= 0.9 * len(bad)
    assert len(json.loads((runs / "prepared" / "metadata.json").read_text())) >= 0.9 * (len(truth) - len(bad))
    assert "not_speech" in (runs / "prepared.html").read_text()
    assert (runs / "prepared_stage_3" / "export" / "v-express").is_dir()
    assert count_frames(runs / "prepared.mp4") > 100


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs ray")
def test_ray_writes_the_same_files(runs):
    run_block("ray", runs)
