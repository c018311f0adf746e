import errno
import logging
import os
import shutil
import struct
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from vexpress.errors import InputError
from vexpress.media.audio import Audio, load_audio
from vexpress.media.video import constant_rate, frame_rate, probe_video, read_frames, replace_sound, write_video

ROOT = Path(__file__).parents[3]
SAMPLES = ROOT.parent / "shared" / "samples"
ODD_NAMES = ("-weird 'na\"me [1] %d ünï.mp4", "a:b.mp4", "%03d.mp4", "no_suffix", "other.avi")
# Matrices of the track header for pictures that are to be turned clockwise by so many degrees.
MATRICES = {0: (1, 0, 0, 1), 90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}


def grey_frames(num_frames: int, height: int = 32, width: int = 48) -> list[np.ndarray]:
    """Flat frames whose level is 5 times their index."""
    return [np.full((height, width, 3), 5 * index, np.uint8) for index in range(num_frames)]


def indices(frames) -> list[int]:
    return [round(frame.mean() / 5) for frame in frames]


def noise_frames(num_frames: int, size: int = 64) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (num_frames, size, size, 3), dtype=np.uint8))


def tone(rate: int, num_channels: int = 1, seconds: float = 1.0) -> Audio:
    wave = 0.5 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate)) / rate)
    return Audio(np.tile(wave.astype(np.float32), (num_channels, 1)), rate)


