"""Time in files whose clocks restart, jump or pause, and which stream is read: the same for video and sound."""

import logging
import os
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from vexpress.errors import InputError
from vexpress.media.audio import load_audio
from vexpress.media.container import MAX_JUMP_SECONDS
from vexpress.media.random_access import count_frames, read_frames_at
from vexpress.media.video import constant_rate, probe_video, read_frames

FPS, RATE_HZ, NUM_FRAMES = 25, 48000, 50
FLASH = 20  # this frame is white, and a tone sounds while it is shown
A_FRAME = 1.01 / FPS


def make_frame(index: int) -> np.ndarray:
    return np.full((32, 48, 3), 255 if index == FLASH else 10 + 2 * index, np.uint8)


def make_sound(num_samples: int = NUM_FRAMES * RATE_HZ // FPS, is_flash: bool = True) -> np.ndarray:
    """(1 n) float32."""
    samples = np.random.default_rng(0).normal(0, 0.005, num_samples)
    start = FLASH * RATE_HZ // FPS
    samples[start : start + RATE_HZ // FPS] += is_flash * 0.5 * np.sin(np.arange(RATE_HZ // FPS) / 4)
    return samples.astype(np.float32)[None]


def write_film(
    path: Path,
    codecs: tuple[str | None, ...] = ("libx264", "aac"),
    frame_times: Iterable[float] = np.arange(NUM_FRAMES) / FPS,
    sound: np.ndarray | None = None,
    format: str | None = None,
) -> Path:
    """A film with a flash and a tone at once; frames at these seconds."""
    with av.open(str(path), "w", format=format) as container:
        packets = []
        if codecs[0]:
            options = {"bf": "0", "g": "10"} if codecs[0] == "libx264" else {}
            video = container.add_stream(codecs[0], rate=FPS, options=options)
            video.width, video.height, video.pix_fmt = 48, 32, "yuv420p"
        if codecs[1]:
            audio = container.add_stream(codecs[1], rate=RATE_HZ, layout="mono")
        if codecs[0]:
            for index, seconds in enumerate(frame_times):
                frame = av.VideoFrame.from_ndarray(make_frame(index))
                frame.pts, frame.time_base = round(seconds * 1000 * FPS), Fraction(1, 1000 * FPS)
                packets += video.encode(frame)
            packets += video.encode(None)
        if codecs[1]:
            samples = make_sound() if sound is None else sound
            for start in range(0, samples.shape[1], 1024):
                block = np.ascontiguousarray(samples[:, start : start + 1024])
                frame = av.AudioFrame.from_ndarray(block, format="fltp", layout="mono")
                frame.sample_rate, frame.pts, frame.time_base = RATE_HZ, start, Fraction(1, RATE_HZ)
                packets += audio.encode(frame)
            packets += audio.encode(None)
        for packet in sorted(packets, key=lambda packet: packet.dts * packet.time_base):
            container.mux(packet)
    return path


def moved(source: Path, target: Path, by_seconds: float, at_seconds: float = 1.0) -> Path:
    """A copy whose timestamps jump."""
    with av.open(str(source)) as reader, av.open(str(target), "w") as writer:
        streams = {stream.index: writer.add_stream_from_template(stream) for stream in reader.streams}
        for packet in reader.demux():
            if packet.dts is None:
                continue
            if packet.dts * packet.time_base >= at_seconds:
                later = round(by_seconds / packet.time_base)
                packet.pts, packet.dts = packet.pts + later, packet.dts + later
            packet.stream = streams[packet.stream_index]
            writer.mux(packet)
    return target


def flashes_shown(path: Path) -> tuple[list[float], float]:
    """Seconds at which a flash begins, at the constant rate, and the length of the video."""
    is_white = np.array([frame.mean() > 200 for frame in constant_rate(read_frames(path), FPS)])
    return (np.flatnonzero(np.diff(is_white, prepend=False) & is_white) / FPS).tolist(), len(is_white) / FPS


def flashes_heard(path: Path) -> tuple[list[float], float]:
    audio = load_audio(path)
    loud = np.flatnonzero(np.abs(audio.samples[0]) > 0.3)
    starts = loud[np.diff(loud, prepend=-RATE_HZ) > RATE_HZ // 10]
    return (starts / RATE_HZ).tolist(), audio.duration_seconds


def assert_alike(path: Path, num_flashes: int, seconds: float) -> None:
    (shown, video_seconds), (heard, audio_seconds) = flashes_shown(path), flashes_heard(path)
    assert len(shown) == len(heard) == num_flashes
    np.testing.assert_allclose(shown, heard, atol=A_FRAME)
    assert video_seconds == pytest.approx(seconds, abs=3 * A_FRAME)
    assert audio_seconds == pytest.approx(video_seconds, abs=2 * A_FRAME)


# Restarts and jumps ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("num_parts", [2, 3])
@pytest.mark.parametrize("codecs", [("libx264", "aac"), ("mpeg2video", "mp2")])
def test_joined_files_are_read_whole(tmp_path, num_parts, codecs):
    path = tmp_path / "a.ts"
    path.write_bytes(write_film(tmp_path / "one.ts", codecs).read_bytes() * num_parts)
    assert_alike(path, num_parts, 2 * num_parts)


def test_parts_of_other_lengths_stay_together(tmp_path):
    """The first part's sound is shorter than its video, so that its clock does not fall where the video's does."""
    first = write_film(tmp_path / "1.ts", sound=make_sound(RATE_HZ))
    second = write_film(tmp_path / "2.ts")
    path = tmp_path / "a.ts"
    path.write_bytes(first.read_bytes() + second.read_bytes())
    (shown, seconds), (heard, _) = flashes_shown(path), flashes_heard(path)
    np.testing.assert_allclose(shown, heard, atol=A_FRAME)
    assert len(shown) == 2 and seconds == pytest.approx(4, abs=2 * A_FRAME)


def test_single_streams_restart_too(tmp_path):
    for name, codecs in (("video.ts", ("libx264", None)), ("sound.ts", (None, "aac"))):
        path = tmp_path / name
        path.write_bytes(write_film(tmp_path / f"one_{name}", codecs).read_bytes() * 2)
    assert flashes_shown(tmp_path / "video.ts")[1] == pytest.approx(4, abs=A_FRAME)
    assert flashes_heard(tmp_path / "sound.ts")[1] == pytest.approx(4, abs=0.1)


@pytest.mark.parametrize("seconds", [MAX_JUMP_SECONDS + 1, 700, 7200, 90000])
@pytest.mark.parametrize("name", ["a.mkv", "a.mp4", "a.ts"])
def test_long_jumps_are_cut_with_a_warning(tmp_path, caplog, seconds, name):
    path = moved(write_film(tmp_path / f"plain_{name}"), tmp_path / name, seconds)
    assert_alike(path, 1, 2)
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 2 and warnings[0] == warnings[1]
    assert f"by {seconds}.0 s" in warnings[0] and str(path) in warnings[0]


def test_the_start_may_be_what_is_far_away(tmp_path):
    path = moved(write_film(tmp_path / "plain.mkv"), tmp_path / "a.mkv", 700, at_seconds=0.1)
    assert_alike(path, 1, 2)


def test_pauses_are_kept_in_video_and_sound(tmp_path, caplog):
    path = moved(write_film(tmp_path / "plain.mkv"), tmp_path / "a.mkv", 5)
    assert_alike(path, 1, 7)
    assert not caplog.records


def test_a_picture_that_stands_while_the_sound_goes_on_is_no_jump(tmp_path, caplog):
    num_seconds = MAX_JUMP_SECONDS + 5
    path = write_film(
        tmp_path / "a.mkv", ("libx264", "pcm_s16le"), [0, 0.04, num_seconds], make_sound(num_seconds * RATE_HZ)
    )  # fmt: skip
    assert flashes_shown(path)[1] == pytest.approx(num_seconds, abs=num_seconds / 2 + A_FRAME)
    assert [round(seconds) for seconds, _ in read_frames(path)] == [0, 0, num_seconds]
    assert flashes_heard(path)[1] == pytest.approx(num_seconds, abs=A_FRAME)
    assert not caplog.records


def test_random_access_counts_as_reading_does(tmp_path):
    one = write_film(tmp_path / "one.ts")
    (tmp_path / "twice.ts").write_bytes(one.read_bytes() * 2)
    moved(write_film(tmp_path / "plain.mkv"), tmp_path / "jump.mkv", 700)
    for name in ("twice.ts", "jump.mkv"):
        frames = [frame for _, frame in read_frames(tmp_path / name)]
        assert count_frames(tmp_path / name) == len(frames)
        ids = [len(frames) - 1, 0, FLASH, len(frames) // 2 + 3, FLASH]
        np.testing.assert_array_equal(read_frames_at(tmp_path / name, ids), [frames[i] for i in ids])


# The start ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "codecs", [("libvpx", "libopus"), ("libx264", "libopus"), ("libx264", "aac"), ("mpeg4", "mp2")]
)
@pytest.mark.parametrize("suffix", ["mkv", "mp4", "webm"])
def test_what_the_decoder_needs_before_the_start_is_not_time(tmp_path, codecs, suffix):
    if (suffix == "webm") != (codecs[0] == "libvpx"):
        pytest.skip("WebM holds VP8 and Opus only, and is made here for them only")
    path = write_film(tmp_path / f"a.{suffix}", codecs)
    [shown], _ = flashes_shown(path)
    [heard], _ = flashes_heard(path)
    assert shown == pytest.approx(FLASH / FPS, abs=1e-6 if "opus" in codecs[1] else A_FRAME)
    assert heard == pytest.approx(shown, abs=0.03)


@pytest.mark.parametrize(("late", "shown"), [(0.0, 20), (0.013, 20), (0.03, 21), (0.4, 30)])
def test_a_late_picture_is_on_time_to_the_nearest_frame(tmp_path, late, shown):
    times = np.arange(NUM_FRAMES) / FPS + late
    path = write_film(tmp_path / "a.mkv", ("libx264", "pcm_s16le"), times)
    assert flashes_shown(path)[0] == [shown / FPS]


# Tracks ---------------------------------------------------------------------------------------------------------------
def write_tracks(path: Path, default: tuple[int, ...]) -> Path:
    """Three sound tracks of constant level, 0.1, 0.2 and 0.3 of a square wave."""
    with av.open(str(path), "w") as container:
        tracks = [container.add_stream("pcm_s16le", rate=16000, layout="mono") for _ in range(3)]
        for number, track in enumerate(tracks):
            track.disposition = av.stream.Disposition.default if number in default else 0
        for number, track in enumerate(tracks):
            samples = (np.arange(16000) % 20 < 10).astype(np.float32)[None] * (number + 1) / 10
            frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 16000, 0
            container.mux(track.encode(frame) + track.encode(None))
    return path


@pytest.mark.parametrize(
    ("default", "track", "used", "why"),
    [
        ((), None, 0, "the first"),
        ((1,), None, 1, "the default"),
        ((2,), None, 2, "the default"),
        ((1, 2), None, 1, "the default"),
        ((1,), 0, 0, "as asked"),
        ((), 2, 2, "as asked"),
    ],
)
def test_the_default_track_is_used_and_told(tmp_path, caplog, default, track, used, why):
    caplog.set_level(logging.INFO)
    path = write_tracks(tmp_path / "a.mkv", default)
    assert load_audio(path, track=track).samples.max() == pytest.approx((used + 1) / 10, abs=1e-3)
    assert f"{path}: audio track {used} of 0 to 2 is used ({why})" in caplog.text


@pytest.mark.parametrize("track", [3, -1, 99])
def test_a_track_that_is_not_there_is_named(tmp_path, track):
    with pytest.raises(InputError, match=rf"^audio_track={track}: .*a.mkv has 3 audio track.s.: allowed are 0 to 2"):
        load_audio(write_tracks(tmp_path / "a.mkv", ()), track=track)


# Paths ----------------------------------------------------------------------------------------------------------------
def test_pipes_and_impossible_names_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    for path, reason in ((tmp_path / "pipe.mp4", "device or pipe"), ("a\0b.mp4", "is no file name")):
        for read in (probe_video, count_frames, load_audio, lambda path: next(read_frames(path))):
            with pytest.raises(InputError, match=reason):
                read(path)


def test_brackets_and_patterns_are_names(tmp_path):
    for name in ("a [1].mp4", "b*.mp4", "c?.mp4", "%d.mp4"):
        path = write_film(tmp_path / name)
        assert count_frames(path) == NUM_FRAMES == len(list(read_frames(path)))
        assert load_audio(path).duration_seconds == pytest.approx(2, abs=0.1)


def test_metadata_of_any_bytes_does_not_stop_the_reading(tmp_path):
    path = write_film(tmp_path / "a.mkv")
    data = path.read_bytes()
    position = data.find(b"Lavf")  # the name of the writing program
    for text in (b"\0\0\0\0", b"\xff\xfe\xfd\xfc", b"\xed\xa0\x80x"):  # the last one is a surrogate
        path.write_bytes(data[:position] + text + data[position + 4 :])
        assert load_audio(path).duration_seconds == pytest.approx(2, abs=0.1)
        assert count_frames(path) == NUM_FRAMES


@pytest.mark.parametrize(
    "text",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXT-X-MEDIA-SEQUENCE:0\n#EXTINF:2.0,\na.ts\n",  # waits for more, for ever
        "ffconcat version 1.0\nfile a.ts\n",
        "-SE\nfoo: pink/40 200+4/20\nNOW foo\n+30:00:00 foo\n",  # makes sound without end
    ],
)
def test_playlists_and_scripts_are_refused_by_any_name(tmp_path, text):
    write_film(tmp_path / "a.ts")
    for name in ("list.m3u8", "list.wav", "list"):
        (tmp_path / name).write_text(text)
        for read in (load_audio, probe_video):
            with pytest.raises(InputError, match="FFmpeg cannot read it"):
                read(tmp_path / name)


@pytest.mark.parametrize(("fps", "options"), [(5, {}), (2, {}), (25, {"bf": "16", "b_strategy": "0"})])
def test_matroska_that_begins_without_decoding_times_does_not_restart(tmp_path, fps, options):
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options=options)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for index in range(40):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(make_frame(index))))
        container.mux(stream.encode(None))
    times, frames = zip(*read_frames(path))
    np.testing.assert_allclose(times, np.arange(40) / fps, atol=2e-3)
    assert [frame.mean() > 200 for frame in frames].index(True) == FLASH
    assert count_frames(path) == 40


