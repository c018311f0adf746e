"""The main program, from files to a file, with networks of tiny size."""

import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
import wave
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from tests import tiny
from tests.face_models import build_face_models, draw_face
from vexpress.cli import generate as inference
from vexpress.cli.program import run_program
from vexpress.errors import InputError
from vexpress.media.faces import FaceAnalyzer
from vexpress.media.keypoints import KpsSequence, save_kps
from vexpress.model_folder import INFERENCE_DEFAULTS
from vexpress.options import MotionOptions, SamplingOptions
from vexpress.request import Request, prepare_portrait

ROOT = Path(__file__).parents[2]
SAMPLES_DIR = tiny.SHARED_DIR / "samples"
SIZE = 64
ODD_NAME = "-odd name 'quoted\" [1] (2) %d #ünï:€"


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    folder = tiny.write_model_dir(tmp_path_factory.mktemp("model"))
    build_face_models(folder / "insightface_models")
    return folder


def write_wav(path: Path, seconds: float, rate_hz: int = 16000) -> Path:
    samples = np.sin(np.arange(round(seconds * rate_hz)) * 2 * np.pi * 220 / rate_hz)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate_hz)
        file.writeframes((samples * 10000).astype("<i2").tobytes())
    return path


def write_portrait(path: Path, size: int = 512) -> Path:
    image = np.full((size, size, 3), 255, dtype=np.uint8)
    draw_face(image, (size / 2, size / 2), size / 5)
    Image.fromarray(image).save(path)
    return path


@pytest.fixture
def files(tmp_path, model_dir):
    """Good inputs: 0.5 s of audio, a drawn portrait, keypoints."""
    kps = torch.tensor([[24.0, 24], [40, 24], [32, 40]]) + torch.arange(20)[:, None, None] % 5
    save_kps(tmp_path / "kps.pth", KpsSequence(kps))
    return {
        "--model_dir": model_dir,
        "--reference_image_path": write_portrait(tmp_path / "portrait.png"),
        "--audio_path": write_wav(tmp_path / "speech.wav", 0.5),
        "--kps_path": tmp_path / "kps.pth",
        "--output_path": tmp_path / "out.mp4",
        "--retarget_strategy": "no_retarget",
        "--image_width": SIZE,
        "--image_height": SIZE,
        "--fps": 20,
        "--num_inference_steps": 1,
        "--context_frames": 6,
        "--context_overlap": 2,
        "--device": "cpu",
    }


def run(flags: dict, *switches: str) -> int:
    arguments = [str(part) for flag, value in flags.items() if value is not None for part in (flag, value)]
    return run_program(lambda: inference.main([*arguments, *switches]))


def read_back(path: Path) -> dict:
    """What a player would find in the file."""
    with av.open(f"file:{path}") as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video)]
        container.seek(0)
        num_samples = sum(frame.samples for frame in container.decode(audio))
        return {
            "frames": np.stack(frames),
            "fps": video.average_rate,
            "codec": (video.codec_context.name, video.codec_context.pix_fmt, audio.codec_context.name),
            "video_seconds": float(video.duration * video.time_base),
            "audio_seconds": float(audio.duration * audio.time_base),
            "num_samples": num_samples,
        }


def check_video(path: Path, num_frames: int, fps: float, size: tuple[int, int] = (SIZE, SIZE)) -> None:
    found = read_back(path)
    assert found["frames"].shape == (num_frames, *size, 3)
    assert float(found["fps"]) == pytest.approx(fps, rel=1e-9)
    assert found["codec"] == ("h264", "yuv420p", "aac")
    assert abs(found["video_seconds"] - num_frames / fps) < 1e-3
    assert abs(found["audio_seconds"] - found["video_seconds"]) < 1 / fps
    assert found["num_samples"] > 0


# ---- what works ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["fix_face", "no_retarget", "offset_retarget", "naive_retarget"])
def test_every_strategy_makes_a_video(files, strategy, capsys):
    assert run({**files, "--retarget_strategy": strategy}) == 0
    check_video(files["--output_path"], 10, 20)
    assert "10 frames" in capsys.readouterr().out


