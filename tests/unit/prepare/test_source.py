"""Sound of a piece."""

import numpy as np

from vexpress.media.audio import Audio
from vexpress.prepare.source import cut_audio


def test_sound_is_cut_and_padded_with_silence():
    audio = Audio(np.ones((2, 100), np.float32), 100)
    part = cut_audio(audio, 0.5, 1.5)
    assert part.samples.shape == (2, 100) and part.samples.sum() == 100
    assert cut_audio(audio, 3, 4).samples.sum() == 0
    before = cut_audio(audio, -0.5, 0.25)
    assert before.samples.shape == (2, 75) and before.samples.sum() == 50 and before.samples[:, :50].sum() == 0
    assert cut_audio(audio, -3, -2).samples.shape == (2, 100)
