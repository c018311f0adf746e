"""The log survives what happens to files."""

import json
import logging

import numpy as np
from PIL import Image

from vexpress.training.run_log import RunLog, append_header, describe_run

ENTRIES = [{"step": i, "loss": 1.0 / i, "mouth_loss": 0.5} for i in (1, 2, 3)]
DAMAGED = ["{", "[]", "3", '{"step": "1"}', '{"step": 1.5}', '{"step": true}', '{"loss": 1}', "[" * 10**5, "\x00"]
DAMAGED += ['{"step": 1, "loss": "a"}', '{"step": 1, "loss": [1]}', '{"step": 1, "loss": null}']


def test_damaged_lines_are_dropped_with_a_warning(tmp_path, caplog):
    lines = [json.dumps(entry) for entry in ENTRIES]
    content = "\n".join([lines[0], *DAMAGED, lines[1], lines[2]]).encode() + b"\n\xff\xfe\n" + lines[0][:9].encode()
    (tmp_path / "log.jsonl").write_bytes(content)
    with caplog.at_level(logging.WARNING):
        log = RunLog(tmp_path, start_step=2)
    assert log.entries == ENTRIES[:2]
    assert f"{len(DAMAGED) + 1} damaged lines are dropped" in caplog.text
    log.add({"step": 3, "loss": float("nan")})
    log.render_curve()
    assert Image.open(tmp_path / "loss.png").size == (960, 540)
    assert len(RunLog(tmp_path, start_step=3).entries) == 3


def test_a_line_that_was_cut_off_is_no_cause_for_a_warning(tmp_path, caplog):
    (tmp_path / "log.jsonl").write_text(json.dumps(ENTRIES[0]) + '\n{"step": 2, "lo')
    with caplog.at_level(logging.WARNING):
        assert RunLog(tmp_path, start_step=9).entries == ENTRIES[:1]
    assert not caplog.text


def test_headers_are_added_to_whatever_is_there(tmp_path):
    path = tmp_path / "runs.jsonl"
    append_header(path, {"step": 0})
    append_header(path, {"step": 2})
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [0, 2]


def test_a_run_is_described_with_its_commit_and_weights(tmp_path):
    (tmp_path / "weights").write_bytes(np.arange(9).tobytes())
    facts = describe_run([tmp_path / "weights"])
    assert facts[str(tmp_path / "weights")].startswith("sha256 ")
    assert "always" not in facts["commit"]
    assert len(facts["commit"].removesuffix("-dirty")) >= 40 or "no checkout" in facts["commit"]
