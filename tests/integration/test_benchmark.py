"""scripts/benchmark.py at tiny sizes: its tables are complete, and what shall be fast is the same."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch

from scripts import benchmark
from vexpress.errors import InputError
from vexpress.model_folder import ModelPaths
from vexpress.weights import load_networks


def table(capsys) -> dict[str, list[str]]:
    """First cell of each row printed -> the other cells."""
    lines = capsys.readouterr().out.splitlines()
    cells = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in lines]
    return {name: rest for name, *rest in cells}


@pytest.mark.parametrize("size", [("64", "64"), ("72", "88")])
def test_unet(capsys, size):
    height, width = size
    benchmark.main(
        ["unet", "--size", "tiny", "--height", height, "--width", width, "--context_frames", "2", "--repeats", "1"]
        + ["--device", "cpu"]
    )
    rows = table(capsys)
    header = rows.pop("denoising step of one window")
    times = ["median ms", "fastest ms", "median to plain's"]
    assert header == [*times, "max difference to plain", "peak GPU memory"]
    savings = ["+ prepared keys and values", "+ unconditional without attention"]
    assert list(rows) == ["plain", *savings, "guidance 1"]
    for name in savings:
        median, fastest, ratio, difference, _ = rows[name]
        assert float(median) >= float(fastest) > 0
        assert float(ratio) > 0
        assert float(difference) < 1e-4
    assert rows["plain"][2] == "1.000"


def test_conditions_of_the_denoising_step_count():
    """Else the rows would agree whatever they leave out."""
    args = benchmark.build_parser().parse_args(["unet", "--size", "tiny", "--height", "64", "--width", "64"])
    args.context_frames = 2
    with torch.no_grad():
        latents, denoisers = benchmark.build_denoisers(args, torch.device("cpu"), torch.float32)
        step = (latents, torch.tensor(499), [[0, 1]])
        guided, conditional = denoisers["plain"](*step), denoisers["guidance 1"](*step)
    assert float((guided - conditional).norm() / guided.norm()) > 0.05


def test_loading_writes_once_and_measures_what_is_there(capsys, tmp_path, monkeypatch):
    model_dir = tmp_path / "model"
    arguments = ["loading", "--size", "tiny", "--model_dir", str(model_dir), "--file_dtype", "fp16"]
    benchmark.main(arguments)
    rows = table(capsys)
    assert list(rows) == [
        "loading",
        "files",
        "networks in fp16",
        "peak resident memory",
        "of it anonymous, peak",
        "time",
    ]
    assert rows["networks in fp16"][1] == "1.00"
    names = {"reference_net", "denoising_unet", "motion_module", "v_kps_guider", "audio_projection"}
    written = {path: path.stat().st_mtime_ns for path in (model_dir / "v-express").glob("*.bin")}
    assert {path.stem for path in written} == names
    paths = ModelPaths.from_model_dir(model_dir, vae_path=str(model_dir), audio_encoder_path=str(model_dir))
    assert all(
        torch.isfinite(weight).all() for network in load_networks(paths).values() for weight in network.parameters()
    )

    # The second time in this process: importing torch in a fresh one takes most of this test.
    monkeypatch.setattr(benchmark.concurrent.futures, "ProcessPoolExecutor", lambda *_, **__: ThreadPoolExecutor(1))
    benchmark.main(arguments)
    assert table(capsys)["files"] == rows["files"]
    assert {path: path.stat().st_mtime_ns for path in written} == written


def test_full_run(capsys):
    benchmark.main(
        ["full_run", "--size", "tiny", "--height", "64", "--width", "72", "--num_frames", "2", "--steps", "2"]
        + ["--device", "cpu"]
    )
    rows = table(capsys)
    assert "2 frames of 72x64" in rows
    seconds = {name: float(cells[0].split()[0]) for name, cells in rows.items() if cells[0].endswith(" s")}
    parts = ["building", "audio", "reference", "kps", "denoising", "per step", "decoding"]
    assert list(seconds) == [*parts, "all but building"]
    assert seconds["per step"] == pytest.approx(seconds["denoising"] / 2, abs=0.011)
    total = sum(seconds[name] for name in ("audio", "reference", "kps", "denoising", "decoding"))
    assert seconds["all but building"] == pytest.approx(total, abs=0.031)


def test_data(capsys):
    benchmark.main(
        ["data", "--height", "64", "--width", "72", "--clip_seconds", "2", "--num_samples", "2", "--num_frames", "3"]
    )
    rows = table(capsys)
    assert list(rows) == ["decoding", "only the frames needed", "the whole clip"]
    for samples_per_second, difference in list(rows.values())[1:]:
        assert float(samples_per_second) > 0
        assert float(difference) < 1e-4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "command"),
        (["train"], "invalid choice"),
        (["unet", "--bad", "1"], "--bad"),
        (["unet", "--repeats", "-3"], "--repeats -3: must be 1 to 1000"),
        (["unet", "--repeats", "two"], "--repeats"),
        (["unet", "--height", "100"], "--height 100: must be a multiple of 8"),
        (["unet", "--context_frames", "33"], "--context_frames 33: must be 1 to 32"),
        (["unet", "--dtype", "fp8"], "--dtype"),
        (["full_run", "--steps", "0"], "--steps 0"),
        (["full_run", "--width", "32"], "--width 32: must be 64 to"),
        (["data", "--clip_seconds", "nan"], "--clip_seconds nan"),
        (["data", "--meta_path", "/nowhere/meta.json"], "/nowhere/meta.json"),
        (["loading", "--size", "tiny", "--model_dir", __file__], "--model_dir .*cannot be made"),
    ],
)
def test_bad_flags_are_one_line(arguments, message):
    with pytest.raises(InputError, match=message) as caught:
        benchmark.main(arguments)
    assert "\n" not in str(caught.value)


def test_too_little_space_is_found_before_writing(monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2**30))
    with pytest.raises(InputError, match=r"1.00 GiB free, 10.\d\d GiB needed"):
        benchmark.main(["loading", "--model_dir", str(tmp_path / "model")])
    assert not (tmp_path / "model/v-express").exists()
