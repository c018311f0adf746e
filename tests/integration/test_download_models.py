"""scripts/download_models.py against a small Hub on this machine: what it fetches, skips, resumes, repairs, refuses."""

import os
import random
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import filelock
import huggingface_hub.constants
import pytest

from tests.hub_server import HubServer
from vexpress.cli import download as download_models
from vexpress.cli import hub as hub_module
from vexpress.cli.program import run_program

SCRIPT_PATH = Path(__file__).parents[2] / "scripts" / "download_models.py"
RELEASED = "tk93/V-Express"
# Written out here once more on purpose: this is the layout that the inference program and its users rely on.
LAYOUT = (
    "stable-diffusion-v1-5/unet/config.json",
    "sd-vae-ft-mse/config.json",
    "sd-vae-ft-mse/diffusion_pytorch_model.bin",
    "wav2vec2-base-960h/config.json",
    "wav2vec2-base-960h/preprocessor_config.json",
    "wav2vec2-base-960h/pytorch_model.bin",
    "insightface_models/models/buffalo_l/det_10g.onnx",
    "insightface_models/models/buffalo_l/2d106det.onnx",
    "insightface_models/models/buffalo_l/1k3d68.onnx",
    "insightface_models/models/buffalo_l/genderage.onnx",
    "insightface_models/models/buffalo_l/w600k_r50.onnx",
    "v-express/reference_net.bin",
    "v-express/denoising_unet.bin",
    "v-express/motion_module.bin",
    "v-express/v_kps_guider.bin",
    "v-express/audio_projection.bin",
)
LARGEST = "v-express/denoising_unet.bin"
NOT_NEEDED = ("README.md", "model_ckpts/wav2vec2-base-960h/vocab.json", "model_ckpts/../../outside.bin")


def _remote(local_path: str) -> str:
    return f"model_ckpts/{local_path}"


@pytest.fixture
def hub() -> Iterator[HubServer]:
    generator = random.Random(0)
    files = {path: generator.randbytes(100 + index) for index, path in enumerate((*map(_remote, LAYOUT), *NOT_NEEDED))}
    files[_remote(LARGEST)] = generator.randbytes(40_000)
    with HubServer({RELEASED: files}) as server:
        yield server


