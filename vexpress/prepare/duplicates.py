"""Clips that a data set holds twice, found by hashes of sound and picture that survive coding, loudness and size.

Clips of one video look alike, so duplicates are those that sound alike; the picture tells the same from mirrored ones.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import scipy.fft

SOUND_BANDS, SOUND_STEPS = 9, 17
SOUND_BAND_HZ = (200, 5000)
SOUND_BITS = (SOUND_BANDS - 1) * (SOUND_STEPS - 1)
WINDOW_SAMPLES, STEP_SAMPLES, RATE_HZ = 512, 160, 16000
PICTURE_PX, PICTURE_SIDE = 32, 8
PICTURE_BITS = PICTURE_SIDE**2
NUM_ONES = np.array([bin(byte).count("1") for byte in range(256)], np.uint8)
PICTURE_SHARE = 2.0  # a picture may differ by so much more than a sound: faces are found anew in a copy


def hash_sound(waveform: np.ndarray) -> str:
    """Hashes how the balance of a clip's bands of frequencies changes: (n,) at 16 kHz -> 128 bits, hexadecimal.

    Source: Haitsma and Kalker, "A highly robust audio fingerprinting system" (2002), over the whole clip.
    """
    waveform = np.pad(waveform, (0, max(0, SOUND_STEPS * STEP_SAMPLES + WINDOW_SAMPLES - len(waveform))))
    windows = np.lib.stride_tricks.sliding_window_view(waveform, WINDOW_SAMPLES)[::STEP_SAMPLES]
    power = np.abs(np.fft.rfft(windows * np.hanning(WINDOW_SAMPLES), axis=1)) ** 2
    edges_hz = np.geomspace(*SOUND_BAND_HZ, SOUND_BANDS + 1)
    edges = np.rint(edges_hz / RATE_HZ * WINDOW_SAMPLES).astype(int)
    bands = np.add.reduceat(power[:, : edges[-1]], edges[:-1], axis=1)
    cells = np.stack([part.sum(0) for part in np.array_split(bands, SOUND_STEPS)])  # (17 9)
    balance = np.diff(np.log(cells + 1e-9), axis=1)
    return _as_hex(np.diff(balance, axis=0) > 0)


def hash_picture(thumbnails: np.ndarray) -> str:
    """Hashes what a clip mostly shows, (f h w) uint8 grey, by the signs of its lowest frequencies: 64 bits."""
    usual = np.median(thumbnails[:: max(1, len(thumbnails) // 32)], axis=0).astype(np.float32)
    small = cv2.resize(usual, (PICTURE_PX, PICTURE_PX), interpolation=cv2.INTER_AREA)
    frequencies = scipy.fft.dctn(small)[:PICTURE_SIDE, :PICTURE_SIDE]
    frequencies[0, 0] = 0  # brightness
    return _as_hex(frequencies > 0)


def mirrored(picture_bits: np.ndarray) -> np.ndarray:
    """The bits (n 64) of mirrored pictures: frequencies that are odd across change their sign."""
    is_odd = np.tile(np.arange(PICTURE_SIDE) % 2 == 1, PICTURE_SIDE)
    return picture_bits ^ is_odd


@dataclass(frozen=True)
class Duplicate:
    """A clip that is there already.

    Attributes:
        index: of the clip.
        original: index of the one that is kept.
        is_mirrored: the picture is.
        difference: share of the sound's bits that differ.
    """

    index: int
    original: int
    is_mirrored: bool
    difference: float


def find_duplicates(sounds: list[str], pictures: list[str], max_difference: float) -> list[Duplicate]:
    """Finds clips that sound as an earlier one does, and look like it, or like it in a mirror.

    Args:
        sounds: of each clip, from `hash_sound`.
        pictures: from `hash_picture`.
        max_difference: largest share of the sound's bits that differ; twice that of the picture's.
    """
    if len(sounds) < 2:
        return []
    sound, picture = _as_bits(sounds), _as_bits(pictures)
    flipped = mirrored(picture)
    found: dict[int, Duplicate] = {}
    pairs = {pair for part in _candidates(sound, max_difference) for pair in map(tuple, part)}
    for later, earlier in sorted((int(j), int(i)) for i, j in pairs):
        if later in found or earlier in found:
            continue
        difference = float((sound[later] != sound[earlier]).mean())
        same, turned = ((bits[later] != picture[earlier]).mean() for bits in (picture, flipped))
        if min(same, turned) <= PICTURE_SHARE * max_difference:
            found[later] = Duplicate(later, earlier, bool(turned < same), difference)
    return list(found.values())


def _candidates(bits: np.ndarray, max_difference: float) -> Iterator[np.ndarray]:
    """Pairs (p 2), first index first, of rows of bits that differ in few places.

    Of so many parts and one more, one is the same in both, so that only such rows are compared.
    """
    most, packed = int(max_difference * bits.shape[1]), np.packbits(bits, axis=1)
    for part in np.array_split(bits, most + 1, axis=1):
        _, keys = np.unique(np.packbits(part, axis=1), axis=0, return_inverse=True)
        keys = keys.ravel()
        order = np.argsort(keys, kind="stable")
        for group in np.split(order, np.flatnonzero(np.diff(keys[order])) + 1):
            for position in range(1, len(group)):
                earlier, later = group[:position], group[position]
                near = earlier[NUM_ONES[packed[earlier] ^ packed[later]].sum(1) <= most]
                yield np.stack([near, np.full_like(near, later)], 1)


def _as_hex(bits: np.ndarray) -> str:
    return np.packbits(bits).tobytes().hex()


def _as_bits(hashes: list[str]) -> np.ndarray:
    """(n bits) bool."""
    return np.unpackbits(np.frombuffer(bytes.fromhex("".join(hashes)), np.uint8).reshape(len(hashes), -1), axis=1) > 0
