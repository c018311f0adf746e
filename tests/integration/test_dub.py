"""The program that dubs, and portraits set back into their pictures, from files to files, with tiny networks."""

import av
import numpy as np
import pytest
from PIL import Image

from tests import tiny
from tests.face_models import build_face_models, draw_face
from tests.integration.test_inference import run as run_inference
from tests.integration.test_inference import write_wav
from vexpress.cli import dub
from vexpress.cli.program import run_program
from vexpress.media.video import read_frames, write_video
from vexpress.provenance import COMPOSITE_TYPE, read_mark

WIDTH, HEIGHT, SIZE, NUM_FACE, NUM_EMPTY, FPS = 160, 120, 64, 12, 4, 20


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    folder = tiny.write_model_dir(tmp_path_factory.mktemp("model"))
    build_face_models(folder / "insightface_models")
    return folder


def wall(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(60, 120, (HEIGHT, WIDTH, 1), np.uint8).repeat(3, 2)


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """A cartoon face that moves, then an empty room: its path and its frames."""
    frames = []
    for number in range(NUM_FACE):
        frames.append(wall(1))
        draw_face(frames[-1], (70 + 0.5 * number, 60), 14)
    frames += [255 - wall(2)] * NUM_EMPTY
    path = tmp_path_factory.mktemp("film") / "film.mkv"
    write_video(path, frames, FPS, is_lossless=True)
    return path, np.stack(frames)


@pytest.fixture
def flags(tmp_path, model_dir):
    return {
        "--model_dir": model_dir,
        "--audio_path": write_wav(tmp_path / "speech.wav", 2.0),
        "--output_path": tmp_path / "out.mkv",
        "--image_width": SIZE,
        "--image_height": SIZE,
        "--num_inference_steps": 1,
        "--context_frames": 6,
        "--context_overlap": 2,
        "--device": "cpu",
    }


def run(video, flags: dict, *switches: str) -> int:
    arguments = [str(part) for flag, value in flags.items() if value is not None for part in (flag, value)]
    return run_program(lambda: dub.main([str(video), *arguments, *switches]))


def frames_of(path) -> np.ndarray:
    return np.stack([frame for _, frame in read_frames(path)])


def test_a_film_keeps_all_but_the_face(flags, film, tmp_path, capsys):
    path, before = film
    assert run(path, {**flags, "--contact_sheet_path": tmp_path / "sheet.png"}) == 0
    assert f"{NUM_FACE} frames dubbed" in capsys.readouterr().out
    after = frames_of(flags["--output_path"])
    assert after.shape == before.shape
    assert np.array_equal(after[NUM_FACE:], before[NUM_FACE:])
    changed = (after != before).any(3)
    assert changed[:NUM_FACE, 57:70, 62:83].mean() > 0.5  # the lower face; the eyes stay
    assert not changed[:, :20].any() and not changed[:, :, :25].any() and not changed[:, :, -30:].any()
    with av.open(str(flags["--output_path"])) as container:
        assert container.streams.video[0].average_rate == FPS
        assert container.streams.audio[0].codec_context.name == "flac"
        tags = {key.lower(): value for key, value in container.metadata.items()}
        assert read_mark(tags)["digital_source_type"] == COMPOSITE_TYPE
    assert Image.open(tmp_path / "sheet.png").width > 400


def test_mp4_and_the_speech_decides_where_it_ends(flags, film, tmp_path):
    changed = {"--output_path": tmp_path / "out.mp4", "--audio_path": write_wav(tmp_path / "short.wav", 0.3)}
    assert run(film[0], {**flags, **changed}) == 0
    with av.open(str(tmp_path / "out.mp4")) as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        assert (video.codec_context.name, audio.codec_context.name) == ("h264", "aac")
        assert (video.width, video.height, video.frames) == (WIDTH, HEIGHT, 6)


def test_the_same_run_makes_the_same_file_and_rolling_works(flags, film):
    assert run(film[0], flags) == 0
    first = frames_of(flags["--output_path"])
    assert run(film[0], flags) == 0
    assert np.array_equal(frames_of(flags["--output_path"]), first)
    assert run(film[0], {**flags, "--sampling": "rolling"}) == 0
    assert np.array_equal(frames_of(flags["--output_path"])[NUM_FACE:], first[NUM_FACE:])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--output_path": "out.avi"}, "--output_path out.avi: must end in .mp4 or .mkv"),
        ({"--contact_sheet_path": "sheet.jpg"}, "--contact_sheet_path sheet.jpg: must end in .png"),
        ({"--audio_path": "nothing.wav"}, "--audio_path nothing.wav: cannot be read"),
        ({"--output_path": "none/out.mp4"}, "the folder none does not exist"),
        ({"--length": "longest"}, "invalid choice"),
        ({"--crf": 99}, "--crf 99: must be 0 to 51"),
        ({"--crf": 18}, "--crf 18: has no effect with a lossless .mkv; leave it out"),
        ({"--guidance_scale": 1, "--guidance": "audio"}, "--guidance audio: has no effect with --guidance_scale 1"),
        ({"--audio_path": None}, "--audio_path"),
    ],
)
def test_mistakes_are_one_line(flags, film, changes, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.iterdir())
    assert run(film[0], {**flags, **changes}) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and message in error and "Traceback" not in error
    assert set(tmp_path.iterdir()) == before


