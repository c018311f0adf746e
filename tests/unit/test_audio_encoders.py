"""Speech encoders of each type: loaded, read, cut into chunks and streams, and told apart."""

import json

import pytest
import safetensors
import safetensors.torch
import torch
from transformers import WhisperModel

from tests import tiny
from vexpress.audio_encoders import EncoderRecord, count_steps, describe_encoder, hidden_states, step_samples
from vexpress.audio_features import AudioStream, encode_audio
from vexpress.errors import InputError
from vexpress.weights import load_audio_encoder

RATE = 16000
WHOLE = {"piece_seconds": 60, "context_seconds": 5, "look_ahead_seconds": 5}
LIVE = {"piece_seconds": 0.2, "context_seconds": 1.0, "look_ahead_seconds": 0.3}


@pytest.fixture(scope="module")
def encoders():
    return {name: tiny.speech_encoder(name) for name in tiny.ENCODERS}


def speech(num_samples: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(num_samples, generator=generator) * torch.sin(torch.arange(num_samples) / 4000) * 0.2 + 0.05


def save(folder, networks) -> None:
    for part in networks:
        part.save_pretrained(folder)


@torch.no_grad()
def stream(networks, waveform, chunk: int = 10**9, **settings) -> torch.Tensor:
    audio = AudioStream(*networks, **settings)
    parts = [states for part in waveform.split(chunk) for states in audio.push(part)]
    return torch.cat([*parts, *audio.finish()])


# ---- loading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", tiny.ENCODERS)
@torch.no_grad()
def test_a_folder_says_by_itself_which_encoder_it_holds(encoders, tmp_path, name):
    waveform = speech(RATE)
    save(tmp_path, encoders[name])
    loaded = load_audio_encoder(tmp_path)
    assert loaded[0].config.model_type == name
    assert torch.equal(encode_audio(*loaded, waveform), encode_audio(*encoders[name], waveform))
    save(tmp_path / "again", loaded)
    assert describe_encoder(*load_audio_encoder(tmp_path / "again")) == describe_encoder(*encoders[name])


@pytest.mark.parametrize("name", tiny.ENCODERS)
@torch.no_grad()
def test_a_layer_or_a_weighted_sum_of_layers_is_read(encoders, tmp_path, name):
    waveform = speech(RATE)
    save(tmp_path, encoders[name])
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())

    def encoded(layers) -> torch.Tensor:
        path.write_text(json.dumps({**config, "vexpress_layers": layers}))
        networks = load_audio_encoder(tmp_path)
        assert describe_encoder(*networks).layers == (tuple(layers) if isinstance(layers, list) else layers)
        return encode_audio(*networks, waveform)

    states = [encoded(number) for number in range(3)]
    torch.testing.assert_close(states[2], encoded(None))  # the last layer, since the norm stands before its end
    assert not torch.allclose(states[1], states[2], atol=0.1)
    mixed = encoded([0.5, 0.0, 2.0])
    torch.testing.assert_close(mixed, 0.5 * states[0] + 2.0 * states[2])
    for broken in (3, -1, True, "last", [1.0], [1.0, 2.0, float("nan")]):
        with pytest.raises(InputError, match="^audio_encoder_path=.*vexpress_layers is"):
            encoded(broken)


def test_whisper_is_found_in_a_folder_with_its_decoder(encoders, tmp_path):
    encoder, processor = encoders["whisper"]
    whole = WhisperModel(encoder.config)
    whole.encoder.load_state_dict(encoder.state_dict())
    save(tmp_path, (whole, processor))
    weights = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert any("decoder" in key for key in weights)
    loaded, _ = load_audio_encoder(tmp_path, torch.float16)
    assert loaded.dtype == torch.float16 and not any("decoder" in name for name in loaded.state_dict())
    for prefix in ("model.", ""):  # with a head for words, and without
        renamed = {prefix + key.removeprefix("model."): tensor.clone() for key, tensor in weights.items()}
        safetensors.torch.save_file(renamed, tmp_path / "model.safetensors", metadata={"format": "pt"})
        assert describe_encoder(*load_audio_encoder(tmp_path)) == describe_encoder(encoder, processor)


