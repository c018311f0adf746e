"""Fragmented MP4: plays from any prefix, sound and picture last equally long."""

import io

import av
import numpy as np
import pytest

from vexpress.server.sound import PlayedSound, SoundFormat, SoundReader
from vexpress.server.streaming import FragmentedMp4, playable_rate


@pytest.mark.parametrize(("fps", "rate"), [(30, 48000), (25, 44100), (29.97, 48000), (1, 48000)])
def test_times_are_exact_from_the_first_frame_on(fps, rate):
    written = bytearray()
    stream = FragmentedMp4(written.extend, 64, 96, fps, rate, {"comment": "made"})
    sizes = []
    for number in range(40):
        stream.add(np.full((96, 64, 3), 3 * number, np.uint8), np.zeros(stream.samples_due(), np.float32))
        sizes.append(len(written))
    stream.close()
    assert sizes[6] > sizes[3]  # it comes in pieces, not at the end
    with av.open(io.BytesIO(bytes(written))) as container:
        assert container.metadata["comment"] == "made"
        times = [frame.time for frame in container.decode(video=0)]
    np.testing.assert_allclose(times, np.arange(40) / float(stream._fps), atol=1e-3)
    with av.open(io.BytesIO(bytes(written))) as container:
        seconds = sum(frame.samples for frame in container.decode(audio=0)) / rate
    assert abs(seconds - 40 / fps) < 0.05
    half = bytes(written[: sizes[30]])
    with av.open(io.BytesIO(half)) as container:
        assert sum(1 for _ in container.decode(video=0)) > 10


def test_pcm_in_odd_pieces_is_the_same_sound():
    samples = np.random.default_rng(0).integers(-30000, 30000, (1000, 2)).astype("<i2")
    reader = SoundReader(SoundFormat(channels=2))
    data = samples.tobytes()
    pieces = [reader(data[i : i + 7]) for i in range(0, len(data), 7)]
    np.testing.assert_allclose(np.concatenate(pieces), samples.mean(axis=1) / 32768, atol=1e-6)


def test_played_sound_has_its_rate():
    assert (playable_rate(48000), playable_rate(44100), playable_rate(8000)) == (48000, 44100, 48000)
    played = PlayedSound(8000, 48000)
    for _ in range(10):
        played.add(np.zeros(800, np.float32))
    assert abs(sum(len(played.take(480)) for _ in range(1000)) - 48000) < 3000
