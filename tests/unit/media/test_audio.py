import logging
import os
import re
import shutil
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from vexpress.errors import InputError
from vexpress.media.audio import MAX_DRIFT_SECONDS, Audio, load_audio, write_audio
from vexpress.media.video import write_video

SAMPLES = Path(__file__).parents[4] / "shared" / "samples"
ODD_NAMES = (
    "-weird 'na\"me [1] %d ünï.mp3",
    "a:b.mp3",
    "http:x.mp3",
    "%03d.mp3",
    "pipe:0",
    "concat:a.mp3|b.mp3",
    "back\\slash.mp3",
    "no_suffix",
    "wrong_suffix.png",
    "two\nlines.mp3",
    b"not_utf8_\xff.mp3".decode(errors="surrogateescape"),
)
CLICK_SECONDS = 0.4
R = 0.5**0.5


def click(rate: int = 44100, num_channels: int = 1, seconds: float = 1.0) -> np.ndarray:
    """(c n) silence with a short decaying tone at CLICK_SECONDS."""
    time = np.arange(round(seconds * rate)) / rate - CLICK_SECONDS
    tone = 0.8 * np.exp(-time.clip(0) / 0.003) * np.sin(2 * np.pi * 1000 * time) * (time >= 0)
    return np.tile(tone.astype(np.float32), (num_channels, 1))


def click_found_at(audio: Audio) -> float:
    return np.argmax(np.abs(audio.samples[0]) > 0.2) / audio.sampling_rate_hz


def encode(stream: av.AudioStream, samples: np.ndarray, start: int = 0) -> list[av.Packet]:
    layout = {1: "mono", 2: "stereo"}[len(samples)]
    packets = []
    for begin in range(0, samples.shape[1], 1024):
        block = np.ascontiguousarray(samples[:, begin : begin + 1024])
        frame = av.AudioFrame.from_ndarray(block, format="fltp", layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = stream.rate, start + begin, Fraction(1, stream.rate)
        packets += stream.encode(frame)
    return packets + stream.encode(None)


def write_sound(path: Path, codec: str, samples: np.ndarray, rate: int = 44100) -> Path:
    with av.open(f"file:{path}", "w") as container:
        stream = container.add_stream(codec, rate=rate, layout={1: "mono", 2: "stereo"}[len(samples)])
        container.mux(encode(stream, samples))
    return path


def write_wav(path: Path, samples: np.ndarray, rate: int, more_chunks: bytes = b"") -> Path:
    """(n c) samples of any dtype, byte for byte."""
    width = samples.dtype.itemsize
    code = 3 if samples.dtype.kind == "f" else 1
    num_channels = samples.shape[1]
    fields = struct.pack(
        "<HHIIHH", code, num_channels, rate, rate * num_channels * width, num_channels * width, width * 8
    )
    data = samples.tobytes()
    body = b"WAVEfmt " + struct.pack("<I", 16) + fields + b"data" + struct.pack("<I", len(data)) + data + more_chunks
    path.write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)
    return path


@pytest.fixture(scope="module")
def mp3(tmp_path_factory) -> Path:
    return write_sound(tmp_path_factory.mktemp("mp3") / "click.mp3", "libmp3lame", click())


# Formats --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "codec", "rate", "num_channels"),
    [
        ("a.mp3", "libmp3lame", 44100, 2),
        ("a.mp3", "libmp3lame", 16000, 1),
        ("a.m4a", "aac", 44100, 2),
        ("a.mp4", "aac", 48000, 1),
        ("a.mov", "alac", 44100, 1),
        ("a.ogg", "libopus", 48000, 2),
        ("a.webm", "libopus", 48000, 1),
        ("a.flac", "flac", 96000, 2),
        ("a.ogg", "flac", 22050, 1),
        ("a.wav", "pcm_u8", 8000, 1),
        ("a.wav", "pcm_s16le", 11025, 2),
        ("a.wav", "pcm_s24le", 48000, 2),
        ("a.wav", "pcm_s32le", 44100, 1),
        ("a.wav", "pcm_f32le", 44100, 2),
        ("a.wav", "pcm_f64le", 44100, 1),
    ],
)
def test_duration_and_position_are_right_in_every_format(tmp_path, name, codec, rate, num_channels):
    audio = load_audio(write_sound(tmp_path / name, codec, click(rate, num_channels), rate))
    assert audio.sampling_rate_hz == rate
    assert audio.samples.dtype == np.float32
    assert audio.samples.shape == (num_channels, rate)
    assert audio.duration_seconds == 1.0
    assert click_found_at(audio) == pytest.approx(CLICK_SECONDS, abs=0.002)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.float32, np.float64])
