"""Sound of a piece, and what counts as speech."""

import numpy as np
import pytest
import torch

from vexpress.media.audio import Audio
from vexpress.prepare.settings import PrepareSettings
from vexpress.prepare.source import Rejected, check_speech, cut_audio


def test_sound_is_cut_and_padded_with_silence():
    audio = Audio(np.ones((2, 100), np.float32), 100)
    part = cut_audio(audio, 0.5, 1.5)
    assert part.samples.shape == (2, 100) and part.samples.sum() == 100
    assert cut_audio(audio, 3, 4).samples.sum() == 0


@pytest.mark.parametrize(
    ("waveform", "is_speech"),
    [
        (torch.zeros(16000), False),
        (torch.full((16000,), 0.5), False),  # an offset
        (torch.randn(16000) * 1e-3, False),  # -60 dB
        (torch.randn(16000) * 0.03, True),  # -30 dB
        (torch.cat([torch.zeros(12000), torch.randn(4000) * 0.03]), True),
        (torch.cat([torch.zeros(15000), torch.randn(1000) * 0.03]), False),
    ],
)
def test_speech_is_what_is_loud_for_long_enough(waveform, is_speech):
    settings = PrepareSettings()
    if is_speech:
        check_speech(waveform, 16000, settings)
    else:
        with pytest.raises(Rejected) as rejection:
            check_speech(waveform, 16000, settings)
        assert rejection.value.reason == "no_speech" and "-45 dB" in rejection.value.detail