@pytest.mark.parametrize("early", ["audio", "both"])
def test_what_comes_before_the_zero_of_matroska_is_not_shown_or_heard(tmp_path, early):
    film = write_film(tmp_path / "film.mkv", ("libx264", "pcm_s16le"))
    path, by_seconds = tmp_path / "early.mkv", 0.4
    with (
        av.open(str(film)) as reader,
        av.open(str(path), "w", container_options={"avoid_negative_ts": "disabled"}) as writer,
    ):
        streams = {stream.index: writer.add_stream_from_template(stream) for stream in reader.streams}
        for packet in reader.demux():
            if packet.dts is not None:
                earlier = round(by_seconds / packet.time_base) if early in ("both", packet.stream.type) else 0
                packet.pts, packet.dts = packet.pts - earlier, packet.dts - earlier
                packet.stream = streams[packet.stream_index]
                writer.mux(packet)
    heard = FLASH / FPS - by_seconds
    shown = heard if early == "both" else FLASH / FPS
    assert flashes_heard(path)[0] == pytest.approx([heard], abs=A_FRAME)
    assert flashes_shown(path)[0] == pytest.approx([shown], abs=A_FRAME)
    times, frames = zip(*read_frames(path))
    assert np.diff(times) == pytest.approx(1 / FPS, abs=2e-3)
    assert count_frames(path) == len(times)
    for number in (0, len(times) // 2, len(times) - 1):
        assert np.array_equal(read_frames_at(path, [number])[0], frames[number])


def test_frames_that_change_in_size_are_refused(tmp_path):
    parts = []
    for size in ((48, 32), (64, 48)):
        path = tmp_path / "part.ts"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=FPS)
            stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
            for _ in range(10):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((size[1], size[0], 3), np.uint8))))
            container.mux(stream.encode(None))
        parts.append(path.read_bytes())
    (tmp_path / "joined.ts").write_bytes(b"".join(parts))
    with pytest.raises(InputError, match="change in size, from 48x32 to 64x48 px; convert it to one size"):
        list(read_frames(tmp_path / "joined.ts"))


def test_short_files_that_were_joined_are_read_whole(tmp_path):
    part = write_film(tmp_path / "part.ts", ("libx264", None), np.arange(10) / FPS).read_bytes()
    (tmp_path / "joined.ts").write_bytes(4 * part)
    times = [seconds for seconds, _ in read_frames(tmp_path / "joined.ts")]
    assert len(times) == 40 and min(np.diff(times)) > 0


def test_sound_alone_may_begin_late(tmp_path, caplog):
    write_film(tmp_path / "a.mkv", (None, "pcm_s16le"))
    late = moved(tmp_path / "a.mkv", tmp_path / "late.mkv", by_seconds=5, at_seconds=0)
    assert load_audio(late).duration_seconds == pytest.approx(NUM_FRAMES / FPS, abs=A_FRAME)
    assert "damaged" not in caplog.text
