"""Rolling sampling and streams through the whole pipeline, with tiny networks."""

import gc
import itertools
from fractions import Fraction

import numpy as np
import pytest
import torch

from tests import tiny
from tests.integration.test_pipeline import NUM_FRAMES, SIZE, inputs, latents, pipe  # noqa: F401
from tests.runs import assert_equal
from vexpress.errors import InputError
from vexpress.options import SamplingOptions
from vexpress.pipeline import VExpressPipeline

# ruff: noqa: F811 - fixtures
RATE = 16000
FPS = 20.0
SAMPLING = {"num_inference_steps": 1, "guidance_scale": 1.0, "context_frames": 4, "context_overlap": 2}


def speech(seconds: float) -> torch.Tensor:
    return torch.randn(round(seconds * RATE), generator=torch.Generator().manual_seed(0))


def stream(pipe, inputs, audio, kps=None, **changes) -> list[tuple[np.ndarray, float]]:
    kps = inputs["kps_sequence"][0] if kps is None else kps
    return list(pipe.stream(inputs["reference_image"], audio, kps, **{"fps": FPS, **SAMPLING, **changes}))


def same(one, other) -> bool:
    return len(one) == len(other) and all(np.array_equal(a[0], b[0]) and a[1] == b[1] for a, b in zip(one, other))


@pytest.mark.parametrize("name", ["hubert", "wavlm", "whisper"])
def test_any_encoder_speaks_whole_and_in_a_stream(inputs, tmp_path, name):
    encoder, processor = tiny.speech_encoder(name, vexpress_layers=[0.0, 0.5, 0.5])
    pipe = tiny.pipeline(audio_encoder=encoder, audio_processor=processor)
    expected = latents(pipe, inputs)
    pipe.save_pretrained(tmp_path)
    loaded = VExpressPipeline.from_pretrained(tmp_path)
    again = VExpressPipeline.from_pretrained(tmp_path)
    assert torch.equal(latents(loaded, inputs), latents(again, inputs))
    assert_equal(loaded.audio_encoder.state_dict(), encoder.state_dict())
    assert tiny.relative_error(latents(loaded, inputs), expected) < 1e-4  # MKL sums by where weights lie in memory
    kps = inputs["kps_sequence"][0]
    pieces = iter(speech(2.5).split(3000))  # longer than Whisper's window
    frames = loaded.stream(inputs["reference_image"], pieces, kps, fps=2.0, **SAMPLING)
    assert len(list(frames)) == 5


def test_an_encoder_of_another_width_is_refused():
    encoder, processor = tiny.audio_encoder(), tiny.audio_processor()
    encoder.config.hidden_size = 32
    with pytest.raises(InputError, match="^audio_encoder_path: its hidden states are 32 wide, the audio projection"):
        tiny.pipeline(audio_encoder=encoder, audio_processor=processor)


def test_one_window_is_joint_sampling(pipe, inputs):
    for changes in ({"shared_noise": 0.5}, {"latents": torch.randn(1, 4, NUM_FRAMES, 8, 8)}):
        one = {**inputs, "context_frames": 12, **changes}
        assert tiny.relative_error(latents(pipe, one, sampling="rolling"), latents(pipe, one)) < 1e-3


def test_rolling_is_near_joint_sampling_and_follows_the_seed(pipe, inputs):
    rolled = latents(pipe, inputs, sampling="rolling", seed=1)
    assert rolled.shape == latents(pipe, inputs).shape
    assert torch.equal(latents(pipe, inputs, sampling="rolling", seed=1), rolled)
    assert not torch.equal(latents(pipe, inputs, sampling="rolling", seed=2), rolled)


def test_rolling_gives_all_output_types(pipe, inputs):
    arrays = pipe(**inputs, sampling="rolling", output_type="np").frames
    frames = list(pipe(**inputs, sampling="rolling", output_type="generator").frames)
    assert np.array_equal(np.round(arrays * 255), np.stack(frames))
    assert len(pipe(**inputs, sampling="rolling").frames) == NUM_FRAMES


