"""scripts/extract_kps_sequence_and_audio.py on small generated videos, with the test face models."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from tests.face_models import build_face_models, draw_face
from vexpress.cli.program import run_program
from vexpress.media.keypoints import load_kps

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "extract_kps_sequence_and_audio.py"
FPS, RATE_HZ, NUM_FRAMES = 25, 22050, 8
HEIGHT, WIDTH = 240, 320


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    return build_face_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("extract_kps", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def extract(script, tmp_path, model_dir, monkeypatch):
    """Runs the script's program in this process and in an empty folder; gives its exit status."""
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")

    def run(video, **flags) -> int:
        flags = {"video_path": video, "insightface_model_path": model_dir, "device": "cpu", **flags}
        arguments = [text for name, value in flags.items() for text in (f"--{name}", str(value))]
        monkeypatch.setattr(sys, "argv", ["extract", *arguments])
        return run_program(script.main)

    return run


def write_video(path, missing=(), with_audio=True):
    """A face that moves right by 4 px per frame, and a tone; returns the nose's x in px."""
    nose_x = 100 + 4 * np.arange(NUM_FRAMES)
    with av.open(path, "w") as container:
        video = container.add_stream("libx264", rate=FPS, width=WIDTH, height=HEIGHT, pix_fmt="yuv444p")
        audio = container.add_stream("aac", rate=RATE_HZ, layout="mono") if with_audio else None
        for i, x in enumerate(nose_x):
            image = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
            if i not in missing:
                draw_face(image, (x, 120), 60)
            container.mux(video.encode(av.VideoFrame.from_ndarray(image)))
        container.mux(video.encode(None))
        if audio:
            tone = np.sin(2 * np.pi * 440 * np.arange(RATE_HZ * NUM_FRAMES // FPS) / RATE_HZ).astype(np.float32) / 2
            frame = av.AudioFrame.from_ndarray(tone[None], format="fltp", layout="mono")
            frame.sample_rate = RATE_HZ
            container.mux(audio.encode(frame))
            container.mux(audio.encode(None))
    return nose_x


def read_audio(path):
    with av.open(path) as container:
        chunks = [frame.to_ndarray() for frame in container.decode(audio=0)]
        return np.concatenate(chunks, 1), container.streams.audio[0].codec_context.sample_rate


def test_keypoints_and_audio_are_written(extract, tmp_path, capsys):
    nose_x = write_video(tmp_path / "in.mp4", missing=(0, 5))
    flags = {"kps_sequence_save_path": "kps.npz", "audio_save_path": "aud.wav", "height": 480, "width": 640}
    assert extract(tmp_path / "in.mp4", **flags) == 0
    assert "8 frames at 25 fps" in capsys.readouterr().out
    sequence = load_kps("kps.npz")
    assert (sequence.fps, sequence.height, sequence.width) == (25.0, 480, 640)
    assert sequence.kps.shape == (NUM_FRAMES, 3, 2)
    nose_x[0] = nose_x[1]  # held
    # Resizing maps the middles of pixels: x of the small picture is at 2x + 0.5.
    np.testing.assert_allclose(sequence.kps[:, 2, 0], 2 * nose_x + 0.5, atol=2)
    np.testing.assert_allclose(sequence.kps[:, 2, 1], 240.5, atol=2)
    samples, rate_hz = read_audio("aud.wav")
    assert rate_hz == RATE_HZ and samples.dtype == np.int16
    assert samples.shape[1] / rate_hz == pytest.approx(NUM_FRAMES / FPS, abs=0.1)
    spectrum = np.abs(np.fft.rfft(samples[0]))
    assert spectrum.argmax() * rate_hz / samples.shape[1] == pytest.approx(440, abs=5)
    assert sorted(os.listdir()) == ["aud.wav", "kps.npz"]


def test_the_released_formats_are_written(extract, tmp_path):
    write_video(tmp_path / "in.mp4")
    assert extract(tmp_path / "in.mp4", kps_sequence_save_path="kps.pth", audio_save_path="aud.mp3") == 0
    assert [frame.shape for frame in torch.load("kps.pth", weights_only=False)] == [(3, 2)] * NUM_FRAMES
    assert read_audio("aud.mp3")[1] == RATE_HZ


def test_video_without_audio(extract, tmp_path, capsys):
    write_video(tmp_path / "in.mp4", with_audio=False)
    assert extract(tmp_path / "in.mp4", kps_sequence_save_path="kps.safetensors", audio_save_path="aud.wav") == 2
    assert "has no audio; leave out --audio_save_path" in capsys.readouterr().err
    assert os.listdir() == []
    assert extract(tmp_path / "in.mp4", kps_sequence_save_path="kps.safetensors") == 0
    assert os.listdir() == ["kps.safetensors"]


def test_a_lost_face_writes_nothing_and_lists_the_frames(extract, tmp_path, capsys):
    write_video(tmp_path / "in.mp4", missing=range(3, 6))
    flags = {"kps_sequence_save_path": "kps.pth", "audio_save_path": "aud.mp3"}
    assert extract(tmp_path / "in.mp4", **flags, max_gap=2) == 2
    assert "frames 3-5 of 8" in capsys.readouterr().err
    assert os.listdir() == []
    assert extract(tmp_path / "in.mp4", **flags) == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"kps_sequence_save_path": "kps.txt"}, "--kps_sequence_save_path kps.txt: keypoint files end in"),
        ({"kps_sequence_save_path": "no/kps.pth"}, "--kps_sequence_save_path no/kps.pth: the folder no does not exist"),
        ({"audio_save_path": "aud.ogg"}, "--audio_save_path aud.ogg: allowed are .wav"),
        ({"audio_save_path": "no/aud.wav"}, "--audio_save_path no/aud.wav: the folder no does not exist"),
        ({"height": 0}, "--height 0: must be 1 to 8192"),
        ({"max_gap": -1}, "--max_gap -1: must be 0 or more"),
        ({"width": 200000}, "--width 200000: must be 1 to 8192"),
        ({"audio_track": -1}, "--audio_track -1: must be 0 to 999"),
        ({"audio_track": 0}, "--audio_track 0: has no effect without --audio_save_path; leave it out"),
        ({"face_models": "mtcnn"}, "has no effect with --face_models mtcnn; leave it out"),
        ({"face": "rightmost"}, "--face rightmost: must be largest, leftmost or a number"),
        (
            {"audio_save_path": "aud.aac"},
            "--audio_save_path aud.aac: a raw AAC stream cannot say where its sound starts",
        ),
        ({"video_path": "kps.pth"}, "--kps_sequence_save_path kps.pth: is also one of the inputs"),
        ({"video_path": "../out/./kps.pth"}, "--kps_sequence_save_path kps.pth: is also one of the inputs"),
        (
            {"video_path": "aud.wav", "audio_save_path": "aud.wav"},
            "--audio_save_path aud.wav: is also one of the inputs",
        ),
        ({"insightface_model_path": ".", "kps_sequence_save_path": "kps.safetensors"}, "would be a file of the model"),
        ({"insightface_model_path": "nowhere"}, "--insightface_model_path nowhere: is not a folder"),
    ],
)
def test_bad_flags_are_named_at_once(extract, flags, message, capsys):
    flags = {"kps_sequence_save_path": "kps.pth", **flags}
    assert extract(flags.pop("video_path", "absent.mp4"), **flags) == 2
    assert message in capsys.readouterr().err


