"""The package as users install it: a wheel, used from an empty folder."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import av
import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # building leaves files in its folder
    names = subprocess.run(["git", "ls-files", "vexpress"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in ("pyproject.toml", "README.md", "LICENSE", *names.split()):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, source]
    subprocess.run(command, check=True, capture_output=True)
    [path] = folder.glob("vexpress-*.whl")
    return path


def test_the_wheel_holds_the_demo_pack_and_no_research(wheel):
    with zipfile.ZipFile(wheel) as file:
        names = file.namelist()
    packed = {name.removeprefix("vexpress/demo_pack/") for name in names if name.startswith("vexpress/demo_pack/")}
    there = subprocess.run(
        ["git", "ls-files", "."], cwd=ROOT / "vexpress" / "demo_pack", capture_output=True, text=True
    )
    assert packed == set(there.stdout.split())
    assert not [name for name in names if name.startswith(("scripts", "tests", "docs"))]


def test_an_installed_command_makes_the_demo_video_in_an_empty_folder(wheel, tmp_path):
    site, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", site, wheel]
    subprocess.run(install, check=True, capture_output=True)
    environment = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, site / "bin" / "vexpress", "generate", "--num_inference_steps", "1"]
    result = subprocess.run(command, cwd=empty, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("output/demo.mp4: 146 frames")
    assert "WARNING" not in result.stderr  # nothing that a newcomer cannot act on
    with av.open(str(empty / "output" / "demo.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == 146
    where = [sys.executable, "-c", "import vexpress; print(vexpress.__file__)"]
    found = subprocess.run(where, cwd=empty, env=environment, capture_output=True, text=True).stdout
    assert found.startswith(str(site))