@pytest.fixture(autouse=True)
def _direct_connection(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name.startswith(("HF_", "HUGGING")):
            monkeypatch.delenv(name)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    # The library writes in blocks of 10 MB: smaller ones let a small file be half there.
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the library waits before it tries again
    huggingface_hub.close_session()  # an earlier test's session may go through a proxy
    yield
    huggingface_hub.close_session()


@pytest.fixture
def download(hub: HubServer, tmp_path: Path) -> Callable[..., int]:
    """Runs the program in this process with the local Hub and tmp_path/models; returns its exit code."""

    def run(*arguments: str) -> int:
        fixed = ["--endpoint", hub.endpoint, "--model_dir", str(tmp_path / "models")]
        return run_program(lambda: download_models.main([*fixed, *arguments]))

    return run


def _read_files(model_dir: Path) -> dict[str, bytes]:
    """Everything below the folder, partial files too, but the lock."""
    return {
        path.relative_to(model_dir).as_posix(): path.read_bytes()
        for path in model_dir.rglob("*")
        if path.is_file() and path.suffix != ".lock"
    }


def _expected_files(hub: HubServer) -> dict[str, bytes]:
    return {path: hub.repositories[RELEASED][_remote(path)] for path in LAYOUT}


def _only_error_line(capsys: pytest.CaptureFixture) -> str:
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    return lines[0]


def test_as_a_program_it_fetches_the_layout_and_nothing_else(hub: HubServer, tmp_path: Path) -> None:
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    env |= {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": "hf_secret", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    command = [sys.executable, str(SCRIPT_PATH), "--model_dir", "my models"]
    finished = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60)

    assert finished.returncode == 0, finished.stderr
    assert _read_files(tmp_path / "my models") == _expected_files(hub)
    assert not (tmp_path / "outside.bin").exists()
    (last_line,) = finished.stdout.splitlines()
    assert "16 files fetched, 0 were there" in last_line
    assert "inference.py --model_dir 'my models'" in last_line
    assert not any("authorization" in headers for headers in hub.headers_seen)


def test_a_second_run_fetches_nothing(hub: HubServer, download: Callable[..., int]) -> None:
    assert download() == 0
    assert len(hub.downloads) == len(LAYOUT)
    assert download() == 0
    assert len(hub.downloads) == len(LAYOUT)


def test_an_interrupted_file_is_resumed_by_the_next_run(
    hub: HubServer, download: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    hub.cut_after[_remote(LARGEST)] = 20_000
    assert download("--only", "v-express") == 2
    error_line = capsys.readouterr().err.splitlines()[-1]
    assert "denoising_unet.bin" in error_line
    assert "the same command again resumes" in error_line
    assert not (tmp_path / "models" / LARGEST).exists()
    assert download("--only", "v-express", "--dry_run") == 0
    assert capsys.readouterr().out.splitlines()[-1] == "20.3kB to fetch"  # half of it, and three small ones

    hub.cut_after.clear()
    hub.downloads.clear()
    assert download("--only", "v-express") == 0
    assert (_remote(LARGEST), "bytes=20000-") in hub.downloads
    expected = {path: content for path, content in _expected_files(hub).items() if path.startswith("v-express/")}
    assert _read_files(tmp_path / "models") == expected


@pytest.mark.slow
def test_a_killed_download_goes_on_where_it_was(
    hub: HubServer, download: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    hub.repositories[RELEASED][_remote(LARGEST)] = bytes(25_000_000)  # the library writes in blocks of 10 MiB
    hub.stall_after[_remote(LARGEST)] = 22_000_000
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    arguments = ["--model_dir", str(tmp_path / "models"), "--endpoint", hub.endpoint, "--only", "v-express"]
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT_PATH), *arguments], env=env, stderr=subprocess.PIPE, cwd=tmp_path
    )
    partial = tmp_path / "models" / "v-express" / ".denoising_unet.bin.part"
    deadline = time.monotonic() + 60
    while not (partial.is_file() and partial.stat().st_size == 20 * 2**20):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        threading.Event().wait(0.01)  # time.sleep is patched
    assert download("--only", "v-express") == 2
    assert "another download" in capsys.readouterr().err
    process.kill()
    process.wait()
    assert not (tmp_path / "models" / LARGEST).exists()

    hub.downloads.clear()
    capsys.readouterr()
    assert download("--only", "v-express") == 0
    assert (_remote(LARGEST), "bytes=20971520-") in hub.downloads
    expected = {path: content for path, content in _expected_files(hub).items() if path.startswith("v-express/")}
    assert _read_files(tmp_path / "models") == expected


