"""What a player shows of a frame: square pixels, upright, mirrored where the file says so."""

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.reformatter import ColorTrc

from vexpress.errors import InputError
from vexpress.media import display
from vexpress.media.random_access import read_frames_at
from vexpress.media.video import probe_video, read_frames

# Matrices of the track header, and what they do to a picture.
ORIENTATIONS = {
    (1, 0, 0, 1): lambda picture: picture,
    (-1, 0, 0, 1): lambda picture: picture[:, ::-1],
    (1, 0, 0, -1): lambda picture: picture[::-1],
    (-1, 0, 0, -1): lambda picture: picture[::-1, ::-1],
    (0, 1, -1, 0): lambda picture: np.rot90(picture, -1),
    (0, -1, 1, 0): lambda picture: np.rot90(picture),
    (0, 1, 1, 0): lambda picture: picture.transpose(1, 0, 2),
    (0, -1, -1, 0): lambda picture: picture[::-1, ::-1].transpose(1, 0, 2),
    (0, 0, 0, 0): lambda picture: picture,
}


def picture(height: int = 64, width: int = 96) -> np.ndarray:
    """White in one corner, grey along the upper edge."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 4] = 120
    pixels[: height // 4, : width // 4] = 255
    return pixels


def write(path: Path, pixels: np.ndarray, aspect: Fraction | None = None, curve: ColorTrc | None = None) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "10"})
        stream.height, stream.width, _ = pixels.shape
        stream.pix_fmt = "yuv420p"
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        if curve:
            stream.codec_context.color_trc = curve
        for index in range(3):
            frame = av.VideoFrame.from_ndarray(pixels)
            frame.pts, frame.time_base = index, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def read_in_every_way(path: Path) -> list[np.ndarray]:
    frames = [frame for _, frame in read_frames(path)]
    info = probe_video(path)
    assert len(frames) == 3 and (info.height, info.width) == frames[0].shape[:2]
    assert all(frame.flags.c_contiguous for frame in frames)
    return [*frames, *read_frames_at(path, [2, 0])]


@pytest.mark.parametrize("matrix", ORIENTATIONS)
def test_the_display_matrix_is_applied_with_its_mirror(tmp_path, matrix):
    path = write(tmp_path / "a.mp4", picture())
    data = bytearray(path.read_bytes())
    a, b, c, d = (value << 16 for value in matrix)
    header = data.find(b"tkhd") + 44
    data[header : header + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    expected = ORIENTATIONS[matrix](picture())
    for frame in read_in_every_way(path):
        assert frame.shape == expected.shape
        assert np.abs(frame.astype(int) - expected).mean() < 5


@pytest.mark.parametrize("aspect", [Fraction(4, 3), Fraction(3, 4), Fraction(16, 15), Fraction(8, 9), Fraction(2)])
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "mov"])
def test_pixels_are_made_square(tmp_path, aspect, suffix):
    path = write(tmp_path / f"a.{suffix}", picture(), aspect)
    expected = picture(width=round(96 * aspect))
    for frame in read_in_every_way(path):
        assert frame.shape == expected.shape
        assert np.abs(frame.astype(int) - expected).mean() < 8


def test_a_senseless_aspect_is_not_applied(tmp_path):
    path = write(tmp_path / "a.mp4", picture(), Fraction(1, 100))
    assert all(frame.shape == picture().shape for frame in read_in_every_way(path))


def test_frames_beyond_the_limit_are_refused(tmp_path, monkeypatch):
    path = write(tmp_path / "a.mp4", picture())
    monkeypatch.setattr(display, "MAX_PIXELS", 1000)
    with pytest.raises(InputError, match="a.mp4: .*frames of 96x64 px are too large"):
        next(read_frames(path))


@pytest.mark.parametrize(("curve", "name"), [(ColorTrc.SMPTE2084, "PQ"), (ColorTrc.ARIB_STD_B67, "HLG")])
def test_hdr_is_warned_about_once(tmp_path, caplog, curve, name):
    assert len(list(read_frames(write(tmp_path / "a.mp4", picture(), curve=curve)))) == 3
    [record] = caplog.records
    assert f"HDR video ({name})" in record.getMessage()
    caplog.clear()
    list(read_frames(write(tmp_path / "b.mp4", picture(), curve=ColorTrc.BT709)))
    assert not caplog.records
