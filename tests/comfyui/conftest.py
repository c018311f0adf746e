"""A real ComfyUI for these tests, where there is one."""

import os
from pathlib import Path

import pytest

from tests.comfyui.server import Server

EXAMPLES = Path(__file__).parents[2] / "vexpress" / "demo_pack" / "examples"


@pytest.fixture(scope="session")
def comfyui() -> tuple[Path, Path]:
    """Checkout and interpreter."""
    folder, python = os.environ.get("COMFYUI_DIR"), os.environ.get("COMFYUI_PYTHON")
    if not folder or not python:
        pytest.skip("COMFYUI_DIR and COMFYUI_PYTHON are not set; scripts/make_comfyui_env.sh makes both")
    return Path(folder), Path(python)


@pytest.fixture(scope="session")
def server(comfyui, tmp_path_factory):
    """One that runs for all tests, with the demo's files in its input folder."""
    started = Server(*comfyui, tmp_path_factory.mktemp("comfyui"))
    for name in ("portrait.png", "speech.wav", "driving.mp4", "driving_kps.npz"):
        started.upload(EXAMPLES / name)
    yield started
    started.stop()


@pytest.fixture(scope="session")
def object_info(server) -> dict:
    return server.get("/object_info")
