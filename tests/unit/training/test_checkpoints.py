"""Checkpoints are found by their name, and one that is damaged is noticed."""

import json
import shutil

import pytest

from vexpress.errors import InputError
from vexpress.training.checkpoints import (
    STATE_FILE,
    Progress,
    checkpoint_path,
    find_checkpoints,
    read_newest,
    read_progress,
    write_progress,
)


@pytest.fixture
def run_folder(tmp_path):
    """Checkpoints of steps 1, 2 and 3."""
    for step in (1, 2, 3):
        folder = checkpoint_path(tmp_path, step)
        (folder / "part").mkdir(parents=True)
        (folder / "optimizer.bin").write_bytes(bytes(range(256)) * step)
        (folder / "part" / "weights.safetensors").write_bytes(b"weights" * 99)
        write_progress(folder, Progress(step, 2 * step, "stage_3"))
    return tmp_path


def test_only_names_of_checkpoints_count(run_folder):
    first = checkpoint_path(run_folder, 1)
    for name in ("step_backup", "step_00000009.old", "step_9", "old_step_00000009", "step_000000099"):
        shutil.copytree(first, first.with_name(name))
    (first.parent / "step_00000099").write_text("a file")
    assert [path.name for path in find_checkpoints(run_folder)] == [f"step_0000000{i}" for i in (1, 2, 3)]
    path, progress = read_newest(run_folder)
    assert (path, progress) == (checkpoint_path(run_folder, 3), Progress(3, 6, "stage_3"))


def test_a_new_run_has_none(tmp_path):
    assert read_newest(tmp_path) == (None, Progress())


def truncate(folder):
    (folder / "optimizer.bin").write_bytes((folder / "optimizer.bin").read_bytes()[:-1])


def flip(folder):
    content = bytearray((folder / "part" / "weights.safetensors").read_bytes())
    content[99] ^= 1
    (folder / "part" / "weights.safetensors").write_bytes(content)


def rewrite(**changes):
    def damage(folder):
        state = json.loads((folder / STATE_FILE).read_text()) | changes
        (folder / STATE_FILE).write_text(json.dumps({key: value for key, value in state.items() if value != "gone"}))

    return damage


DAMAGES = {
    "truncated": (truncate, "optimizer.bin is not what was saved"),
    "a bit": (flip, "weights.safetensors is not what was saved"),
    "missing": (lambda folder: (folder / "optimizer.bin").unlink(), "optimizer.bin: No such file"),
    "no state": (lambda folder: (folder / STATE_FILE).unlink(), "trainer.json"),
    "no JSON": (lambda folder: (folder / STATE_FILE).write_text("{"), "trainer.json"),
    "deep JSON": (lambda folder: (folder / STATE_FILE).write_text('{"a":' * 10**6), "trainer.json"),
    "a list": (lambda folder: (folder / STATE_FILE).write_text("[]"), "trainer.json"),
    "binary": (lambda folder: (folder / STATE_FILE).write_bytes(bytes(range(256))), "trainer.json"),
    "a folder": (lambda folder: ((folder / STATE_FILE).unlink(), (folder / STATE_FILE).mkdir()), "trainer.json"),
    "no step": (rewrite(step="gone"), "trainer.json lacks 'step'"),
    "step of another": (rewrite(step=7), "trainer.json is not what was saved"),
    "text for a number": (rewrite(num_samples="6"), "trainer.json is not what was saved"),
    "negative": (rewrite(num_samples=-6), "trainer.json is not what was saved"),
    "digests of another kind": (rewrite(sha256=[1]), "trainer.json is not what was saved"),
}


@pytest.mark.parametrize(("damage", "reason"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_one_is_named_with_the_intact_one_before_it(run_folder, damage, reason):
    damage(checkpoint_path(run_folder, 3))
    with pytest.raises(InputError, match=reason) as caught:
        read_newest(run_folder)
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith("step_00000002 is intact: delete step_00000003, and the same command resumes from it")
    damage(checkpoint_path(run_folder, 2))
    with pytest.raises(InputError, match="step_00000001 is intact: delete step_00000002, step_00000003, and"):
        read_newest(run_folder)
    damage(checkpoint_path(run_folder, 1))
    with pytest.raises(InputError, match="no other one is intact: delete .* to start anew, or change output_dir"):
        read_newest(run_folder)


def test_checkpoints_of_earlier_versions_have_no_digests(run_folder):
    rewrite(sha256="gone")(checkpoint_path(run_folder, 3))
    assert read_progress(checkpoint_path(run_folder, 3)).step == 3
