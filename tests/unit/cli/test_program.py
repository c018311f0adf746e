"""How a program ends: one line and an exit code, whatever happens and whenever."""

import errno
import gc
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vexpress.cli.parser import ArgumentParser
from vexpress.cli.program import resting_collector, run_program
from vexpress.errors import InputError

ROOT = Path(__file__).parents[3]


def ends(capsys, error: BaseException, *arguments: str) -> tuple[int, str]:
    def main() -> None:
        parser = ArgumentParser()
        parser.add_argument("--output_path")
        parser.parse_args(arguments)
        raise error

    code = run_program(main)
    return code, capsys.readouterr().err


def test_fields_become_the_flags_that_the_program_has(capsys):
    code, line = ends(capsys, InputError("change `output_path` or `fps`", "output_path", "x"))
    assert (code, line) == (2, "error: --output_path x: change --output_path or fps\n")


def test_a_full_disk_names_path_and_flag(capsys, tmp_path):
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / "folder" / "x.npz"))
    code, line = ends(capsys, error, "--output_path", str(tmp_path))
    assert code == 2
    assert "no space left on the disk: --output_path" in line
    assert "x.npz" in line


@pytest.mark.parametrize("error", [OSError("odd"), PermissionError(13, "Permission denied", "x"), MemoryError()])
def test_what_the_machine_refuses_is_one_line(capsys, error):
    code, line = ends(capsys, error)
    assert code == 2
    assert line.count("\n") == 1


def test_the_collector_rests_during_imports_and_leaves_them_alone_afterwards():
    try:
        with resting_collector():
            assert not gc.isenabled()
        assert gc.isenabled() and gc.get_freeze_count()
    finally:
        gc.unfreeze()


def test_bugs_keep_their_traceback(capsys):
    with pytest.raises(ZeroDivisionError):
        ends(capsys, ZeroDivisionError())


def start(code: str) -> subprocess.Popen:
    code = f"import sys\nfrom vexpress.cli.program import run_program\n{code}\nsys.exit(run_program(main))"
    command = [sys.executable, "-c", code]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize(
    "body",
    [
        "    time.sleep(60)",
        # a reader that takes whatever it is hit by for damage
        "    try:\n        time.sleep(60)\n    except BaseException:\n        raise InputError('is damaged')",
    ],
)
def test_signals_end_a_program_with_their_code_and_no_word_of_damage(number, code, body):
    header = "import time\nfrom vexpress.errors import InputError\n"
    process = start(f"{header}def main():\n    print('ready', flush=True)\n{body}")
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    error = process.communicate(timeout=20)[1]
    assert process.returncode == code
    assert error == "interrupted: nothing half-written is left\n"


def test_a_signal_that_python_drops_comes_again():
    """What a destructor raises is dropped, as happens in imports."""
    body = """
import time
class Slow:
    def __del__(self):
        print('ready', flush=True)
        time.sleep(2)
def main():
    Slow()
    time.sleep(60)
"""
    process = start(body)
    assert process.stdout.readline() == "ready\n"
    process.terminate()
    process.communicate(timeout=20)
    assert process.returncode == 143


def test_a_second_signal_ends_at_once():
    body = """
import time
def main():
    try:
        print('ready', flush=True)
        time.sleep(60)
    finally:
        print('cleaning', flush=True)
        time.sleep(60)
"""
    process = start(body)
    assert process.stdout.readline() == "ready\n"
    process.terminate()
    assert process.stdout.readline() == "cleaning\n"
    started = time.monotonic()
    process.terminate()
    process.communicate(timeout=20)
    assert process.returncode == -signal.SIGTERM
    assert time.monotonic() - started < 10


def test_nobody_reads_the_output():
    process = start("def main():\n    for _ in range(100000): print('line')")
    process.stdout.close()
    error = process.stderr.read()
    assert process.wait(timeout=20) == 141
    assert error == ""


def test_a_terminal_without_the_letters():
    process = subprocess.run(
        [sys.executable, "-c", "from vexpress.cli.program import run_program as r; r(lambda: print('ü', '\\udc80'))"],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (process.returncode, process.stdout, process.stderr) == (0, "\\xfc \\udc80\n", "")
