"""Mutations of files, drawn by hypothesis: what storms, disks, editors and attackers do to bytes and to values."""

import json
import struct

import numpy as np
from hypothesis import strategies as st

HOSTILE_BYTES = (
    b"", b"\0", b"\xff" * 64, b"%!PS-Adobe-3.0 EPSF-3.0\n", b"PK\x03\x04", b"\x93NUMPY\x01\x00", b"{" * 64, b"[" * 4096,
    b"RIFF\xff\xff\xff\xffWAVE", struct.pack("<Q", 2**63), struct.pack(">I", 2**31 - 1),
    "\ud800".encode("utf-8", "surrogatepass"),
    b"cos\nsystem\n(S'touch /tmp/executed'\ntR.", b"\x80\x04\x95", b"../../etc/passwd\0",
)  # fmt: skip


@st.composite
def mutated(draw, content: bytes) -> bytes:
    """The content after one to four mutations, or bytes of no kind at all."""
    if draw(st.integers(0, 19)) == 0:
        return draw(st.binary(max_size=256))
    data = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(["cut", "flip", "insert", "remove", "repeat", "zero", "hostile", "swap"]))
        start = draw(st.integers(0, len(data)))
        length = draw(st.integers(1, 1 + min(len(data), 512)))
        if kind == "cut":
            del data[start:]
        elif kind == "flip" and data:
            for offset in draw(st.lists(st.integers(0, len(data) - 1), min_size=1, max_size=8)):
                data[offset] ^= draw(st.integers(1, 255))
        elif kind == "insert":
            data[start:start] = draw(st.binary(min_size=1, max_size=64))
        elif kind == "remove":
            del data[start : start + length]
        elif kind == "repeat":
            data[start:start] = data[start : start + length] * draw(st.integers(1, 8))
        elif kind == "zero":
            data[start : start + length] = bytes(len(data[start : start + length]))
        elif kind == "hostile":
            data[start : start + draw(st.integers(0, 32))] = draw(st.sampled_from(HOSTILE_BYTES))
        elif kind == "swap":
            other = draw(st.integers(0, len(data)))
            first, second = bytes(data[start : start + 16]), bytes(data[other : other + 16])
            data[start : start + 16], data[other : other + 16] = second, first
    return bytes(data)


NUMBERS = st.one_of(
    st.sampled_from([0, -1, 1, 2**31, 2**63, -(2**63), 10**30, 0.0, -0.0, 1e308, 5e-324, float("nan"), float("inf")]),
    st.integers(-10, 10_000),
    st.floats(),
)
TEXTS = st.one_of(
    st.sampled_from(
        ["", ".", "..", "/", "/dev/zero", "../../etc/passwd", "a\0b", "\ud800", "x" * 5000, "[", "%s{}", "\n"]
    ),
    st.text(max_size=20),
)
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXTS, inner, max_size=4)),
    max_leaves=8,
)
DEEP = ["[" * 1_000_000, '{"a":' * 1_000_000, "[" * 100_000 + "]" * 100_000]
"""JSON and YAML nested so deep that a parser without a limit ends the process."""


@st.composite
def altered(draw, value):
    """A JSON value in which some parts are others, missing or new."""
    if draw(st.integers(0, 9)) == 0:
        return draw(VALUES)
    if isinstance(value, dict):
        result = {key: draw(altered(part)) if draw(st.booleans()) else part for key, part in value.items()}
        for key in draw(st.lists(st.sampled_from(sorted(result)), max_size=1)) if result else []:
            del result[key]
        if draw(st.integers(0, 4)) == 0:
            result[draw(TEXTS)] = draw(VALUES)
        return result
    if isinstance(value, list):
        return [draw(altered(part)) for part in value][: draw(st.integers(0, len(value) + 1))]
    return draw(SCALARS) if draw(st.integers(0, 2)) == 0 else value


def dumps(value) -> bytes:
    """JSON, or something near it where a value has no JSON."""
    return json.dumps(value).encode("utf-8", "surrogatepass")


@st.composite
def arrays(draw) -> np.ndarray:
    """Arrays of odd kinds and shapes, small."""
    kind = draw(st.sampled_from(["f2", "f4", "f8", "i4", "u1", "?", "c8", "U3", "M8[s]", "i8"]))
    shape = draw(st.lists(st.integers(0, 5), max_size=4))
    array = np.zeros(shape, kind)
    if array.dtype.kind in "fiu" and array.size:
        with np.errstate(all="ignore"):
            array.flat[:] = np.resize(
                np.array(draw(st.lists(st.floats(width=32), min_size=1, max_size=6))), array.size
            ).astype(kind)
    return array
