"""Duplicates are found through coding, loudness and mirrors, and clips of one person are none."""

import numpy as np
import pytest

from vexpress.prepare.duplicates import find_duplicates, hash_picture, hash_sound

RATE_HZ = 16000


def speech_like(seed: int, seconds: float = 3.0) -> np.ndarray:
    """Noise of all frequencies whose colour changes every 0.15 s, as syllables do."""
    rng = np.random.default_rng(seed)
    length, syllable = round(seconds * RATE_HZ), round(0.15 * RATE_HZ)
    parts = []
    for _ in range(length // syllable):
        spectrum = np.fft.rfft(rng.standard_normal(syllable))
        gains = np.exp(rng.uniform(-3, 0, 12))
        parts.append(np.fft.irfft(spectrum * np.interp(np.linspace(0, 1, len(spectrum)), np.linspace(0, 1, 12), gains)))
    return (0.1 * np.concatenate(parts)).astype(np.float32)


def picture(seed: int) -> np.ndarray:
    """(4 64 64) uint8: smooth, as portraits are from afar, and not symmetric."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:64, :64] / 64
    image = sum(rng.normal() * np.cos(np.pi * (i * x + j * y) + rng.uniform(0, 3)) for i in range(4) for j in range(4))
    image = 128 + 25 * image
    return np.stack([image.clip(0, 255)] * 4).astype(np.uint8)


def test_a_copy_is_found_though_it_was_coded_anew():
    rng = np.random.default_rng(0)
    waveforms = [speech_like(seed) for seed in range(6)]
    waveforms.append(0.4 * waveforms[2] + rng.normal(0, 2e-4, len(waveforms[2])).astype(np.float32))
    pictures = [picture(seed) for seed in range(6)]
    noisy = pictures[2].astype(int) + rng.integers(-6, 7, pictures[2].shape)
    pictures.append(noisy.clip(0, 255).astype(np.uint8))
    hashes = [hash_sound(w) for w in waveforms], [hash_picture(p) for p in pictures]
    [found] = find_duplicates(*hashes, 0.1)
    assert (found.index, found.original, found.is_mirrored) == (6, 2, False) and found.difference < 0.1
    pictures[-1] = pictures[-1][:, :, ::-1]
    [found] = find_duplicates(hashes[0], [hash_picture(p) for p in pictures], 0.1)
    assert (found.index, found.original, found.is_mirrored) == (6, 2, True)


def test_one_person_who_says_other_things_is_none():
    sounds = [hash_sound(speech_like(seed)) for seed in range(20)]
    assert find_duplicates(sounds, [hash_picture(picture(0))] * 20, 0.1) == []


def test_the_same_sound_with_another_person_is_none():
    sounds = [hash_sound(speech_like(0))] * 2
    assert find_duplicates(sounds, [hash_picture(picture(0)), hash_picture(picture(1))], 0.05) == []


def test_all_copies_are_of_the_first():
    found = find_duplicates([hash_sound(speech_like(0))] * 4, [hash_picture(picture(0))] * 4, 0.0)
    assert [(one.index, one.original) for one in found] == [(1, 0), (2, 0), (3, 0)]


@pytest.mark.parametrize("most", [0, 3, 12])
def test_all_pairs_that_are_near_are_compared(most):
    """The parts of the bits that are looked up find what comparing all with all finds."""
    rng = np.random.default_rng(most)
    bits = rng.random((60, 128)) < 0.5
    for copy in range(30, 60):
        bits[copy] = bits[copy - 30]
        bits[copy, rng.choice(128, int(rng.integers(0, 25)), replace=False)] ^= True
    sounds = [np.packbits(row).tobytes().hex() for row in bits]
    found = {(one.original, one.index) for one in find_duplicates(sounds, ["0" * 16] * 60, most / 128)}
    distances = (bits[:, None] != bits).sum(2)
    assert found == {(int(i), int(j)) for i, j in zip(*np.nonzero(distances <= most)) if i < j}


def test_silence_has_a_hash():
    assert len(hash_sound(np.zeros(100, np.float32))) == 32
