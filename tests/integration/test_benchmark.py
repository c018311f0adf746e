"""`vexpress benchmark` at tiny sizes: its tables are complete, and what shall be fast is the same."""

import os
import shutil
import sys
from types import SimpleNamespace

import pytest
import torch

from vexpress import options
from vexpress.benchmarks import flops, full_run, loading, memory, presets, startup
from vexpress.benchmarks.measuring import Stopwatch, Table, take_turns
from vexpress.benchmarks.random_networks import build_pipeline
from vexpress.benchmarks.settings import (
    BENCHMARKS,
    FlopsSettings,
    FullRunSettings,
    MemorySettings,
    StartupSettings,
    UNetSettings,
)
from vexpress.benchmarks.unet import build_denoisers
from vexpress.cli import benchmark
from vexpress.cli.program import run_program
from vexpress.diffusion.guidance import Carried
from vexpress.errors import InputError
from vexpress.model_folder import ModelPaths
from vexpress.options import PRESETS, SamplingOptions
from vexpress.weights import load_networks

CPU = torch.device("cpu")


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


SMALL_STEP = ["--size", "tiny", "--height", "64", "--width", "72", "--num_frames", "2", "--repeats", "1"]


def test_training(capsys):
    benchmark.main(["training", *SMALL_STEP, "--device", "cpu"])
    rows = table(capsys)
    figures = ["median ms", "fastest ms", "median to plain's", "loss", "gradient's norm", "peak GPU memory"]
    assert rows.pop("step of stage 3") == figures
    assert list(rows) == ["plain", "gradient checkpointing"]
    for value, plain in zip(rows["gradient checkpointing"][3:5], rows["plain"][3:5]):
        assert float(value) == pytest.approx(float(plain), rel=1e-4)
        assert float(plain) > 0


@pytest.mark.skipif("RELEASED_DIR" not in os.environ, reason="RELEASED_DIR: a checkout of tencent-ailab/V-Express")
def test_the_released_step_is_the_same(capsys):
    benchmark.main(["training", *SMALL_STEP, "--device", "cpu", "--released", os.environ["RELEASED_DIR"]])
    rows = table(capsys)
    for value, plain in zip(rows["the release's networks"][3:5], rows["plain"][3:5]):
        assert float(value) == pytest.approx(float(plain), rel=1e-4)


def test_a_checkout_without_the_released_networks_is_said(capsys, tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "modules", raising=False)  # of the test above
    arguments = ["training", *SMALL_STEP, "--device", "cpu", "--released", str(tmp_path)]
    assert run_program(lambda: benchmark.main(arguments)) == 2
    assert "must be a checkout of tencent-ailab/V-Express" in capsys.readouterr().err
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "__init__.py").write_text("")
    assert run_program(lambda: benchmark.main(arguments)) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert line.startswith("error: --released") and "cannot use its networks" in line


def test_autoencoder(capsys):
    benchmark.main(["autoencoder", "--size", "tiny", "--height", "64", "--width", "72", "--device", "cpu"])
    rows = table(capsys)
    assert rows.pop("a picture of 72x64") == ["median ms", "ratio", "difference"]
    assert list(rows) == [f"{work}, {name}" for work in ("encode", "decode") for name in ("as loaded", "channels last")]
    for name, (_, ratio, difference) in rows.items():
        assert float(difference) < 1e-5
        assert ratio == "1.000" or "channels last" in name


def test_memory_of_joint_sampling():
    ((row, growth),) = memory.measure_joint(MemorySettings(fps=2.0))
    assert row == "joint, ddim, 512x512, growth per minute"
    assert float(growth) < 130


def test_conditions_of_the_denoising_step_count():
    """Else the rows would agree whatever they leave out."""
    settings = UNetSettings(size="tiny", height=64, width=64, context_frames=2)
    torch.manual_seed(0)
    with torch.no_grad():
        latents, denoisers = build_denoisers(settings, CPU, torch.float32)
        step = (latents, torch.tensor(499), [[0, 1]], [Carried()])
        guided, conditional = denoisers["plain"](*step), denoisers["guidance 1"](*step)
    assert float((guided - conditional).norm() / guided.norm()) > 0.05