def test_unreadable_video_is_named(extract, tmp_path, capsys):
    (tmp_path / "text.mp4").write_text("not a video")
    for name in ("absent.mp4", "text.mp4"):
        assert extract(tmp_path / name, kps_sequence_save_path="kps.pth") == 2
        error = capsys.readouterr().err
        assert "--video_path" in error and name in error
    assert os.listdir() == []


def test_the_script_starts_from_any_folder(tmp_path):
    done = subprocess.run([sys.executable, SCRIPT, "--help"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "--kps_sequence_save_path" in done.stdout


def test_the_parser_is_that_of_all_programs(tmp_path):
    """Without torch until the flags are right; no usage on a mistake; values may start with a dash."""
    program = """
import sys
from vexpress.cli.extract_kps import main
from vexpress.cli.program import run_program
status = run_program(lambda: main(sys.argv[1:]))
print("torch" in sys.modules, "cv2" in sys.modules, "av" in sys.modules)
sys.exit(status)
"""

    def run(*arguments):
        command = [sys.executable, "-c", program, *arguments]
        return subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
        )

    done = run("--video_path", "in.mp4", "--kps_sequence_save_path", "kps.npz", "--height", "0")
    assert (done.returncode, done.stdout) == (2, "False False False\n")
    assert done.stderr == "error: --height 0: must be 1 to 8192\n"
    done = run("--vidio_path", "in.mp4")
    assert done.returncode == 2 and done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1
    done = run("--video_path", "-v.mp4", "--kps_sequence_save_path", "-k.npz", "--insightface_model_path", "-m")
    assert "--insightface_model_path -m: is not a folder" in done.stderr


def test_the_person_and_the_sound_track_can_be_chosen(extract, tmp_path, capsys):
    """Two people, and two sound tracks, of which the second is the default."""
    with av.open(tmp_path / "in.mkv", "w") as container:
        video = container.add_stream("libx264", rate=FPS, width=WIDTH, height=HEIGHT, pix_fmt="yuv444p")
        tracks = [container.add_stream("pcm_s16le", rate=RATE_HZ, layout="mono") for _ in range(2)]
        tracks[0].disposition, tracks[1].disposition = 0, av.stream.Disposition.default
        for _ in range(NUM_FRAMES):
            image = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
            draw_face(image, (70, 120), 30)
            draw_face(image, (220, 120), 45)
            container.mux(video.encode(av.VideoFrame.from_ndarray(image)))
        container.mux(video.encode(None))
        for track, hz in zip(tracks, (440, 880)):
            tone = np.sin(2 * np.pi * hz * np.arange(RATE_HZ * NUM_FRAMES // FPS) / RATE_HZ).astype(np.float32) / 2
            frame = av.AudioFrame.from_ndarray(tone[None], format="fltp", layout="mono")
            frame.sample_rate, frame.pts = RATE_HZ, 0
            container.mux(track.encode(frame) + track.encode(None))
    for flags, nose_x, hz in (
        ({}, 220, 880),
        ({"face": "leftmost", "audio_track": 0}, 70, 440),
        ({"face": 1}, 220, 880),
    ):
        size = {"width": WIDTH, "height": HEIGHT}
        outputs = {"kps_sequence_save_path": "kps.npz", "audio_save_path": "aud.wav"}
        assert extract(tmp_path / "in.mkv", **outputs, **size, **flags) == 0
        np.testing.assert_allclose(load_kps("kps.npz").kps[:, 2, 0], nose_x, atol=2)
        samples, rate_hz = read_audio("aud.wav")
        assert np.abs(np.fft.rfft(samples[0])).argmax() * rate_hz / samples.shape[1] == pytest.approx(hz, abs=5)
        told = capsys.readouterr().err
        assert "shows 2 faces" in told and f"audio track {int(hz == 880)} of 0 to 1 is used" in told
    assert extract(tmp_path / "in.mkv", **outputs, audio_track=2) == 2
    assert "--audio_track 2: " in capsys.readouterr().err
    assert extract(tmp_path / "in.mkv", **outputs, face=2) == 2
    assert "--face 2: " in capsys.readouterr().err