def test_rolling_denoises_as_frames_are_asked_for(pipe, inputs):
    steps = []
    video = pipe(
        **inputs,
        sampling="rolling",
        output_type="generator",
        callback_on_step_end=lambda pipeline, step, timestep, tensors: steps.append(tensors["latents"].shape[2]),
    ).frames
    assert steps == []
    next(video)
    assert 0 < len(steps) < 6
    assert set(steps) == {4}
    list(video)
    assert len(steps) == 6


def test_rolling_can_be_interrupted(pipe, inputs):
    def interrupt(pipeline, step, timestep, tensors):
        pipeline._interrupt = True

    frames = pipe(**inputs, sampling="rolling", output_type="np", callback_on_step_end=interrupt).frames
    assert 0 < len(frames) < NUM_FRAMES


def test_other_calls_do_not_change_what_is_being_made(pipe, inputs):
    expected = pipe(**inputs, sampling="rolling", output_type="np").frames
    video = pipe(**inputs, sampling="rolling", output_type="generator").frames
    frames = [next(video)]
    latents(pipe, {**inputs, "num_inference_steps": 3})
    assert np.array_equal(np.stack([*frames, *video]), np.round(expected * 255))


def test_an_interruption_is_not_undone_by_another_call(pipe, inputs):
    def interrupt(pipeline, step, timestep, tensors):
        pipeline._interrupt = True

    how = {"sampling": "rolling", "output_type": "generator"}
    expected = len(list(pipe(**inputs, **how, callback_on_step_end=interrupt).frames))
    video = pipe(**inputs, **how, callback_on_step_end=interrupt).frames
    frames = [next(video)]
    latents(pipe, inputs)
    assert len([*frames, *video]) == expected < NUM_FRAMES


def test_empty_pieces_of_speech_are_passed_over_and_times_are_those_of_the_options(pipe, inputs):
    waveform = speech(0.5)
    kps = inputs["kps_sequence"][0]
    expected = stream(pipe, inputs, waveform, kps)
    pieces = [torch.empty(0), waveform[:3000], np.empty(0, np.float32), waveform[3000:]]
    assert same(stream(pipe, inputs, pieces, kps), expected)
    options = SamplingOptions(**SAMPLING, fps=FPS)
    assert same(list(pipe.stream(inputs["reference_image"], waveform, kps, options=options)), expected)
    exact = stream(pipe, inputs, waveform, kps, fps=Fraction(20))
    assert all(type(time) is float for _, time in exact)


@pytest.mark.parametrize("changes", [{"windows_per_batch": 2}, {"sampling": "diagonal"}])
def test_what_does_not_go_with_rolling(pipe, inputs, changes):
    with pytest.raises(InputError, match=next(iter(changes))):
        latents(pipe, inputs, **{"sampling": "rolling", **changes})


def test_speech_that_comes_and_speech_known_in_advance_give_the_same_frames(pipe, inputs):
    waveform = speech(1.03)
    expected = stream(pipe, inputs, waveform)
    assert len(expected) == round(1.03 * FPS)
    assert [seconds for _, seconds in expected] == [number / FPS for number in range(len(expected))]
    assert expected[0][0].shape == (SIZE, SIZE, 3)
    assert expected[0][0].dtype == np.uint8
    for chunk in (800, 5001):
        assert same(stream(pipe, inputs, iter(waveform.split(chunk))), expected)
    assert same(stream(pipe, inputs, [part.numpy() for part in waveform.split(3000)]), expected)
    assert not same(stream(pipe, inputs, waveform, seed=5), expected)
    assert not same(stream(pipe, inputs, waveform.flip(0)), expected)