def test_fix_face_needs_no_keypoints_and_auto_crop_crops(files, tmp_path):
    image = np.full((700, 1200, 3), 255, dtype=np.uint8)
    draw_face(image, (900, 300), 60)
    Image.fromarray(image).save(tmp_path / "wide.png")
    flags = {**files, "--retarget_strategy": "fix_face", "--kps_path": None}
    assert run({**flags, "--reference_image_path": tmp_path / "wide.png"}, "--auto_crop") == 0
    check_video(files["--output_path"], 10, 20)
    request = Request(tmp_path / "wide.png", "x", motion=MotionOptions(auto_crop=True))
    analyzer = FaceAnalyzer(files["--model_dir"] / "insightface_models")
    portrait, kps, _ = prepare_portrait(request, SamplingOptions(), lambda: analyzer)
    assert portrait.size == (512, 512)
    assert 100 < kps[2, 0] < 412  # the nose, which stood far to the right, is near the middle
    assert tuple(np.asarray(portrait)[round(float(kps[0, 1])), round(float(kps[0, 0]))]) != (255, 255, 255)


@pytest.mark.parametrize("seconds", [0.04, 0.3])
def test_short_audio(files, tmp_path, seconds):
    assert run({**files, "--audio_path": write_wav(tmp_path / "short.wav", seconds)}) == 0
    check_video(files["--output_path"], max(1, round(seconds * 20)), 20)


@pytest.mark.parametrize("fps", [29.97, 25, 30])
def test_frame_rate_is_the_one_asked_for(files, fps):
    assert run({**files, "--fps": fps}) == 0
    check_video(files["--output_path"], round(0.5 * fps), 30000 / 1001 if fps == 29.97 else fps)


def test_sizes_need_not_be_square_or_multiples_of_64(files):
    assert run({**files, "--image_width": 72, "--image_height": 104}) == 0
    check_video(files["--output_path"], 10, 20, (104, 72))


@pytest.mark.parametrize("mode", ["RGBA", "L", "I;16", "P", "CMYK"])
def test_any_kind_of_image(files, tmp_path, mode):
    image = Image.open(files["--reference_image_path"]).resize((SIZE, SIZE))
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    else:
        image = image.convert(mode)
    path = tmp_path / ("image.jpg" if mode == "CMYK" else "image.png")
    image.save(path)
    assert run({**files, "--reference_image_path": path}) == 0


def test_odd_file_names(files, tmp_path):
    renamed = {}
    for flag in ("--reference_image_path", "--audio_path", "--kps_path"):
        renamed[flag] = tmp_path / f"{ODD_NAME}{files[flag].suffix}"
        files[flag].rename(renamed[flag])
    output_path = tmp_path / f"{ODD_NAME}.mp4"
    assert run({**files, **renamed, "--output_path": output_path}) == 0
    check_video(output_path, 10, 20)