def test_loading_writes_once_and_measures_what_is_there(capsys, tmp_path):
    model_dir = tmp_path / "model"
    benchmark.main(["loading", "--size", "tiny", "--model_dir", str(model_dir), "--file_dtype", "fp16"])
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
    networks = load_networks(paths)
    assert all(torch.isfinite(weight).all() for network in networks.values() for weight in network.parameters())

    # The second time in this process: importing torch in a fresh one takes most of this test.
    found = loading.load_and_measure(model_dir)
    assert found["size"] == sum(2 * w.numel() for network in networks.values() for w in network.state_dict().values())
    assert found["seconds"] > 0
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


def test_the_parts_of_a_full_run_are_the_pipelines():
    settings = FullRunSettings(size="tiny", height=64, width=72, num_frames=5, steps=2)
    options = SamplingOptions(num_inference_steps=2, context_frames=3, context_overlap=1)
    torch.manual_seed(0)
    pipeline = build_pipeline("tiny", CPU, torch.float32)
    inputs = full_run.random_inputs(settings, pipeline.audio_processor.sampling_rate)
    noise = torch.randn(1, 4, 5, 8, 9)
    latents = full_run.run_parts(pipeline, inputs, noise.clone(), options, CPU, Stopwatch(CPU))
    whole = pipeline(**inputs, latents=noise.clone(), options=options, output_type="latent").frames
    torch.testing.assert_close(latents, whole, rtol=0, atol=0)


def test_data(capsys):
    benchmark.main(
        ["data", "--height", "64", "--width", "72", "--clip_seconds", "2", "--num_samples", "2", "--num_frames", "3"]
    )
    rows = table(capsys)
    frames = ["its frames: only those decoded", "its frames: the whole clip decoded"]
    assert list(rows) == ["reading", "a training sample", *frames]
    for per_second, ratio, difference in (rows[name] for name in frames):
        assert float(per_second) > 0
        assert float(ratio) > 0
        assert int(difference) == 0


def test_arithmetic_is_counted_by_kind_and_adds_up():
    made = flops.measure(FlopsSettings(size="tiny", width=64, height=72))
    assert made.header == ["TFLOP per frame of 64x72", *PRESETS]
    columns = {name: {row[0]: float(row[place]) for row in made.rows} for place, name in enumerate(PRESETS, 1)}
    for column in columns.values():
        parts = [*flops.KINDS, flops.REST, "conditions", "VAE's decoder"]
        assert all(column[kind] > 0 for kind in parts)
        assert sum(column[kind] for kind in parts) == pytest.approx(column["sum"], rel=1e-2)
    assert columns["released"]["passes, whole"] == 50
    assert [columns["fast"][name] for name in ("passes, whole", "passes, first level alone")] == [9, 11]
    assert columns["live"]["passes, whole"] == 2
    assert columns["released"]["sum"] > columns["fast"]["sum"] > columns["live"]["sum"]


def test_a_pass_with_the_first_level_alone_costs_less():
    frame = flops.ReleasedFrame(
        FlopsSettings(size="tiny", width=64, height=64), SamplingOptions(context_frames=2, context_overlap=0)
    )
    whole, shallow = frame.of_pass((True, True)), frame.of_pass((True, False))
    assert 0.2 < shallow[""] / whole[""] < 0.8
    assert frame.of_pass((False, True))["reference attention"] == 0 < whole["reference attention"]


def test_presets_and_a_live_stream(capsys, monkeypatch):
    quick = {name: {"num_inference_steps": 1, "sampling": "joint"} for name in ("released", "other")}
    for module in (options, presets):
        monkeypatch.setattr(module, "PRESETS", quick)
    monkeypatch.setattr(presets, "SCALES", (1,))
    benchmark.main(["presets", "--num_frames", "2", "--repeats", "1"])
    rows = table(capsys)
    assert rows["released"][1:] == ["1.000", "-"]
    assert rows["other"][2] == "inf"  # the same sampler's frames
    monkeypatch.undo()
    benchmark.main(["live", "--seconds", "1", "--num_inference_steps", "1", "--repeats", "1"])
    rows = table(capsys)
    assert float(rows["speech heard until then"][0].split()[0]) >= 0.5  # a window's, of 16 frames
    per_second, factor = float(rows["frames per second"][0]), float(rows["real-time factor"][0])
    assert per_second * factor == pytest.approx(30, rel=0.1)