def test_keypoints_as_array_callable_and_iterator(pipe, inputs):
    waveform, kps = speech(0.5), inputs["kps_sequence"]
    sequence = kps[torch.arange(10) % NUM_FRAMES]
    expected = stream(pipe, inputs, waveform, sequence)
    assert same(stream(pipe, inputs, waveform, iter(sequence.numpy())), expected)
    assert same(stream(pipe, inputs, waveform, lambda number: sequence[number]), expected)
    assert same(stream(pipe, inputs, waveform, (points.tolist() for points in sequence)), expected)
    held = kps[[0, 1] + [1] * 8]
    assert same(stream(pipe, inputs, waveform, kps[:2]), stream(pipe, inputs, waveform, held))
    assert same(stream(pipe, inputs, waveform, iter(kps[:2])), stream(pipe, inputs, waveform, held))
    assert not same(stream(pipe, inputs, waveform, held), expected)


def test_frames_come_while_speech_still_comes(pipe, inputs):
    """Also of speech without an end."""
    heard = itertools.count()
    chunks = (speech(0.1) for _ in heard)
    frames = pipe.stream(inputs["reference_image"], chunks, inputs["kps_sequence"][0], fps=FPS, **SAMPLING)
    for number, (_, seconds) in enumerate(itertools.islice(frames, 30)):
        assert seconds == number / FPS
        said = (next(heard) + 1) * 0.1  # what was asked for, and one more
        heard = itertools.count(round(said / 0.1) - 1)
        assert said < seconds + 1.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"audio_chunks": "speech.wav"}, "audio_chunks=str"),
        ({"audio_chunks": 5}, "audio_chunks=int"),
        ({"kps": 5}, "kps=int"),
        ({"kps": torch.zeros(5, 2)}, "kps=.*must be of shape"),
        ({"kps": np.full((3, 2), np.nan)}, "kps: must be finite"),
        ({"fps": 0}, "fps=0: must be 1 to 240"),
        ({"fps": float("nan")}, "fps=nan"),
        ({"fps": "30"}, "fps=30: must be"),
        ({"look_ahead_seconds": -1}, "look_ahead_seconds=-1"),
        ({"piece_seconds": 0}, "piece_seconds=0"),
        ({"context_seconds": None}, "context_seconds"),
        ({"generator": 1}, "generator=int"),
        ({"seed": -1}, "seed=-1"),
        ({"context_frames": 40}, "context_frames=40: .* up to 32"),
    ],
)
def test_errors_come_at_once(pipe, inputs, arguments, message):
    given = {"audio_chunks": speech(0.2), "kps": inputs["kps_sequence"][0], **SAMPLING, **arguments}
    with pytest.raises(InputError, match=message) as caught:
        pipe.stream(inputs["reference_image"], **given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("audio", "kps", "message"),
    [
        ([], None, "audio_chunks: holds no speech"),
        ([torch.zeros(2, 2)], None, "audio_chunks=.*must be of shape"),
        ([torch.full((9,), torch.nan)], None, "audio_chunks: must be finite"),
        ([speech(0.2), "text"], None, "audio_chunks=str"),
        ([speech(0.2)], lambda number: None, "kps=NoneType"),
        ([speech(0.2)], lambda number: torch.zeros(2, 2), "kps=.*must be of shape"),
        ([speech(0.2)], iter([]), "kps: gives no keypoints"),
    ],
)
def test_errors_of_what_comes(pipe, inputs, audio, kps, message):
    with pytest.raises(InputError, match=message):
        stream(pipe, inputs, audio, kps)


def test_nothing_grows_with_the_length(pipe, inputs):
    """As many tensors are alive late in a stream as early."""

    def is_plain(thing) -> bool:
        return type(thing) is torch.Tensor and thing.layout is torch.strided

    part = speech(0.25)
    kps = inputs["kps_sequence"][0]
    moving = (kps + number % 50 / 9 for number in itertools.count())
    options = {**SAMPLING, "fps": FPS, "context_seconds": 1.0}
    frames = pipe.stream(inputs["reference_image"], itertools.repeat(part), moving, **options)
    counts = []
    for number, _ in enumerate(frames):
        if number in (60, 160):
            gc.collect()
            counts.append(sum(thing.nbytes for thing in gc.get_objects() if is_plain(thing)))
        if number == 160:
            break
    assert counts[1] <= counts[0] * 1.02  # a frame's latents are 1 kB, its V-Kps features 8 kB
