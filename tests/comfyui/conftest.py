"""A real ComfyUI for these tests, where there is one."""

import os
import shutil
import wave
from pathlib import Path

import pytest

from tests.comfyui.server import ROOT, Server

EXAMPLES = ROOT / "vexpress" / "demo_pack" / "examples"
SECONDS = 1.0
"""Of speech: 30 frames, three windows."""


@pytest.fixture(scope="session")
def comfyui() -> tuple[Path, Path]:
    """Checkout and interpreter."""
    folder, python = os.environ.get("COMFYUI_DIR"), os.environ.get("COMFYUI_PYTHON")
    if not folder or not python:
        pytest.skip("COMFYUI_DIR and COMFYUI_PYTHON are not set; scripts/make_comfyui_env.sh makes both")
    return Path(folder), Path(python)


@pytest.fixture(scope="session")
def server(comfyui, tmp_path_factory):
    """One that runs for all tests, with short speech among the demo's files in its input folder."""
    base_dir, other_dir = tmp_path_factory.mktemp("comfyui"), tmp_path_factory.mktemp("other_models")
    paths = base_dir / "extra_model_paths.yaml"
    paths.write_text(f"other:\n    base_path: {other_dir}\n    vexpress: vexpress\n")
    shutil.copytree(ROOT / "vexpress" / "demo_pack", other_dir / "vexpress" / "second")
    started = Server(*comfyui, base_dir, ("--extra-model-paths-config", str(paths)))
    for name in ("portrait.png", "driving.mp4", "driving_kps.npz"):
        started.upload(EXAMPLES / name)
    with wave.open(str(EXAMPLES / "speech.wav")) as speech:
        parameters, sound = speech.getparams(), speech.readframes(round(SECONDS * speech.getframerate()))
    with wave.open(str(base_dir / "input" / "speech.wav"), "wb") as short:
        short.setparams(parameters)
        short.writeframes(sound)
    yield started
    started.stop()


@pytest.fixture(scope="session")
def object_info(server) -> dict:
    return server.get("/object_info")