# Reading --------------------------------------------------------------------------------------------------------------
def test_frames_come_in_order_with_their_times(tmp_path):
    path = tmp_path / "a.mp4"
    write_video(path, grey_frames(20), 25)
    times, frames = zip(*read_frames(path))
    assert indices(frames) == list(range(20))
    np.testing.assert_allclose(times, np.arange(20) / 25, atol=1e-6)
    assert {(frame.shape, frame.dtype.name) for frame in frames} == {((32, 48, 3), "uint8")}


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_the_rotation_of_phones_is_applied(tmp_path, degrees):
    path = tmp_path / "a.mp4"
    picture = np.zeros((32, 64, 3), np.uint8)
    picture[:8, :16] = 255
    write_video(path, [picture] * 3, 25)
    data = bytearray(path.read_bytes())
    a, b, c, d = (value << 16 for value in MATRICES[degrees])
    header = data.find(b"tkhd") + 44
    data[header : header + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    upright = np.rot90(picture, -degrees // 90)
    frames = [frame for _, frame in read_frames(path)]
    assert len(frames) == 3
    for frame in frames:
        assert frame.shape == upright.shape
        assert frame.flags.c_contiguous
        assert np.abs(frame.astype(int) - upright).mean() < 5
    info = probe_video(path)
    assert (info.height, info.width) == upright.shape[:2]


@pytest.mark.parametrize("size", [64, 96, 160])
def test_the_same_frames_make_the_same_file_whatever_memory_held_before(tmp_path, size):
    program = """
import sys
from tests.clips import make_frame
from vexpress.media.video import write_video
write_video(sys.argv[1], [make_frame(index, int(sys.argv[2])) for index in range(12)], 25)
"""
    for name, byte in (("a.mp4", "17"), ("b.mp4", "200")):  # what malloc fills memory with
        command = [sys.executable, "-c", program, str(tmp_path / name), str(size)]
        subprocess.run(command, env={**os.environ, "MALLOC_PERTURB_": byte}, check=True, cwd=ROOT)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


def test_times_count_from_the_start_of_the_file(tmp_path):
    path = tmp_path / "a.ts"  # MPEG-TS does not start at 0
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for index, pixels in enumerate(grey_frames(5)):
            frame = av.VideoFrame.from_ndarray(pixels)
            frame.pts, frame.time_base = 1000 + index, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert [seconds for seconds, _ in read_frames(path)] == pytest.approx([0, 0.04, 0.08, 0.12, 0.16])


def test_probe_tells_what_is_in_the_file(tmp_path):
    path = tmp_path / "a.mp4"
    write_video(path, grey_frames(30), Fraction(30000, 1001), tone(16000))
    info = probe_video(path)
    assert (info.width, info.height, info.fps, info.has_audio) == (48, 32, Fraction(30000, 1001), True)
    assert info.duration_seconds == pytest.approx(1.001, abs=1e-4)
    write_video(path, grey_frames(3), 12.5)
    assert (probe_video(path).fps, probe_video(path).has_audio) == (Fraction(25, 2), False)


def test_a_recording_without_a_duration_is_measured(tmp_path):
    path = tmp_path / "live.webm"
    with path.open("wb") as file, av.open(file, "w", format="webm", container_options={"live": "1"}) as container:
        stream = container.add_stream("libvpx", rate=30)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for index, pixels in enumerate(grey_frames(45)):
            frame = av.VideoFrame.from_ndarray(pixels)
            frame.pts, frame.time_base = index, Fraction(1, 30)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert probe_video(path).duration_seconds == pytest.approx(1.5, abs=0.04)


def test_each_unusable_file_is_one_clear_line(tmp_path):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.txt").write_text("hello world\n" * 200)
    with av.open(str(tmp_path / "sound.mp3"), "w") as container:
        stream = container.add_stream("libmp3lame", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(tone(16000).samples, format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 16000, 0
        container.mux(stream.encode(frame) + stream.encode(None))
    write_video(tmp_path / "hollow.mp4", noise_frames(5), 25)
    data = bytearray((tmp_path / "hollow.mp4").read_bytes())
    start = data.find(b"mdat") + 4
    data[start:] = bytes(len(data) - start)
    (tmp_path / "hollow.mp4").write_bytes(data)
    cases = {
        "No such file": tmp_path / "missing.mp4",
        "is a folder": tmp_path,
        "empty": tmp_path / "empty.mp4",
        "has no video": tmp_path / "text.txt",
        "has no video that": tmp_path / "sound.mp3",
        "no frame of the video": tmp_path / "hollow.mp4",
    }
    for reason, path in cases.items():
        for read in (probe_video, lambda *arguments: next(read_frames(*arguments))):
            with pytest.raises(InputError) as raised:
                read(path, "film")
            assert str(raised.value).startswith(f"film={path}: ")
            assert reason in str(raised.value)
            assert "\n" not in str(raised.value)


def test_what_is_left_of_a_cut_off_video_is_read_with_a_warning(tmp_path, caplog):
    path = tmp_path / "a.mp4"
    write_video(path, noise_frames(50), 25)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with caplog.at_level(logging.WARNING):
        frames = list(read_frames(path))
    assert 15 < len(frames) < 35
    [record] = caplog.records
    assert "damaged or cut off" in record.getMessage()
    assert str(path) in record.getMessage()


# Constant rate --------------------------------------------------------------------------------------------------------
def timed(times):
    return ((seconds, index) for index, seconds in enumerate(times))


def test_a_variable_rate_is_shown_as_a_player_would():
    assert list(constant_rate(timed([0.0, 0.04, 0.2, 0.21, 0.24]), 25)) == [0, 1, 1, 1, 1, 2, 4]


def test_the_same_rate_changes_nothing_despite_rounded_times():
    for rate in (24, 25, 30, 60, Fraction(30000, 1001)):
        times = [round(index / float(rate), 3) for index in range(200)]
        assert list(constant_rate(timed(times), rate)) == list(range(200))


@pytest.mark.parametrize(("source", "target"), [(60, 25), (25, 60), (30, 24), (50, 25), (120, 25), (10, 30)])
def test_the_number_of_frames_is_the_rounded_duration(source, target):
    for num_frames in range(2, 40):
        out = list(constant_rate(timed(index / source for index in range(num_frames)), target))
        assert abs(len(out) - max(1, num_frames / source * target)) <= 0.5 + 1e-9
        assert out == sorted(out)
        for index, shown in enumerate(out):
            assert shown == min(num_frames - 1, int(index / target * source + 1e-3))


def test_a_video_that_starts_late_or_is_short_is_whole():
    assert list(constant_rate(timed([]), 25)) == []
    assert list(constant_rate(timed([0.0]), 25)) == [0]
    assert list(constant_rate(timed([0.12, 0.16]), 25)) == [0, 0, 0, 0, 1]


def test_constant_rate_is_lazy():
    def endless():
        index = 0
        while True:
            yield index / 25, index
            index += 1

    frames = constant_rate(endless(), 25)
    assert [next(frames) for _ in range(5)] == [0, 1, 2, 3, 4]


# Frame rates ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("fps", "expected"),
    [
        (25, Fraction(25)),
        (25.0, Fraction(25)),
        (1.0, Fraction(1)),
        (29.97, Fraction(30000, 1001)),
        (23.976, Fraction(24000, 1001)),
        (59.94, Fraction(60000, 1001)),
        (12.5, Fraction(25, 2)),
        (Fraction(30000, 1001), Fraction(30000, 1001)),
        (np.float32(29.97), Fraction(30000, 1001)),
    ],
)
def test_frame_rates_are_exact(fps, expected):
    assert frame_rate(fps) == expected


@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf"), 241, -0.0])
def test_impossible_frame_rates_name_the_field(fps):
    with pytest.raises(InputError, match="^fps="):
        frame_rate(fps)


# Writing --------------------------------------------------------------------------------------------------------------
def test_the_file_is_h264_with_aac_for_every_player(tmp_path):
    path = tmp_path / "a.mp4"
    assert write_video(path, iter(grey_frames(25)), 25, tone(44100, 2)) == 25
    data = path.read_bytes()
    assert data.find(b"moov") < data.find(b"mdat")
    with av.open(str(path)) as container:
        video, audio = container.streams
        context = video.codec_context
        assert (context.name, context.pix_fmt, audio.codec_context.name) == ("h264", "yuv420p", "aac")
        tags = (context.colorspace, context.color_primaries, context.color_trc, context.color_range)
        assert tags == (1, 1, 1, 1)  # BT.709 three times, limited range
        assert (audio.rate, audio.layout.name) == (44100, "stereo")


def test_colours_survive(tmp_path):
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (200, 150, 120)]
    picture = np.repeat(np.array(colours, np.uint8)[None], 32, axis=0).repeat(32, axis=1)
    write_video(tmp_path / "a.mp4", [picture] * 3, 25, crf=1)
    _, frame = next(read_frames(tmp_path / "a.mp4"))
    for index, colour in enumerate(colours):
        assert np.abs(frame[16, 16 + 32 * index].astype(int) - colour).max() <= 2


@pytest.mark.parametrize("fps", [25, 29.97, 24.6, 1, 240])
@pytest.mark.parametrize(("rate", "written_rate"), [(8000, 8000), (16000, 16000), (44100, 44100), (11000, 48000)])
@pytest.mark.parametrize("seconds", [0.0, 0.05, 30.0])
def test_the_sound_is_as_long_as_the_picture(tmp_path, fps, rate, written_rate, seconds):
    path, num_frames = tmp_path / "a.mp4", 13
    write_video(path, grey_frames(num_frames), fps, Audio(np.full((1, round(seconds * rate)), 0.1, np.float32), rate))
    expected = float(num_frames / frame_rate(fps))
    audio = load_audio(path)
    assert audio.sampling_rate_hz == written_rate
    assert audio.duration_seconds == pytest.approx(expected, abs=1e-4)
    assert probe_video(path).duration_seconds == pytest.approx(expected, abs=1e-4)
    assert indices(frame for _, frame in read_frames(path)) == list(range(num_frames))


@pytest.mark.parametrize("num_channels", [1, 2, 6])
def test_the_sound_stays_what_and_where_it_was(tmp_path, num_channels):
    audio = tone(48000, num_channels, seconds=0.5)
    audio.samples[1:] *= 0.5 if num_channels == 2 else 0.3  # near 1, the AAC encoder turns the sound down
    write_video(tmp_path / "a.mp4", grey_frames(25), 25, audio)
    written = load_audio(tmp_path / "a.mp4").samples
    expected = audio.samples if num_channels <= 2 else audio.mono().samples
    assert len(written) == len(expected)
    inner = slice(3000, 22000)
    assert np.abs(written[:, inner] - expected[:, inner]).max() < 0.005
    assert np.abs(written[:, 27000:]).max() < 0.01


def test_other_sound_leaves_the_pictures_bit_by_bit(tmp_path):
    path, fps = tmp_path / "a.mp4", Fraction(30000, 1001)
    write_video(path, grey_frames(25), fps, tone(48000, 1), keyframe_interval=10)
    frames = [(time, frame.tobytes()) for time, frame in read_frames(path)]
    other = Audio(tone(48000, 2, seconds=0.5).samples * 0.5, 48000)
    replace_sound(path, other)
    assert [(time, frame.tobytes()) for time, frame in read_frames(path)] == frames
    audio = load_audio(path)
    assert audio.samples.shape[0] == 2
    assert audio.duration_seconds == pytest.approx(float(25 / fps), abs=1e-4)
    assert np.abs(audio.samples[:, 3000:22000] - other.samples[:, 3000:22000]).max() < 0.01
    assert [file.name for file in tmp_path.iterdir()] == ["a.mp4"]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_names_are_taken_as_they_are(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    write_video(name, grey_frames(3), 25, tone(16000))
    assert os.listdir(tmp_path) == [name]
    assert len(list(read_frames(name))) == 3
    assert probe_video(tmp_path / name).has_audio


@pytest.mark.parametrize(("height", "width"), [(31, 48), (32, 47)])
def test_odd_sizes_name_the_fields(tmp_path, height, width):
    with pytest.raises(InputError, match=f"{width}x{height}.*image_width and image_height must be even"):
        write_video(tmp_path / "a.mp4", grey_frames(3, height, width), 25)
    assert not os.listdir(tmp_path)


def test_no_frames_and_unequal_frames_are_refused(tmp_path):
    with pytest.raises(InputError, match="no frame"):
        write_video(tmp_path / "a.mp4", [], 25, tone(16000))
    with pytest.raises(ValueError, match="frame 1 has shape"):
        write_video(tmp_path / "a.mp4", [grey_frames(1)[0], grey_frames(1, 64)[0]], 25)
    with pytest.raises(InputError, match="^fps=nan: allowed"):
        write_video(tmp_path / "a.mp4", grey_frames(2), float("nan"))
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt(), SystemExit(1)])
def test_a_failure_on_the_way_leaves_the_folder_as_it_was(tmp_path, error):
    def frames():
        yield from grey_frames(5)
        raise error

    (tmp_path / "a.mp4").write_text("older")
    with pytest.raises(type(error)):
        write_video(tmp_path / "a.mp4", frames(), 25, tone(16000))
    assert os.listdir(tmp_path) == ["a.mp4"]
    assert (tmp_path / "a.mp4").read_text() == "older"


def test_frames_are_taken_one_by_one(tmp_path):
    num_taken = 0
    partial_sizes = []

    def frames():
        nonlocal num_taken
        for pixels in noise_frames(300):
            num_taken += 1
            partial_sizes.extend(part.stat().st_size for part in tmp_path.glob(".*"))
            yield pixels

    write_video(tmp_path / "a.mp4", frames(), 25)
    assert num_taken == 300
    assert partial_sizes[-1] > 0.5 * (tmp_path / "a.mp4").stat().st_size


def test_a_full_disk_is_an_os_error_and_never_a_short_file(tmp_path):
    if shutil.which("mount") is None or os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root and the program mount")
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", disk], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"mounting a small disk is not allowed here: {mounted.stderr.strip()}")
    frames, audio = noise_frames(12), tone(16000)
    try:
        write_video(tmp_path / "whole.mp4", frames, 25, audio)
        size = (tmp_path / "whole.mp4").stat().st_size
        num_failed = 0
        for free in range(size // 2, size + 8192, 4096):
            (disk / "filler").write_bytes(bytes(200 * 1024 - free))
            try:
                write_video(disk / "a.mp4", frames, 25, audio)
            except OSError as error:
                num_failed += 1
                assert (error.errno, error.filename) == (errno.ENOSPC, str(disk / "a.mp4"))
                assert os.listdir(disk) == ["filler"]
            else:
                assert (disk / "a.mp4").stat().st_size == size
                (disk / "a.mp4").unlink()
        assert num_failed > 2
    finally:
        subprocess.run(["umount", disk], check=True)


# Real clips -----------------------------------------------------------------------------------------------------------
@pytest.mark.skipif(not SAMPLES.is_dir(), reason=f"the sample clips are not in {SAMPLES}")
@pytest.mark.parametrize(
    ("name", "fps", "num_frames", "num_at_25"),
    [("clip_a/gt.mp4", 25, 109, 109), ("training_clip/clip.mp4", Fraction(30000, 1001), 61, 51)],
)
def test_real_clips(name, fps, num_frames, num_at_25):
    info = probe_video(SAMPLES / name)
    assert (info.fps, info.width, info.height, info.has_audio) == (fps, 512, 512, True)
    frames = list(read_frames(SAMPLES / name))
    assert len(frames) == num_frames
    assert abs(len(list(constant_rate(frames, 25))) - num_at_25) <= 1


# Lossless, and frames at their own times ------------------------------------------------------------------------------
def test_a_lossless_file_keeps_every_pixel_and_every_sample(tmp_path):
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (5, 33, 47, 3), np.uint8)  # of odd size
    sound = Audio(rng.uniform(-0.5, 0.5, (2, 4000)).astype(np.float32), 16000)
    assert write_video(tmp_path / "a.mkv", frames, 20, sound, is_lossless=True, metadata={"comment": "x"}) == 5
    assert np.array_equal(np.stack([frame for _, frame in read_frames(tmp_path / "a.mkv")]), frames)
    samples = load_audio(tmp_path / "a.mkv").samples
    assert samples.shape == (2, 4000) and np.abs(samples - sound.samples).max() < 1e-4


@pytest.mark.parametrize("is_lossless", [False, True])
def test_frames_are_shown_at_their_own_times(tmp_path, is_lossless):
    times = [0, 0.04, 0.1, 0.5, 0.54]
    frames = [np.full((32, 48, 3), 40 * i, np.uint8) for i in range(5)]
    path = tmp_path / "a.mkv"
    write_video(path, frames, 25, tone(16000), times=times, is_lossless=is_lossless)
    found = list(read_frames(path))
    np.testing.assert_allclose([seconds for seconds, _ in found], times, atol=2e-3)
    assert [round(float(frame.mean()) / 40) for _, frame in found] == [0, 1, 2, 3, 4]
    assert load_audio(path).duration_seconds == pytest.approx(0.58, abs=0.03)
