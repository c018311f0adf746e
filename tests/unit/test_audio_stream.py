"""Speech that comes piece by piece, against all of it at once."""

import pytest
import torch

from tests import tiny
from vexpress.audio_features import AudioStream, FrameAudio, audio_windows, encode_audio

RATE = 16000
WHOLE = {"piece_seconds": 60, "context_seconds": 5, "look_ahead_seconds": 5}
LIVE = {"piece_seconds": 0.2, "context_seconds": 1.0, "look_ahead_seconds": 0.3}


@pytest.fixture(scope="module")
def networks():
    return tiny.audio_encoder(), tiny.audio_processor()


def speech(num_samples: int = 3 * RATE + 123) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(num_samples, generator=generator) * torch.sin(torch.arange(num_samples) / 4000) + 0.1


@torch.no_grad()
def encode(networks, waveform, chunk: int = 10**9, **settings) -> torch.Tensor:
    stream = AudioStream(*networks, **settings)
    parts = [states for part in waveform.split(chunk) for states in stream.push(part)]
    return torch.cat([*parts, *stream.finish()])


@torch.no_grad()
def test_one_piece_is_the_whole_clip(networks):
    waveform = speech()
    expected = encode_audio(*networks, waveform)
    assert tiny.relative_error(encode(networks, waveform, **WHOLE), expected) < 1e-5


@pytest.mark.parametrize("num_samples", [1, 399, 400, 401, 719, 720, 5000])
@torch.no_grad()
def test_short_speech(networks, num_samples):
    waveform = speech(num_samples)
    expected = encode_audio(*networks, waveform)
    assert encode(networks, waveform, 7, **LIVE).shape == expected.shape


def test_results_do_not_depend_on_how_speech_comes(networks):
    waveform = speech()
    expected = encode(networks, waveform, **LIVE)
    for chunk in (1000, 3217, 40000):
        assert torch.equal(encode(networks, waveform, chunk, **LIVE), expected)


@torch.no_grad()
def test_pieces_come_near_to_the_whole_clip_the_more_they_hear(networks):
    waveform = speech()
    whole = encode_audio(*networks, waveform)
    statistics = (float(waveform.mean()), float(waveform.var(unbiased=False)))
    errors = [
        tiny.relative_error(encode(networks, waveform, **{**LIVE, **changes}, statistics=statistics), whole)
        for changes in ({"context_seconds": 0.0, "look_ahead_seconds": 0.0}, {}, {"context_seconds": 3.0})
    ]
    assert errors[0] > errors[1] > errors[2]
    for shift in (-1, 1):  # each state is at its time
        live = encode(networks, waveform, **LIVE)
        assert tiny.relative_error(live.roll(shift, 0), whole) > 1.5 * tiny.relative_error(live, whole)


@torch.no_grad()
def test_states_come_once_their_look_ahead_is_there_and_no_later(networks):
    stream = AudioStream(*networks, **LIVE)
    waveform = speech()
    assert list(stream.push(waveform[: 24 * 320 + 400 - 1])) == []  # 10 states, and 15 ahead of them
    assert [len(states) for states in stream.push(waveform[24 * 320 + 400 - 1 : 24 * 320 + 400])] == [10]


@torch.no_grad()
def test_no_more_is_held_than_may_be_heard_again(networks):
    stream = AudioStream(*networks, **LIVE)
    for _ in range(10):
        list(stream.push(speech(RATE)))
        assert len(stream._samples) < 2 * RATE


@pytest.mark.parametrize("part", [1, 7, 1000])
@pytest.mark.parametrize(("num_states", "num_frames", "num_pad"), [(150, 91, 2), (150, 40, 0), (20, 30, 1), (1, 1, 2)])
def test_frames_get_the_steps_of_the_whole_clip(part, num_states, num_frames, num_pad):
    states = torch.randn(num_states, 3, generator=torch.Generator().manual_seed(0))
    frames = FrameAudio(num_states / (2 * num_frames), num_pad)
    windows = [frames.push(some) for some in states.split(part)]
    assert frames.num_frames <= num_frames
    windows = torch.cat([*windows, frames.finish(num_frames)])
    torch.testing.assert_close(windows, audio_windows(states, num_frames, num_pad), atol=1e-4, rtol=1e-4)


def test_frames_come_as_soon_as_their_steps_are_there():
    frames = FrameAudio(50 / 60, 2)  # 50 states and 60 steps to a second: 30 frames
    counts = [len(frames.push(states)) for states in torch.zeros(50, 3).split(1)]
    assert sum(counts) == 27  # two frames and a step ahead are needed
    assert max(counts) == 1
