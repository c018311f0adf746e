"""Preparation tells good videos from bad ones: a few of each kind; `scripts.demo.measure_preparation` measures many."""

import json
import shutil
from dataclasses import replace

import pytest

from scripts.demo import make_faulty_dataset
from scripts.demo.make_faulty_dataset import FAULTS, write_faulty_dataset
from scripts.demo.measure_preparation import judge, summarize
from tests.integration.prepare_runs import run_script
from vexpress.data.formats import load_metadata
from vexpress.model_folder import EMBEDDED_MODEL_DIR

pytestmark = pytest.mark.long

KINDS = ("clean", "sound_late_+3", "music", "cut", "dark", "mirrored")
SECONDS = 2.0


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    if shutil.which("espeak-ng") is None:
        pytest.skip("needs espeak-ng")
    folder = tmp_path_factory.mktemp("raw")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            make_faulty_dataset, "FAULTS", {k: replace(fault, seconds=SECONDS) for k, fault in FAULTS.items()}
        )
        return folder, write_faulty_dataset(folder, dict.fromkeys(KINDS, 1), seed=7)


def prepare(input_dir, output_dir, **flags) -> int:
    defaults = {"model_dir": EMBEDDED_MODEL_DIR, "size": 128, "fps": 25, "min_clip_seconds": 1.5, "device": "cpu"}
    return run_script("prepare_dataset", input_dir=input_dir, output_dir=output_dir, **defaults | flags)


@pytest.fixture(scope="module")
def prepared_dir(tmp_path_factory, raw):
    folder = tmp_path_factory.mktemp("out") / "data"
    assert prepare(raw[0], folder) == 0
    return folder


def test_each_is_kept_or_rejected_for_its_reason(raw, prepared_dir):
    judgements = judge(raw[1], prepared_dir)
    reasons = {"music": {"not_speech": 1}, "cut": {"cut": 2}, "dark": {"too_dark": 1}, "mirrored": {"mirrored": 1}}
    assert {name: dict(judgement.reasons) for name, judgement in judgements.items()} == {
        name: reasons.get(name, {}) for name in KINDS
    }
    assert all(judgement.num_right == 1 for judgement in judgements.values())
    assert summarize(judgements, raw[1])["shifts found within 1 frame"] == 1
    rows = [json.loads(line) for line in (prepared_dir / "rejected.jsonl").read_text().splitlines()]
    assert all(row["detail"] and row["quality"] for row in rows)


def test_sound_is_moved_to_the_lips_and_numbers_and_facts_are_kept(prepared_dir):
    rows = json.loads((prepared_dir / "metadata.json").read_text())
    assert len(load_metadata(prepared_dir / "metadata.json")) == len(rows) == 2
    by_person = {row["person"]: row for row in rows}
    assert by_person["sound_late_+3-0"]["quality"]["sound_shift"] == pytest.approx(-3 / 25, abs=1 / 25 + 1e-9)
    assert by_person["clean-0"]["quality"]["sound_shift"] == 0
    assert all(row["language"] in ("en", "sv", "pl", "fi") for row in rows)


def test_another_run_gives_the_same_bytes_and_goes_on(tmp_path, raw, prepared_dir):
    some = tmp_path / "some"
    some.mkdir()
    for suffix in (".mp4", ".json"):
        shutil.copy(raw[0] / f"clean_000{suffix}", some)
    assert prepare(some, tmp_path / "out") == 0
    twins = list((tmp_path / "out" / "clips").rglob("*.*"))
    assert len(twins) == 4
    for path in twins:
        assert path.read_bytes() == (prepared_dir / path.relative_to(tmp_path / "out")).read_bytes()


def test_the_truth_covers_every_fault():
    named = {reason for fault in FAULTS.values() for reason in fault.reasons}
    assert named >= {"not_speech", "no_speech", "not_one_face", "cut", "frozen"}
    assert {*make_faulty_dataset.SHIFTS, 0} == set(range(-5, 6))