def test_every_sample_type_spans_minus_one_to_one(tmp_path, dtype):
    scale, zero = {"u": (128, 128), "i": (-float(np.iinfo(np.int16).min), 0), "f": (1, 0)}[np.dtype(dtype).kind]
    scale = 2.0**31 if dtype == np.int32 else scale
    wanted = np.array([-1.0, -0.5, 0.0, 0.25, 0.5], np.float32)
    audio = load_audio(write_wav(tmp_path / "a.wav", (wanted * scale + zero).astype(dtype)[:, None], 16000))
    np.testing.assert_array_equal(audio.samples, wanted[None])


@pytest.mark.parametrize("num_channels", [3, 6, 10])
def test_channels_stay_apart_and_mono_is_the_downmix_of_ffmpeg(tmp_path, num_channels):
    levels = np.arange(num_channels, dtype=np.int16) * 1000
    audio = load_audio(write_wav(tmp_path / "a.wav", np.tile(levels, (1600, 1)), 16000))
    np.testing.assert_array_equal(audio.samples[:, 700] * 2**15, levels)
    mono = audio.resampled_mono(16000)
    assert (mono.shape, mono.dtype) == ((1600,), torch.float32)
    weights = {3: [R, R, 0], 6: [R, R, 1, 0, 0.5, 0.5], 10: [0.1] * 10}  # 2.1, 5.1, and one that FFmpeg does not know
    assert mono[700].item() * 2**15 == pytest.approx(levels @ weights[num_channels], abs=1e-2)


def test_channels_and_rate_may_change_in_mid_file(tmp_path):
    parts = [
        write_sound(tmp_path / "1.mp3", "libmp3lame", click(44100)),
        write_sound(tmp_path / "2.mp3", "libmp3lame", click(44100, num_channels=2)),
        write_sound(tmp_path / "3.mp3", "libmp3lame", click(16000), 16000),
    ]
    path = tmp_path / "joined.mp3"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    audio = load_audio(path)
    assert (len(audio.samples), audio.sampling_rate_hz) == (1, 44100)
    assert audio.duration_seconds == pytest.approx(3, abs=0.25)  # the joints keep their encoder delay
    loud = np.flatnonzero(np.abs(audio.samples[0]) > 0.2) / 44100
    assert loud.max() == pytest.approx(2 + CLICK_SECONDS, abs=0.25)


