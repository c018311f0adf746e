"""How a player shows a decoded frame: with square pixels, upright, in 8-bit RGB."""

import logging
import os
import struct

import av
import numpy as np
from av.video.reformatter import ColorTrc, Interpolation

logger = logging.getLogger(__name__)

# FFmpeg's default conversion between RGB and YUV darkens by 1.2 levels and has 2.5 times the error of this one.
EXACT_CONVERSION = (
    Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP
)
# A converter with threads of its own, inherited by a forked process, waits for them without end when it is freed there;
# DataLoader's workers are forked.
CONVERSION_THREADS = 1
# Pixels of films and broadcasts are 0.5 to 4 times as wide as high; a header that says more is wrong.
MAX_PIXEL_ASPECT = 8
MAX_PIXELS = 2**26  # of a frame, twice those of 8K: what is larger needs more memory than it is worth
HDR_CURVES = {ColorTrc.SMPTE2084: "PQ", ColorTrc.ARIB_STD_B67: "HLG"}


def to_pixels(frame: av.VideoFrame, stream: av.VideoStream) -> np.ndarray:
    """Converts a frame to what is shown: (H W 3) uint8 RGB.

    Pixels that are not square are made so by changing the width; then the display matrix is applied.
    """
    width = _square_width(frame, stream)
    if width * frame.height > MAX_PIXELS:
        raise ValueError(f"frames of {width}x{frame.height} px are too large")
    size = {} if width == frame.width else {"width": width, "height": frame.height}
    pixels = frame.to_ndarray(format="rgb24", interpolation=EXACT_CONVERSION, threads=CONVERSION_THREADS, **size)
    is_transposed, flips_x, flips_y = _orientation(frame)
    if is_transposed:
        pixels = pixels.transpose(1, 0, 2)
    return np.ascontiguousarray(pixels[:: -1 if flips_y else 1, :: -1 if flips_x else 1])


def shown_size(frame: av.VideoFrame, stream: av.VideoStream) -> tuple[int, int]:
    """Width and height of what `to_pixels` gives."""
    width = _square_width(frame, stream)
    return (frame.height, width) if _orientation(frame)[0] else (width, frame.height)


def _square_width(frame: av.VideoFrame, stream: av.VideoStream) -> int:
    """The width at which the pixels are square."""
    aspect = stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio
    if not aspect or not 1 / MAX_PIXEL_ASPECT <= aspect <= MAX_PIXEL_ASPECT:
        return frame.width
    return max(1, round(frame.width * aspect))


def _orientation(frame: av.VideoFrame) -> tuple[bool, bool, bool]:
    """From the display matrix, which phones store beside the pixels: transpose, then flip along x, flip along y.

    A pixel at (x, y) is shown at (a x + c y, b x + d y); angles between quarter turns go to the nearest.
    """
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None or len(bytes(matrix)) < 36:
        return False, False, False
    a, b, _, c, d, *_ = struct.unpack("=9i", bytes(matrix)[:36])
    if abs(b) + abs(c) > abs(a) + abs(d):
        return True, c < 0, b < 0
    return False, a < 0, d < 0


def warn_of_hdr(frame: av.VideoFrame, path: str | os.PathLike) -> None:
    """Warns if a video's colours are meant for a bright display: they come out pale."""
    curve = HDR_CURVES.get(frame.color_trc)
    if curve:
        logger.warning(
            "%s: HDR video (%s), whose colours come out pale; convert it to SDR (BT.709) for true colours", path, curve
        )
