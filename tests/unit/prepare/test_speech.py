"""What counts as speech: loud enough, and a voice."""

import numpy as np
import pytest
import torch

from vexpress.media.audio import load_audio
from vexpress.model_folder import EMBEDDED_MODEL_DIR
from vexpress.prepare.quality import SPEECH_LIMITS, Rejected, check_limits
from vexpress.prepare.settings import PrepareSettings
from vexpress.prepare.speech import RATE_HZ, compute_speech_probabilities, measure_speech

NOISE = np.random.default_rng(0).standard_normal(RATE_HZ).astype(np.float32)


def reason_of(waveform: np.ndarray, detector: str) -> str | None:
    settings = PrepareSettings(speech_detector=detector)
    try:
        check_limits(SPEECH_LIMITS, measure_speech(waveform, settings), settings)
    except Rejected as rejection:
        assert rejection.quality and "`min_speech_fraction` is 0.2" in rejection.detail
        return rejection.reason
    return None


@pytest.mark.parametrize(
    ("waveform", "is_loud"),
    [
        (np.zeros(RATE_HZ, np.float32), False),
        (np.full(RATE_HZ, 0.5, np.float32), False),  # an offset
        (NOISE * 1e-3, False),  # -60 dB
        (NOISE * 0.03, True),  # -30 dB
        (np.concatenate([np.zeros(12000, np.float32), NOISE[:4000] * 0.03]), True),
        (np.concatenate([np.zeros(15000, np.float32), NOISE[:1000] * 0.03]), False),
        (np.zeros(100, np.float32), False),  # less than a window
    ],
)
def test_sound_must_be_loud_for_long_enough(waveform, is_loud):
    assert reason_of(waveform, "loudness") == (None if is_loud else "no_speech")


def test_a_voice_is_speech_and_music_or_noise_is_none():
    t = np.arange(3 * RATE_HZ) / RATE_HZ
    chord = sum(np.sin(2 * np.pi * hz * t) for hz in (220, 277, 330)) * np.exp(-(t % 0.5) * 4) * 0.1
    voice = load_audio(EMBEDDED_MODEL_DIR / "examples" / "speech.wav").resampled_mono(RATE_HZ).numpy()
    assert reason_of(voice, "silero") is None
    assert reason_of(chord.astype(np.float32), "silero") == "not_speech"
    assert reason_of(np.tile(NOISE * 0.03, 3), "silero") == "not_speech"
    assert reason_of(0 * voice, "silero") == "no_speech"


def test_looking_for_speech_changes_nothing_else():
    """Importing silero_vad sets PyTorch's threads to one; the same sound gives the same probabilities."""
    num_threads = torch.get_num_threads()
    first = compute_speech_probabilities(NOISE)
    assert torch.get_num_threads() == num_threads and len(first) == -(-RATE_HZ // 512)
    compute_speech_probabilities(NOISE[:5000] * 3)
    np.testing.assert_array_equal(compute_speech_probabilities(NOISE), first)