@pytest.mark.parametrize("name", ODD_NAMES)
def test_names_are_taken_as_they_are(tmp_path, monkeypatch, mp3, name):
    shutil.copy(mp3, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert load_audio(name).duration_seconds == 1.0
    assert load_audio(tmp_path / name).duration_seconds == 1.0


def test_tags_in_another_encoding_do_not_stop_the_reading(tmp_path):
    title = b"INFOINAM" + struct.pack("<I", 4) + b"caf\xe9"
    chunk = b"LIST" + struct.pack("<I", len(title)) + title
    path = write_wav(tmp_path / "a.wav", np.zeros((1600, 1), np.int16), 16000, more_chunks=chunk)
    assert load_audio(path).duration_seconds == 0.1


def test_a_cover_picture_does_not_shift_the_sound(tmp_path, mp3):
    path = tmp_path / "cover.mp3"
    with av.open(str(mp3)) as source, av.open(str(path), "w") as container:
        sound = container.add_stream_from_template(source.streams.audio[0])
        picture = container.add_stream("mjpeg", rate=1)
        picture.width, picture.height, picture.pix_fmt = 16, 16, "yuvj420p"
        picture.disposition = av.stream.Disposition.attached_pic
        container.start_encoding()
        frame = av.VideoFrame(16, 16, "yuvj420p")
        frame.pts = 0
        container.mux(picture.encode(frame) + picture.encode(None))
        for packet in source.demux():
            if packet.dts is not None:
                packet.stream = sound
                container.mux(packet)
    np.testing.assert_array_equal(load_audio(path).samples, load_audio(mp3).samples)


# Start in the file ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "aac"), ("a.mkv", "libopus"), ("a.mov", "pcm_s16le")])
def test_sound_that_starts_after_the_picture_is_padded_with_silence(tmp_path, name, codec):
    path, rate, offset_seconds = tmp_path / name, 48000, 0.5
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=25)
        video.width, video.height, video.pix_fmt = 32, 32, "yuv420p"
        sound = container.add_stream(codec, rate=rate, layout="mono")
        for index in range(50):
            frame = av.VideoFrame(32, 32, "yuv420p")
            frame.pts, frame.time_base = index, Fraction(1, 25)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        container.mux(encode(sound, click(rate), start=round(offset_seconds * rate)))
    audio = load_audio(path)
    assert click_found_at(audio) == pytest.approx(offset_seconds + CLICK_SECONDS, abs=0.003)
    assert audio.duration_seconds == pytest.approx(offset_seconds + 1, abs=0.01)
    assert not audio.samples[0, : round(0.4 * rate)].any()


# Resampling -----------------------------------------------------------------------------------------------------------
def test_resampling_keeps_speech_and_lets_no_alias_through():
    rate = 44100
    time = np.arange(rate) / rate
    tone = Audio(np.sin(2 * np.pi * 1000 * time, dtype=np.float64).astype(np.float32)[None], rate).resampled_mono()
    assert tone.shape == (16000,)
    expected = torch.sin(2 * torch.pi * 1000 * torch.arange(16000) / 16000)
    assert (tone - expected)[500:-500].abs().max() < 1e-3
    above = Audio(np.sin(2 * np.pi * 8500 * time).astype(np.float32)[None], rate).resampled_mono()
    assert above[500:-500].abs().max() < 1e-4


def test_resampling_to_the_same_rate_changes_nothing():
    samples = np.random.default_rng(0).uniform(-1, 1, (1, 999)).astype(np.float32)
    np.testing.assert_array_equal(Audio(samples, 16000).resampled_mono(16000).numpy(), samples[0])


# Channels -------------------------------------------------------------------------------------------------------------
def speech(seconds: float = 2.0, rate: int = 16000) -> np.ndarray:
    """(n,) bursts of noise with pauses."""
    time = np.arange(round(seconds * rate)) / rate
    noise = np.random.default_rng(0).normal(0, 0.1, len(time))
    return (noise * (np.sin(2 * np.pi * 2 * time) >= 0)).astype(np.float32)


def level_db(samples) -> float:
    return 10 * np.log10(np.square(np.asarray(samples, np.float64)).mean())


@pytest.mark.parametrize(
    "channels",
    [
        lambda x: [x, -x],
        lambda x: [0.5 * x, -0.45 * x],
        lambda x: [x + 0.4, -x + 0.4],  # a constant is no sound
        lambda x: [np.where(np.arange(len(x)) < len(x) / 2, x, -x), x],  # for half of the time
        lambda x: [x, -x, 0 * x, 0 * x, 0 * x, 0 * x],
        lambda x: [0 * x] * 3 + [x] + [0 * x] * 2,  # where a subwoofer should be
    ],
)
def test_channels_that_cancel_give_the_loudest_with_a_warning(tmp_path, caplog, channels):
    samples = np.stack(channels(speech())).astype(np.float32)
    audio = load_audio(write_wav(tmp_path / "a.wav", np.ascontiguousarray(samples.T), 16000))
    assert "cancel each other" in caplog.text and "a.wav" in caplog.text
    loudest = np.square(samples - samples.mean(axis=1, keepdims=True)).sum(axis=1).max()
    mono = audio.resampled_mono(16000).numpy()
    [heard] = [channel for channel in samples if np.array_equal(channel, mono)]
    assert np.square(heard - heard.mean()).sum() == pytest.approx(loudest, rel=1e-4)


