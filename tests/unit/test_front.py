"""The public front: lazy, complete, and light where flags are read."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import vexpress
from tests.unit.test_layers import LIGHT

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "numpy", "diffusers", "transformers", "av", "cv2", "librosa", "PIL")


def loaded_by(code: str) -> list[str]:
    """The heavy packages that a fresh interpreter has imported after some code."""
    code += f"\nimport json, sys\nprint('\\n' + json.dumps([name for name in {HEAVY} if name in sys.modules]))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return json.loads(result.stdout.splitlines()[-1])


def test_names_of_the_front_are_where_it_says():
    for name in vexpress.__all__:
        assert getattr(vexpress, name).__name__ == name
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = vexpress.no_such_name


def test_the_front_and_what_flags_are_made_of_import_nothing_heavy():
    modules = "\n".join(f"import vexpress.{name}" for name in LIGHT)
    assert loaded_by(f"import vexpress\n{modules}") == []


@pytest.mark.parametrize(
    "program",
    [
        "generate", "dub", "extract-kps", "download", "prepare", "verify", "extract-face-info",
        "extract-audio-embeddings",
        "cache-latents", "train", "train-motion", "evaluate", "serve", "benchmark",
    ],
)  # fmt: skip
def test_help_and_wrong_flags_import_nothing_heavy(program):
    code = f"""
import contextlib, io, sys
sys.argv = ["vexpress", {program!r}, ARGUMENT]
from vexpress.cli.main import main
with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
    try:
        code = main()
    except SystemExit as error:
        code = error.code
assert code == EXPECTED, code
"""
    assert loaded_by(code.replace("ARGUMENT", "'--help'").replace("EXPECTED", "0")) == []
    assert loaded_by(code.replace("ARGUMENT", "'--no_such_flag'").replace("EXPECTED", "2")) == []


def test_the_command_lists_its_programs_and_refuses_others():
    def run(*arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run([sys.executable, "-m", "vexpress", *arguments], capture_output=True, text=True, cwd=ROOT)

    listing = run("--help")
    assert listing.returncode == 0
    assert "generate" in listing.stdout
    wrong = run("sing")
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("error: no program is called sing")
    assert "Traceback" not in wrong.stderr