@pytest.mark.parametrize(
    ("name", "file", "changes", "message"),
    [
        ("wav2vec2", "config.json", {"model_type": "bert"}, "model_type is 'bert'; allowed are wav2vec2, hubert"),
        ("hubert", "config.json", {"do_stable_layer_norm": True}, "do_stable_layer_norm"),
        ("wavlm", "config.json", {"add_adapter": True}, "add_adapter"),
        ("hubert", "config.json", {"model_type": "wavlm"}, "weights not fit for WavLMModel"),
        ("whisper", "config.json", {"activation_function": "relu"}, "activation_function"),
        ("whisper", "config.json", {"max_source_positions": 1500}, "makes spectra of 16 x 200"),
        ("whisper", "config.json", {"encoder_layers": 3}, "missing"),
        ("whisper", "preprocessor_config.json", {"do_normalize": True}, "do_normalize"),
        ("whisper", "preprocessor_config.json", {"hop_length": 100}, "hop_length"),
        ("whisper", "preprocessor_config.json", {"feature_size": 80}, "makes spectra of 80 x 200"),
    ],
)
def test_what_does_not_go_together_is_refused(encoders, tmp_path, name, file, changes, message):
    save(tmp_path, encoders[name])
    path = tmp_path / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(InputError, match=message) as caught:
        load_audio_encoder(tmp_path)
    assert caught.value.field == "audio_encoder_path"
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", tiny.ENCODERS)
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("attn_implementation", "owner/kernel"),
        ("_attn_implementation", "owner/kernel"),
        ("_attn_implementation", "flash_attention_2"),
        ("_attn_implementation", {"": "owner/kernel"}),
        ("_experts_implementation", "owner/kernel"),
        ("quantization_config", {"quant_method": "fp8"}),
    ],
)
def test_a_folder_cannot_choose_code(encoders, tmp_path, name, key, value):
    """The library would fetch a kernel, which is native code, from a hub, if the package that does so is there."""
    save(tmp_path, encoders[name])
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(InputError, match=f"^audio_encoder_path=.*config.json: {key} is .*may run other code"):
        load_audio_encoder(tmp_path)


@pytest.mark.parametrize("name", tiny.ENCODERS)
@torch.no_grad()
def test_attention_is_the_same_whatever_a_folder_says(encoders, tmp_path, name):
    waveform = speech(RATE)
    save(tmp_path, encoders[name])
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    for value in (None, "eager", "sdpa"):
        path.write_text(json.dumps({**config, "_attn_implementation": value, "_attn_implementation_autoset": True}))
        assert torch.equal(
            encode_audio(*load_audio_encoder(tmp_path), waveform), encode_audio(*encoders[name], waveform)
        )


def test_an_adapter_in_a_folder_is_refused(encoders, tmp_path):
    save(tmp_path, encoders["hubert"])
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match="holds an adapter"):
        load_audio_encoder(tmp_path)


# ---- chunks and streams ----------------------------------------------------------------------------------------------


@torch.no_grad()
def test_whisper_within_its_window_is_what_the_library_makes(encoders):
    encoder, processor = encoders["whisper"]
    waveform = speech(RATE)
    features = processor(waveform.numpy(), sampling_rate=RATE, return_tensors="pt").input_features
    assert torch.equal(encode_audio(encoder, processor, waveform), encoder(features).last_hidden_state[0, :50])


@pytest.mark.parametrize("name", tiny.ENCODERS)
@pytest.mark.parametrize("num_samples", [1, 319, 401, 5000, 2 * RATE + 100])
@torch.no_grad()
def test_one_piece_is_the_whole_clip(encoders, name, num_samples):
    waveform = speech(num_samples)
    expected = encode_audio(*encoders[name], waveform)
    assert len(expected) == count_steps(encoders[name][0].config, num_samples)
    found = stream(encoders[name], waveform, 1000, **WHOLE)
    assert found.shape == expected.shape
    if num_samples > 400:  # below, silence is added before or after the mean is taken away
        assert tiny.relative_error(found, expected) < 1e-5
    assert stream(encoders[name], waveform, 999, **LIVE).shape == expected.shape