@pytest.mark.parametrize(
    "channels", [lambda x: [x, x], lambda x: [x, 0 * x], lambda x: [0.1 * x, x[::-1]], lambda x: [x, np.roll(x, 9)]]
)
def test_channels_that_only_differ_are_mixed_without_a_word(tmp_path, caplog, channels):
    samples = np.stack(channels(speech())).astype(np.float32)
    audio = load_audio(write_wav(tmp_path / "a.wav", np.ascontiguousarray(samples.T), 16000))
    np.testing.assert_allclose(audio.resampled_mono(16000).numpy(), samples.mean(axis=0), atol=1e-7)
    assert not caplog.records


@pytest.mark.parametrize("layout", ["5.1", "5.1(side)", "7.1", "5.0"])
def test_a_voice_in_the_centre_is_as_loud_as_alone(tmp_path, caplog, layout):
    names = [channel.name for channel in av.AudioLayout(layout).channels]
    samples = np.zeros((len(names), 32000), np.float32)
    samples[names.index("FC")] = speech()
    path = tmp_path / "a.mka"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=16000, layout=layout)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples.T).reshape(1, -1), "flt", layout)
        frame.sample_rate, frame.pts = 16000, 0
        container.mux(stream.encode(frame) + stream.encode(None))
    audio = load_audio(path)
    if audio.layout is not None:
        assert audio.layout == layout
    assert level_db(audio.resampled_mono(16000)) == pytest.approx(level_db(speech()), abs=0.1)
    assert not caplog.records


def test_the_mix_is_not_louder_than_what_can_be_written():
    tone = np.sin(np.arange(16000) / 10).astype(np.float32)
    assert np.abs(Audio(np.tile(tone, (6, 1)), 16000).mono().samples).max() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("level", [0.0, 1e-4, 0.3])
@pytest.mark.parametrize("num_channels", [1, 2])
def test_silence_is_warned_about(tmp_path, caplog, level, num_channels):
    """Also that of a constant."""
    samples = np.full((16000, num_channels), level, np.float32)
    load_audio(write_wav(tmp_path / "a.wav", samples, 16000))
    assert "a.wav: the sound is silent" in caplog.text
    caplog.clear()
    samples[8000:9600] += 0.1 * speech(0.1)[:, None]
    load_audio(write_wav(tmp_path / "a.wav", samples, 16000))
    assert not caplog.records