def test_relative_names_with_a_leading_dash(files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files["--audio_path"].rename("-speech.wav")
    assert run({**files, "--audio_path": "-speech.wav", "--output_path": "-out.mp4"}) == 0
    check_video(tmp_path / "-out.mp4", 10, 20)


def test_smoothing_flags_reach_the_video(files):
    def flicker(*switches) -> float:
        assert run(files, *switches) == 0
        return np.abs(np.diff(read_back(files["--output_path"])["frames"].astype(float), axis=0)).mean()

    plain = flicker("--no_median_filter")
    assert flicker() < 0.8 * plain
    assert flicker("--no_median_filter", "--denoise_threshold", "255") < 0.8 * plain


def test_same_seed_same_file(files, tmp_path):
    videos = []
    for name, switches in (("a.mp4", ()), ("b.mp4", ("--save_gpu_memory",))):
        assert run({**files, "--output_path": tmp_path / name}, *switches) == 0
        videos.append((tmp_path / name).read_bytes())
    assert videos[0] == videos[1]


def subprocess_arguments(files: dict, **changes) -> list[str]:
    flags = {**files, **changes}
    return [str(part) for flag, value in flags.items() if value is not None for part in (flag, value)]


@pytest.mark.parametrize("seconds", [0.5, 0.2])  # two windows, and fewer windows than processes
def test_two_processes_make_the_same_video(files, tmp_path, seconds):
    files["--audio_path"] = write_wav(tmp_path / "part.wav", seconds)
    assert run(files) == 0
    arguments = subprocess_arguments(files, **{"--output_path": tmp_path / "two.mp4"})
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [str(ROOT / "inference.py"), "--do_multi_devices_inference", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr
    one, two = (read_back(path)["frames"] for path in (files["--output_path"], tmp_path / "two.mp4"))
    assert np.array_equal(one, two)


def test_interrupting_leaves_nothing(files, tmp_path, tmp_path_factory):
    """While the video is being written."""
    log_path = tmp_path_factory.mktemp("log") / "stderr"
    changes = {"--audio_path": write_wav(tmp_path / "long.wav", 30), "--guidance_scale": 1}
    command = [sys.executable, str(ROOT / "inference.py"), *subprocess_arguments(files, **changes)]
    before = set(tmp_path.iterdir())
    with open(log_path, "w") as log:
        # A background job of a shell ignores Ctrl-C, and what it starts would, too.
        restore = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731
        process = subprocess.Popen(command, stderr=log, cwd=tmp_path, preexec_fn=restore)
    deadline = time.time() + 120
    while set(tmp_path.iterdir()) == before and time.time() < deadline and process.poll() is None:
        time.sleep(0.05)
    assert set(tmp_path.iterdir()) > before, log_path.read_text()  # there is a file in the making
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130, log_path.read_text()
    assert set(tmp_path.iterdir()) == before


# ---- what does not ---------------------------------------------------------------------------------------------------


def error(flags: dict, capsys, *switches: str) -> str:
    """Runs, and gives the one line of the error; nothing is written."""
    folder = Path(flags["--output_path"]).parent
    before = set(folder.iterdir()) if folder.is_dir() else set()
    capsys.readouterr()
    assert run(flags, *switches) == 2
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert "Traceback" not in captured.err
    assert captured.out == ""
    assert (set(folder.iterdir()) if folder.is_dir() else set()) == before
    return lines[0]


@pytest.mark.parametrize("flag", ["--reference_image_path", "--audio_path", "--kps_path"])
def test_missing_files_and_folders(files, tmp_path, flag, capsys):
    for path in (tmp_path / "no such [file] 'ü'.xyz", tmp_path):
        message = error({**files, flag: path}, capsys)
        assert str(path) in message
        assert flag in message


def test_a_student_with_other_steps_than_it_learned_is_told(files, tmp_path, capsys):
    folder = shutil.copytree(files["--model_dir"], tmp_path / "student")
    (folder / "inference_defaults.json").write_text(
        '{"sampling": "rolling", "num_inference_steps": 1, "context_frames": 4, "context_overlap": 1}'
    )
    told = "--num_inference_steps 2: this student learned 1"
    for steps in (None, 1, 2):
        assert run({**files, "--model_dir": folder, "--num_inference_steps": steps}) == 0
        assert (told in capsys.readouterr().err) == (steps == 2)


def test_missing_model_folder(files, tmp_path, capsys):
    message = error({**files, "--model_dir": tmp_path / "nothing"}, capsys)
    assert "nothing/" in message
    assert "`vexpress download`" in message


def test_missing_face_models_are_said_at_once(files, tmp_path, capsys):
    flags = {**files, "--insightface_model_path": tmp_path, "--retarget_strategy": "naive_retarget"}
    message = error(flags, capsys)
    assert str(tmp_path) in message
    assert "--insightface_model_path" in message


def test_not_an_image(files, tmp_path, capsys):
    (tmp_path / "text.png").write_text("hello")
    assert "text.png" in error({**files, "--reference_image_path": tmp_path / "text.png"}, capsys)


def test_portrait_without_a_face(files, tmp_path, capsys):
    Image.new("RGB", (256, 256), "white").save(tmp_path / "blank.png")
    flags = {**files, "--reference_image_path": tmp_path / "blank.png", "--retarget_strategy": "naive_retarget"}
    assert "blank.png" in error(flags, capsys)


def test_unusable_audio(files, tmp_path, capsys):
    (tmp_path / "empty.mp3").touch()
    (tmp_path / "text.mp3").write_text("no sound " * 100)
    write_wav(tmp_path / "no samples.wav", 0)
    with av.open(str(tmp_path / "mute.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width = stream.height = 64
        for _ in range(5):
            frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), dtype=np.uint8))
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    for name in ("empty.mp3", "text.mp3", "no samples.wav", "mute.mp4"):
        message = error({**files, "--audio_path": tmp_path / name}, capsys)
        assert name in message
        assert "--audio_path" in message


class Attack:
    """Makes a folder when unpickled without care."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def test_unusable_keypoints(files, tmp_path, capsys):
    kps = [np.zeros((3, 2), dtype=np.float32)] * 4
    contents = {
        "shape.pth": [np.zeros((5, 3), dtype=np.float32)],
        "nan.pth": [*kps, np.full((3, 2), np.nan, dtype=np.float32)],
        "empty.pth": [],
        "text.pth": "keypoints",
    }
    for name, content in contents.items():
        torch.save(content, tmp_path / name)
    (tmp_path / "attack.pth").write_bytes(pickle.dumps(Attack(tmp_path / "executed")))
    (tmp_path / "kps.csv").write_text("1,2,3")
    for name in (*contents, "attack.pth", "kps.csv"):
        assert name in error({**files, "--kps_path": tmp_path / name}, capsys)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--fps", 0),
        ("--fps", "nan"),
        ("--image_width", 100),
        ("--image_height", 0),
        ("--image_width", 200000),
        ("--num_inference_steps", 0),
        ("--context_frames", 0),
        ("--context_overlap", 6),
        ("--guidance_scale", -1),
        ("--denoise_threshold", 256),
        ("--seed", -1),
        ("--seed", "one"),
        ("--retarget_strategy", "best"),
        ("--dtype", "int8"),
        ("--gpu_id", "x"),
        ("--scheduler", "ddpm"),
        ("--standard_audio_sampling_rate", 44100),
        ("--no_such_flag", 1),
    ],
)
def test_bad_values_name_the_flag(files, flag, value, capsys):
    message = error({**files, flag: value}, capsys)
    assert flag in message
    assert str(value) in message


@pytest.mark.parametrize(
    ("changes", "flag", "why"),
    [
        ({"--kps_path": None, "--retarget_strategy": None, "--kps_fps": 25}, "--kps_fps 25.0", "without --kps_path"),
        ({"--kps_path": None, "--retarget_strategy": None, "--kps_extend": "loop"}, "--kps_extend", "without"),
        ({"--retarget_strategy": "fix_face", "--kps_extend": "hold"}, "--kps_extend hold", "with --retarget_strategy"),
        ({"--kps_smoothing": 2}, "--kps_smoothing 2.0", "with --retarget_strategy no_retarget"),
        ({"--motion_strength": 1}, "--motion_strength 1.0", "with --kps_path"),
        (
            {"--kps_path": None, "--retarget_strategy": None, "--motion": "still", "--motion_strength": 2},
            "--motion_strength 2.0",
            "with --motion still",
        ),
        (
            {"--kps_path": None, "--retarget_strategy": None, "--motion_strength": 2},
            "--motion_strength 2.0",
            "without v-express/head_motion in the model folder",
        ),
        ({"--crop_scale": 2.2}, "--crop_scale 2.2", "without --auto_crop or --paste_back"),
        ({"--guidance_scale": 1, "--guidance_interval": 2}, "--guidance_interval 2", "with --guidance_scale 1"),
        (
            {"--face_models": "mtcnn", "--insightface_model_path": "."},
            "--insightface_model_path .",
            "with --face_models mtcnn",
        ),
    ],
)
def test_options_without_effect_are_refused(files, changes, flag, why, capsys):
    line = error({**files, **changes}, capsys)
    assert line.startswith(f"error: {flag}") and f": has no effect {why}" in line
    assert not Path(files["--output_path"]).exists()
    assert "has no effect without --lora" in error(files, capsys, "--lora_any_base")


def test_keypoints_are_needed_unless_the_face_is_fixed(files, capsys):
    assert "needs --kps_path" in error({**files, "--kps_path": None}, capsys)


def test_keypoints_that_are_not_used_are_said(files, capsys):
    assert run({**files, "--retarget_strategy": "fix_face"}) == 0
    assert "--kps_path is not used" in capsys.readouterr().err


def test_strategy_follows_from_the_keypoints(files):
    for kps_path, strategy in ((files["--kps_path"], "auto"), (None, "fix_face")):
        assert Request("a", "b", kps_path).strategy == strategy


def test_keypoints_without_a_frame_rate_are_said(files, capsys):
    assert run(files) == 0
    assert "holds no frame rate" in capsys.readouterr().err


def test_an_input_is_never_overwritten(files, capsys):
    assert "one of the inputs" in error({**files, "--output_path": files["--audio_path"]}, capsys)


@pytest.mark.parametrize(
    ("flag", "name", "suffix"),
    [
        ("--output_path", "a.gif", ".mp4"),
        ("--output_path", "a.mkv", ".mp4"),
        ("--output_path", "a", ".mp4"),
        ("--contact_sheet_path", "a.jpg", ".png"),
    ],
)
def test_a_file_is_named_as_what_it_holds(files, tmp_path, capsys, flag, name, suffix):
    path = tmp_path / name
    assert error({**files, flag: path}, capsys) == f"error: {flag} {path}: must end in {suffix}"


@pytest.mark.parametrize(("flag", "name"), [("--smile", "curve.csv"), ("--lora", "mine.safetensors:0.5")])
@pytest.mark.parametrize("output", ["--output_path", "--contact_sheet_path"])
def test_a_curve_or_an_adapter_is_never_overwritten(files, tmp_path, capsys, flag, name, output):
    path = tmp_path / name.split(":")[0]
    path.write_text("value\n0\n")
    assert "one of the inputs" in error({**files, flag: tmp_path / name, output: path}, capsys)
    assert path.read_text() == "value\n0\n"


def test_weights_missing_in_a_library_model_are_an_error(files, tmp_path, model_dir, capsys):
    import safetensors.torch

    for flag, name, file_name in (
        ("--audio_encoder_path", "wav2vec2-base-960h", "model.safetensors"),
        ("--vae_path", "sd-vae-ft-mse", "diffusion_pytorch_model.safetensors"),
    ):
        shutil.copytree(model_dir / name, tmp_path / name)
        weights = safetensors.torch.load_file(model_dir / name / file_name)
        kept = dict(list(weights.items())[:10])
        safetensors.torch.save_file(kept, tmp_path / name / file_name, metadata={"format": "pt"})
        message = error({**files, flag: tmp_path / name}, capsys)
        assert flag in message
        assert "missing" in message


def test_missing_flags(files, capsys):
    assert "--audio_path" in error({**files, "--audio_path": None}, capsys)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_missing_device(files, capsys):
    assert "no CUDA device" in error({**files, "--device": "cuda"}, capsys)


def test_several_processes_must_be_asked_for(files, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "--do_multi_devices_inference" in error(files, capsys)


def test_output_that_cannot_be_written(files, tmp_path, capsys):
    for path in (tmp_path, tmp_path / "no folder" / "out.mp4", Path("/proc/out.mp4"), tmp_path / ("x" * 300)):
        flags = {**files, "--output_path": path}
        capsys.readouterr()
        assert run(flags) == 2
        assert "--output_path" in capsys.readouterr().err


def test_an_existing_output_survives_a_failure(files, tmp_path, capsys):
    files["--output_path"].write_text("earlier")
    (tmp_path / "bad.wav").write_text("bad")
    error({**files, "--audio_path": tmp_path / "bad.wav"}, capsys)
    assert files["--output_path"].read_text() == "earlier"


def test_full_disk(files, tmp_path, capsys):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small tmpfs is not allowed here")
    try:
        message = error({**files, "--output_path": disk / "out.mp4"}, capsys)
        assert "space" in message
    finally:
        subprocess.run(["umount", str(disk)], check=True)


# ---- real clips ------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not SAMPLES_DIR.is_dir(), reason="real clips lie in ../shared/samples, which is not here")
@pytest.mark.parametrize(
    ("clip", "audio", "kps", "num_frames"),
    [("clip_a", "aud.mp3", "kps.pth", 132), ("clip_c", "long_31s.mp3", "long_kps.pth", 933)],
)
def test_real_clips(files, clip, audio, kps, num_frames):
    flags = {
        **files,
        "--reference_image_path": SAMPLES_DIR / clip / "ref.jpg",
        "--audio_path": SAMPLES_DIR / clip / audio,
        "--kps_path": SAMPLES_DIR / clip / kps,
        "--fps": 30,
        "--context_frames": 24,
        "--context_overlap": 4,
        "--guidance_scale": 1,
    }
    assert run(flags) == 0
    check_video(files["--output_path"], num_frames, 30)


# ---- what a model suggests -----------------------------------------------------------------------------------------


def parsed(model_dir: Path, *flags: str):
    inputs = ["--reference_image_path", "a.png", "--audio_path", "b.wav"]
    return inference.parse_arguments(["--model_dir", str(model_dir), *inputs, *flags])


def test_a_model_folder_may_bring_defaults(tmp_path):
    (tmp_path / INFERENCE_DEFAULTS).write_text('{"image_width": 128, "fps": 25, "guidance": "audio"}')
    args = parsed(tmp_path, "--fps", "12.5")
    assert (args.image_width, args.fps, args.guidance, args.image_height) == (128, 12.5, "audio", 512)
    assert args.model_dir == str(tmp_path)


@pytest.mark.parametrize("text", ['{"image_width": "128"}', '{"output_path": "x"}', '{"fps": true}', "[1]", "{"])
def test_defaults_that_are_none(tmp_path, text):
    (tmp_path / INFERENCE_DEFAULTS).write_text(text)
    with pytest.raises(InputError, match=INFERENCE_DEFAULTS):
        parsed(tmp_path)


def test_defaults_of_a_file_are_checked_like_flags(tmp_path):
    (tmp_path / INFERENCE_DEFAULTS).write_text('{"guidance": "some"}')
    with pytest.raises(InputError, match='guidance="some"; must be one of all, audio'):
        parsed(tmp_path)