def test_startup(capsys, monkeypatch):
    monkeypatch.delitem(startup.COMMANDS, startup.DEFAULT_RUN)  # which takes as long as all tests of this file
    benchmark.main(["startup", "--rounds", "1"])
    rows = table(capsys)
    assert rows.pop("command") == ["median s", "fastest s", "median to python's"]
    assert list(rows) == [*startup.COMMANDS]
    assert rows[startup.PASS][-1] == "1.0"
    assert all(float(ratio) > 0 for *_, ratio in rows.values())


def test_two_checkouts_are_compared(tmp_path):
    """Each writes a clip, one of them frames that are brighter by 8."""
    program = """
import numpy as np
from vexpress.media.video import write_video
from pathlib import Path
Path("output").mkdir(exist_ok=True)
write_video("output/demo.mp4", [np.full((32, 32, 3), LEVEL, np.uint8)] * 3, 25)
"""
    for name, level in (("this", "60"), ("other", "68")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "inference.py").write_text(program.replace("LEVEL", level))
    (tmp_path / "work").mkdir()
    rows = startup.compare_checkouts({name: tmp_path / name for name in ("this", "other")}, 1, tmp_path / "work").rows
    assert [row[0] for row in rows] == ["this", "other"]
    assert rows[1][2] == rows[1][4] == "1.000"
    assert all(float(cell) > 0 for row in rows for cell in row[1:5])
    assert 7 <= int(rows[0][5]) <= 9


def test_a_program_that_fails_ends_the_benchmark(tmp_path):
    with pytest.raises(InputError, match="ended with 2, not 0: error: unrecognized arguments: --sing"):
        startup.run_command([*startup.COMMAND, "generate", "--sing"], 0, tmp_path)
    with pytest.raises(InputError, match="other=/nowhere: .*inference.py: no such file"):
        startup.measure(StartupSettings(rounds=1, other="/nowhere"))


def test_turns_are_taken():
    calls = []
    rows = {name: lambda name=name: calls.append(name) or name.upper() for name in "ab"}
    seconds, results = take_turns(rows, repeats=2, warmup=1)
    assert "".join(calls) == "ababab"
    assert results == {"a": "A", "b": "B"}
    assert [len(times) for times in seconds.values()] == [2, 2]
    assert Table(["x", "y"], [["long", "1"]]).format() == "x     y\nlong  1"


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_has_help(name, capsys):
    with pytest.raises(SystemExit) as caught:
        benchmark.main([name, "--help"])
    assert caught.value.code == 0
    assert BENCHMARKS[name].__doc__.split()[0] in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: benchmark"),
        (["train"], "invalid choice"),
        (["unet", "--bad", "1"], "--bad"),
        (["unet", "--repeats", "-3"], "--repeats -3: must be 1 to 1000"),
        (["unet", "--repeats", "two"], "--repeats"),
        (["unet", "--height", "100"], "--height 100: must be a multiple of 8"),
        (["unet", "--context_frames", "33"], "--context_frames 33: must be 1 to 32"),
        (["unet", "--dtype", "fp8"], "--dtype"),
        (["full_run", "--steps", "0"], "--steps 0"),
        (["full_run", "--width", "32"], "--width 32: must be a multiple of 8, 64 to"),
        (["data", "--clip_seconds", "nan"], "--clip_seconds nan"),
        (["data", "--meta_path", "/nowhere/meta.json"], "/nowhere/meta.json"),
        (["loading", "--size", "tiny", "--model_dir", __file__], f"--model_dir {__file__}: cannot be made"),
        (["startup", "--rounds", "0"], "--rounds 0: must be 1 to"),
    ],
)
def test_bad_flags_are_one_line(arguments, message, capsys):
    assert run_program(lambda: benchmark.main(arguments)) == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("INFO")]
    assert message in line


def test_too_little_space_is_found_before_writing(monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2**30))
    with pytest.raises(InputError, match=r"1.00 GiB free, 10.\d\d GiB needed"):
        benchmark.main(["loading", "--model_dir", str(tmp_path / "model")])
    assert not (tmp_path / "model/v-express").exists()