# Writing --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("suffix", [".wav", ".mp3", ".m4a", ".flac"])
@pytest.mark.parametrize("rate", [16000, 44100])
@pytest.mark.parametrize("num_channels", [1, 2])
def test_written_sound_keeps_rate_length_and_place(tmp_path, suffix, rate, num_channels):
    samples = click(rate, num_channels, seconds=2)
    write_audio(tmp_path / f"a{suffix}", Audio(samples, rate))
    written = load_audio(tmp_path / f"a{suffix}")
    assert (written.sampling_rate_hz, written.samples.shape) == (rate, samples.shape)
    lag = np.correlate(written.samples[0, : rate // 2], samples[0, : rate // 2], "full").argmax() - (rate // 2 - 1)
    assert lag == 0
    if suffix in (".wav", ".flac"):
        np.testing.assert_allclose(written.samples, samples, atol=2**-15)
    assert os.listdir(tmp_path) == [f"a{suffix}"]


def test_what_cannot_be_written_is_named(tmp_path):
    silence = np.zeros((1, 9600), np.float32)
    for name, rate, message in (
        ("a.mp3", 96000, r"a.mp3: .mp3 cannot hold 96000 Hz with 1 channel.s.; use .wav"),
        ("a.aac", 48000, r"a.aac: a raw AAC stream cannot say where its sound starts.*use .m4a"),
        ("a.ogg", 48000, r"a.ogg: allowed are .wav"),
    ):
        with pytest.raises(InputError, match=f"^audio_save_path=.*{message}"):
            write_audio(tmp_path / name, Audio(silence, rate))
    assert not os.listdir(tmp_path)


# What cannot be used --------------------------------------------------------------------------------------------------
def unusable_files(folder: Path) -> dict[str, Path]:
    (folder / "empty.mp3").touch()
    (folder / "text.txt").write_text("hello world\n" * 200)
    (folder / "text.mp3").write_text("hello world\n" * 10000)
    (folder / "bytes.wav").write_bytes(np.random.default_rng(0).bytes(5000))
    silent_film = folder / "silent.mp4"
    with av.open(str(silent_film), "w") as container:
        video = container.add_stream("libx264", rate=25)
        video.width, video.height, video.pix_fmt = 32, 32, "yuv420p"
        frame = av.VideoFrame(32, 32, "yuv420p")
        frame.pts = 0
        container.mux(video.encode(frame) + video.encode(None))
    os.mkfifo(folder / "pipe.wav")
    cut_off = write_sound(folder / "cut_off.m4a", "aac", click())
    cut_off.write_bytes(cut_off.read_bytes()[:1000])
    return {
        "No such file": folder / "missing.mp3",
        "is a folder": folder,
        "empty (0 bytes)": folder / "empty.mp3",
        "has no audio": folder / "text.txt",
        "no sound can be decoded": folder / "text.mp3",
        "FFmpeg cannot read it": folder / "bytes.wav",
        "has no audio that": silent_film,
        "or is cut off": cut_off,
        "no sound can be": write_wav(folder / "nothing.wav", np.zeros((0, 1), np.int16), 16000),
        "NaN": write_wav(folder / "nan.wav", np.array([[0.0], [np.nan]], np.float32), 16000),
        "infinite": write_wav(folder / "inf.wav", np.array([[0.0], [np.inf]], np.float32), 16000),
        "samples of 1e+30, where sound is -1 to 1": write_wav(
            folder / "loud.wav", np.array([[0.0], [1e30]], np.float32), 16000
        ),
        "samples of 3.28e+04": write_wav(folder / "whole.wav", np.array([[0.0], [-32768]], np.float64), 16000),
        "is a device or pipe": folder / "pipe.wav",
        "is no file name": folder / "nul\0.wav",
        "Permission denied": folder / "secret.mp3",
    }


def test_each_unusable_file_is_one_clear_line(tmp_path, mp3):
    for reason, path in unusable_files(tmp_path).items():
        if reason == "Permission denied":
            shutil.copy(mp3, path)
            path.chmod(0)
            if os.access(path, os.R_OK):  # root reads everything
                continue
        with pytest.raises(InputError) as raised:
            load_audio(path, field="sound")
        message = str(raised.value)
        assert message.startswith("sound='" if "\0" in str(path) else f"sound={path}: ")
        assert reason in message
        assert "\n" not in message


@pytest.mark.parametrize("damage", ["cut", "junk"])
def test_what_is_left_of_a_damaged_file_is_read_with_a_warning(tmp_path, caplog, damage):
    path = write_sound(tmp_path / "a.mp3", "libmp3lame", np.tile(click(), 4))
    whole = load_audio(path)
    assert not caplog.records
    data = path.read_bytes()
    tail = np.random.default_rng(0).bytes(len(data) // 2) if damage == "junk" else b""
    path.write_bytes(data[: len(data) // 2] + tail)
    with caplog.at_level(logging.WARNING):
        audio = load_audio(path)
    assert 1.5 < audio.duration_seconds < 2.5
    num_samples = round(1.5 * 44100)
    np.testing.assert_array_equal(audio.samples[:, :num_samples], whole.samples[:, :num_samples])
    [record] = caplog.records
    assert str(path) in record.getMessage()
    seconds = float(re.search(r"([\d.]+) s of audio could be read", record.getMessage())[1])
    assert seconds == pytest.approx(audio.duration_seconds, abs=0.02)


def test_sound_after_a_hole_stays_in_its_place(tmp_path, caplog):
    noise = np.random.default_rng(0).uniform(-0.05, 0.05, (1, 4 * 44100)).astype(np.float32)
    path = write_sound(tmp_path / "a.mp4", "aac", np.tile(click(), 4) + noise)
    data = bytearray(path.read_bytes())
    middle = data.find(b"mdat") + (data.find(b"moov") - data.find(b"mdat")) // 2
    data[middle : middle + 6000] = bytes(6000)
    path.write_bytes(data)
    audio = load_audio(path)
    assert audio.duration_seconds == pytest.approx(4, abs=MAX_DRIFT_SECONDS)
    last = np.abs(audio.samples[0, 3 * 44100 :]) > 0.2
    assert np.argmax(last) / 44100 == pytest.approx(CLICK_SECONDS, abs=MAX_DRIFT_SECONDS)
    assert (audio.samples == 0).sum() > 0.2 * 44100
    assert "damaged" in caplog.text


# Real clips -----------------------------------------------------------------------------------------------------------
@pytest.mark.skipif(not SAMPLES.is_dir(), reason=f"the sample clips are not in {SAMPLES}")
@pytest.mark.parametrize(
    ("name", "rate", "num_channels", "seconds"),
    [
        ("clip_a/aud.mp3", 16000, 1, 4.416),
        ("clip_a/gt.mp4", 16000, 1, 4.353),
        ("clip_c/aud.mp3", 44100, 2, 4.574),
        ("clip_c/long_31s.mp3", 24000, 1, 31.115),
        ("training_clip/clip.mp4", 16000, 1, 2.048),
    ],
)
def test_real_clips(caplog, name, rate, num_channels, seconds):
    audio = load_audio(SAMPLES / name)
    assert (audio.sampling_rate_hz, len(audio.samples)) == (rate, num_channels)
    assert audio.duration_seconds == pytest.approx(seconds, abs=1e-3)
    assert not caplog.records


@pytest.mark.parametrize("value", [1e30, -1e5, np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("num_channels", [1, 2, 6])
def test_samples_that_are_no_sound_are_not_written(tmp_path, value, num_channels):
    audio = Audio(np.full((num_channels, 16000), value, np.float32), 16000)
    frames = [np.zeros((32, 32, 3), np.uint8)] * 3
    writers = [lambda path: write_audio(path, audio), lambda path: write_video(path, frames, 25, audio)]
    for name, write in (("a.wav", writers[0]), ("a.m4a", writers[0]), ("a.mp4", writers[1])):
        with pytest.raises(InputError, match="^audio: holds (samples of|NaN or infinite)"):
            write(tmp_path / name)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("rate", [1, 999, 1_000_001])
def test_rates_that_no_sound_has_are_refused(tmp_path, rate):
    path = write_wav(tmp_path / "a.wav", np.zeros((100, 1), np.float32), rate)
    with pytest.raises(InputError, match=f"has {rate} samples per second, allowed are 1000 to 1000000"):
        load_audio(path)


def test_the_longest_sound_is_that_of_what_is_decoded(tmp_path):
    path = write_wav(tmp_path / "a.wav", np.zeros((16001, 1), np.float32), 16000)
    assert load_audio(path, max_seconds=1.001).samples.shape == (1, 16001)
    with pytest.raises(InputError, match="lasts longer than 1 s, the limit"):
        load_audio(path, max_seconds=1)


def test_more_channels_than_are_mixed_are_refused(tmp_path):
    path = write_wav(tmp_path / "a.wav", np.zeros((100, 65), np.float32), 16000)
    with pytest.raises(InputError, match="has 65 channels, allowed are up to 64"):
        load_audio(path)


def test_sound_that_is_too_long_to_be_held_is_refused(tmp_path):
    path = write_wav(tmp_path / "a.wav", np.zeros((1001, 1), np.float32), 16000)
    with pytest.raises(InputError, match="longer than the 0.0625 s that are held .*; cut it into pieces"):
        load_audio(path, max_values=1000)
    assert load_audio(path, max_values=1001).samples.shape == (1, 1001)