def test_a_film_without_a_face_an_odd_one_and_one_that_would_be_overwritten(flags, film, tmp_path, capsys):
    write_video(tmp_path / "empty.mkv", [wall(3)] * 8, FPS, is_lossless=True)
    assert run(tmp_path / "empty.mkv", flags) == 2
    assert "no face was found" in capsys.readouterr().err
    odd = film[1][:NUM_FACE, :119, :159]
    write_video(tmp_path / "odd.mkv", odd, FPS, is_lossless=True)
    assert run(tmp_path / "odd.mkv", {**flags, "--output_path": tmp_path / "odd.mp4"}) == 2
    assert "159x119 cannot be H.264" in capsys.readouterr().err
    assert run(tmp_path / "odd.mkv", flags) == 0
    assert frames_of(flags["--output_path"]).shape == odd.shape
    assert run(tmp_path / "odd.mkv", {**flags, "--output_path": tmp_path / "odd.mkv"}) == 2
    assert not (tmp_path / "odd.mp4").exists()


def test_a_portrait_comes_back_into_its_picture(model_dir, tmp_path, capsys):
    picture = np.random.default_rng(0).integers(60, 120, (301, 421, 1), np.uint8).repeat(3, 2)
    draw_face(picture, (280, 160), 30)
    Image.fromarray(picture).save(tmp_path / "wide.png")
    flags = {
        "--model_dir": model_dir,
        "--reference_image_path": tmp_path / "wide.png",
        "--audio_path": write_wav(tmp_path / "speech.wav", 0.3),
        "--output_path": tmp_path / "out.mp4",
        "--contact_sheet_path": tmp_path / "sheet.png",
        "--image_width": SIZE,
        "--image_height": SIZE,
        "--fps": 20,
        "--num_inference_steps": 1,
        "--context_frames": 6,
        "--context_overlap": 2,
        "--device": "cpu",
    }
    assert run_inference(flags, "--paste_back") == 0
    frames = frames_of(tmp_path / "out.mp4").astype(int)
    assert frames.shape == (6, 300, 420, 3)
    outside = np.abs(frames - picture[:300, :420])
    assert outside[:, :, :150].mean() < 8 and outside[:, 150:200, 260:300].mean() > 10
    Image.fromarray(np.full((300, 400, 3), 90, np.uint8)).save(tmp_path / "wide.png")
    assert run_inference(flags, "--paste_back") == 2
    assert "no face was found" in capsys.readouterr().err