@torch.no_grad()
def test_whispers_windows_are_the_same_in_a_stream(encoders):
    waveform = speech(7 * RATE + 77)  # of which 2 s are heard at once
    expected = encode_audio(*encoders["whisper"], waveform)
    assert torch.equal(stream(encoders["whisper"], waveform, 4321, **WHOLE), expected)


@pytest.mark.parametrize("name", tiny.ENCODERS)
def test_results_do_not_depend_on_how_speech_comes(encoders, name):
    waveform = speech(2 * RATE)
    expected = stream(encoders[name], waveform, **LIVE)
    assert torch.equal(stream(encoders[name], waveform, 3217, **LIVE), expected)


@pytest.mark.parametrize("name", tiny.ENCODERS)
@pytest.mark.parametrize("is_live", [False, True])
@torch.no_grad()
def test_each_state_is_at_its_time(encoders, name, is_live):
    """A gap in noise, in several of Whisper's windows, is found in the states at its place."""
    waveform = 0.1 * torch.randn(3 * RATE, generator=torch.Generator().manual_seed(0))
    live = {**LIVE, "piece_seconds": 0.6, "statistics": (0.0, 0.01)}

    def encode(samples: torch.Tensor) -> torch.Tensor:
        return stream(encoders[name], samples, **live) if is_live else encode_audio(*encoders[name], samples)

    receptive_field, hop = step_samples(encoders[name][0].config)
    middle = 0 if name == "whisper" else receptive_field / 2 / hop
    whole = encode(waveform)
    for step in (25, 72, 121):
        changed = waveform.clone()
        changed[step * hop - 800 : step * hop + 800] = 0
        difference = (encode(changed) - whole).norm(dim=1)
        assert abs(int(difference.argmax()) - (step - middle)) <= 2.5


@torch.no_grad()
def test_silence_beyond_the_end_does_not_matter_to_what_is_heard_of_whisper(encoders):
    networks = encoders["whisper"]
    states = hidden_states(*networks, speech(RATE))
    assert torch.equal(hidden_states(*networks, torch.cat([speech(RATE), torch.zeros(RATE // 2)]))[:50], states)


# ---- who made them ---------------------------------------------------------------------------------------------------


def test_records_tell_encoders_apart(encoders):
    records = {name: describe_encoder(*networks) for name, networks in encoders.items()}
    assert len({record.digest for record in records.values()}) == len(records)
    for name, record in records.items():
        assert (record.type, record.layers, record.states_hz) == (name, None, 50.0)
        assert EncoderRecord.from_text(record.to_text()) == record
        assert record.fits(record) and not any(record.fits(r) for n, r in records.items() if n != name)
    encoder, processor = tiny.speech_encoder("hubert", vexpress_layers=[1.0, 0.5, 0.5])
    other = describe_encoder(encoder, processor)
    assert other.digest == records["hubert"].digest and not other.fits(records["hubert"])
    assert EncoderRecord.from_text(other.to_text()) == other
    assert describe_encoder(encoder.half(), processor) == other  # as a model folder holds it
    with torch.no_grad():
        encoder.encoder.layers[0].attention.k_proj.weight[0, 0] += 0.01
    assert describe_encoder(encoder, processor).digest != other.digest


def test_states_of_unknown_origin_are_the_released_encoders(encoders):
    unknown = EncoderRecord()
    assert unknown.fits(describe_encoder(*encoders["wav2vec2"]))
    assert not unknown.fits(describe_encoder(*encoders["hubert"]))


@pytest.mark.parametrize(
    "text",
    [
        b"bytes", "", "[]", "{}", "[" * 9000, "x" * 20_000, '{"type": "hubert"}',
        '{"type": 1, "digest": "", "layers": null, "states_hz": 50}',
        '{"type": "hubert", "digest": "", "layers": ["a"], "states_hz": 50}',
        '{"type": "hubert", "digest": "", "layers": [1' + 400 * "0" + '], "states_hz": 50}',
        '{"type": "' + 65 * "x" + '", "digest": "", "layers": null, "states_hz": 50}',
        '{"type": "hubert", "digest": "", "layers": null, "states_hz": NaN}',
        '{"type": "hubert", "digest": "", "layers": null, "states_hz": 0}',
    ],
)  # fmt: skip
def test_broken_records(text):
    with pytest.raises(ValueError):
        EncoderRecord.from_text(text)