def test_a_disk_that_fills_up_names_path_and_flag(
    download: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vexpress.cli.hub.http_get", full)
    assert download("--only", "unet") == 2
    path = tmp_path / "models" / "stable-diffusion-v1-5" / "unet" / "config.json"
    line = f"error: no space left on the disk: --model_dir {path}; free space or change the path"
    assert capsys.readouterr().err.splitlines()[-1] == line


def test_a_wheel_names_its_own_program(
    download: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert download() == 0
    assert "Next: python " in capsys.readouterr().out
    monkeypatch.setattr(download_models, "INFERENCE_PATH", tmp_path / "no clone" / "inference.py")
    assert download() == 0
    assert f"Next: vexpress generate --model_dir {tmp_path / 'models'} " in capsys.readouterr().out


def test_a_partial_file_of_another_version_is_refused_and_then_fetched_anew(
    hub: HubServer, download: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    hub.cut_after[_remote(LARGEST)] = 20_000
    assert download("--only", "v-express") == 2
    hub.cut_after.clear()
    hub.repositories[RELEASED][_remote(LARGEST)] = bytes(40_000)

    assert download("--only", "v-express") == 2
    assert "checksum" in capsys.readouterr().err.splitlines()[-1]
    assert download("--only", "v-express") == 0
    assert (tmp_path / "models" / LARGEST).read_bytes() == bytes(40_000)


def test_a_partial_file_that_is_too_long_is_dropped(
    hub: HubServer, download: Callable[..., int], tmp_path: Path
) -> None:
    hub.cut_after[_remote(LARGEST)] = 20_000
    assert download("--only", "v-express") == 2
    hub.cut_after.clear()
    hub.repositories[RELEASED][_remote(LARGEST)] = bytes(10_000)
    assert download("--only", "v-express") == 0
    assert (tmp_path / "models" / LARGEST).read_bytes() == bytes(10_000)


def test_a_file_of_the_wrong_size_is_repaired(hub: HubServer, download: Callable[..., int], tmp_path: Path) -> None:
    assert download() == 0
    hub.downloads.clear()
    (tmp_path / "models" / LARGEST).write_bytes(b"cut")
    assert download() == 0
    assert hub.downloads == [(_remote(LARGEST), None)]
    assert _read_files(tmp_path / "models") == _expected_files(hub)


@pytest.mark.parametrize(("part", "local_path"), [("v-express", LARGEST), ("unet", LAYOUT[0])], ids=("large", "small"))
@pytest.mark.parametrize("num_extra_bytes", [0, 1, -1])
def test_content_that_differs_from_the_listing_is_not_left(
    hub: HubServer,
    download: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    part: str,
    local_path: str,
    num_extra_bytes: int,
) -> None:
    num_listed_bytes = len(hub.repositories[RELEASED][_remote(local_path)])
    hub.sent_instead[_remote(local_path)] = bytes(num_listed_bytes + num_extra_bytes)
    assert download("--only", part) == 2
    error_line = capsys.readouterr().err.splitlines()[-1]
    assert error_line.startswith("error: ")
    assert local_path in error_line
    assert not [
        path for path in _read_files(tmp_path / "models") if Path(local_path).name in path
    ]  # no partial one too


def test_no_more_is_written_than_is_listed(
    hub: HubServer, download: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    sizes = []

    def send_without_end(url: str, file: BinaryIO, **_: object) -> None:
        try:
            for _ in range(100):
                file.write(bytes(1000))
        finally:
            file.flush()
            sizes.append(os.path.getsize(file.name))

    monkeypatch.setattr(hub_module, "http_get", send_without_end)
    assert download("--only", "v-express") == 2
    listed = [len(content) for content in hub.repositories[RELEASED].values()]
    assert len(sizes) == 1 and sizes[0] <= max(listed)
    assert "sent another length than the " in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("size", [-5, True, 1.5, None])
def test_a_listing_with_odd_sizes_is_one_line(
    hub: HubServer, download: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, size
) -> None:
    listing = hub.describe(RELEASED)
    monkeypatch.setattr(
        hub, "describe", lambda _: listing | {"siblings": [file | {"size": size} for file in listing["siblings"]]}
    )
    assert download() == 2
    error = capsys.readouterr().err
    assert f"gives {size!r} as size of" in error and len(error.splitlines()) == 1


def test_a_file_that_the_server_lacks_is_named(
    hub: HubServer, download: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    del hub.repositories[RELEASED][_remote("v-express/motion_module.bin")]
    hub.repositories[RELEASED]["motion_module.bin"] = b"elsewhere"
    assert download() == 2
    assert "v-express/motion_module.bin" in _only_error_line(capsys)
    assert not hub.downloads
    assert not (tmp_path / "models").exists()


def test_an_upstream_repository_fills_in(hub: HubServer, download: Callable[..., int], tmp_path: Path) -> None:
    expected = _expected_files(hub)
    for name in ("preprocessor_config.json", "pytorch_model.bin"):
        del hub.repositories[RELEASED][_remote(f"wav2vec2-base-960h/{name}")]
    upstream = {"preprocessor_config.json": b"{}", "pytorch_model.bin": b"pickle", "model.safetensors": b"tensors"}
    hub.repositories["facebook/wav2vec2-base-960h"] = upstream
    assert download("--only", "wav2vec2", "--only", "unet") == 0
    assert _read_files(tmp_path / "models") == {
        "wav2vec2-base-960h/config.json": expected["wav2vec2-base-960h/config.json"],
        "wav2vec2-base-960h/preprocessor_config.json": b"{}",
        "wav2vec2-base-960h/model.safetensors": b"tensors",
        "stable-diffusion-v1-5/unet/config.json": expected["stable-diffusion-v1-5/unet/config.json"],
    }


def test_parts_on_request_come_when_asked_for(hub: HubServer, download: Callable[..., int], tmp_path: Path) -> None:
    hub.repositories["madebyollin/taesd"] = {"config.json": b"{}", "diffusion_pytorch_model.bin": b"tiny"}
    hub.repositories["ByteDance/LatentSync"] = {"auxiliary/syncnet_v2.model": b"sync", "auxiliary/other.bin": b"other"}
    hub.repositories["flateon/FVD-I3D-torchscript"] = {"i3d_torchscript.pt": b"i3d"}
    assert download("--only", "taesd") == 0
    files = {"taesd/config.json": b"{}", "taesd/diffusion_pytorch_model.bin": b"tiny"}
    assert _read_files(tmp_path / "models") == files
    shutil.rmtree(tmp_path / "models" / "taesd")
    assert download("--only", "evaluation") == 0
    files = {"evaluation/syncnet_v2.model": b"sync", "evaluation/i3d_torchscript.pt": b"i3d"}
    assert _read_files(tmp_path / "models") == files


def test_a_format_that_is_already_there_is_kept(hub: HubServer, download: Callable[..., int], tmp_path: Path) -> None:
    assert download("--only", "vae") == 0
    hub.repositories[RELEASED][_remote("sd-vae-ft-mse/diffusion_pytorch_model.safetensors")] = b"tensors"
    hub.downloads.clear()
    assert download("--only", "vae") == 0
    assert not hub.downloads


def test_dry_run_prints_the_plan_and_writes_nothing(
    hub: HubServer, download: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert download("--dry_run") == 0
    plan = capsys.readouterr().out.splitlines()
    assert len(plan) == len(LAYOUT) + 1
    (line,) = [line for line in plan if LARGEST in line]
    assert "40.0kB" in line
    assert plan[-1].endswith("to fetch")
    assert not hub.downloads
    assert not (tmp_path / "models").exists()


def test_an_unreachable_server_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        endpoint = f"http://127.0.0.1:{unused.getsockname()[1]}"
        arguments = ["--endpoint", endpoint, "--model_dir", str(tmp_path / "models")]
        assert run_program(lambda: download_models.main(arguments)) == 2
    error_line = _only_error_line(capsys)
    assert endpoint in error_line
    assert "the same command again resumes" in error_line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--revision", "no-such-branch"), ("no-such-branch", "--revision")),
        (("--endpoint", "hub.example"), ("hub.example", "--endpoint")),
        (("--endpoint", "http://["), ("http://[", "--endpoint")),
        (("--model_dir", __file__), ("is not a folder", "--model_dir")),
    ],
)
def test_what_the_user_got_wrong_is_one_line(
    download: Callable[..., int], capsys: pytest.CaptureFixture, arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    assert download(*arguments) == 2
    error_line = _only_error_line(capsys)
    assert all(word in error_line for word in words), error_line


def test_a_repository_that_is_gone_is_one_line(
    hub: HubServer, download: Callable[..., int], capsys: pytest.CaptureFixture
) -> None:
    hub.repositories.clear()
    assert download() == 2
    assert RELEASED in _only_error_line(capsys)


def test_a_full_disk_is_found_before_anything_is_fetched(
    hub: HubServer, download: Callable[..., int], capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 40_500}))
    assert download() == 2
    assert "free" in _only_error_line(capsys)
    assert not hub.downloads
    assert download("--only", "insightface") == 0


def test_offline_mode_is_named(
    download: Callable[..., int], capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert download() == 2
    assert "HF_HUB_OFFLINE" in _only_error_line(capsys)


def test_two_runs_do_not_share_a_folder(
    hub: HubServer, download: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "models").mkdir()
    with filelock.FileLock(tmp_path / "models" / ".download_models.lock"):
        assert download() == 2
    assert "another download" in _only_error_line(capsys)
    assert not hub.downloads
