"""Pictures: read as a viewer shows them, upright 8-bit sRGB, whatever the file holds."""

import contextlib
import io
import logging
import os
import stat
import struct
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms

from vexpress.errors import InputError, first_line

logger = logging.getLogger(__name__)

FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "AVIF", "HEIF", "TIFF", "BMP", "GIF", "JPEG2000", "PPM")
"""Formats that are opened. Pillow knows more, such as EPS, for which it starts another program."""
COMMON_MAGIC = (b"\x89PNG", b"\xff\xd8\xff")  # of PNG and JPEG
HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
MAX_FILE_BYTES = 2**30
MAX_16_BIT = 65535
MAX_PROFILE_BYTES = 2**22
ORIENTATION_TAG = 0x0112
ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_TEXT = (b"tEXt", b"zTXt", b"iTXt")
PNG_PROFILE = b"iCCP"
PNG_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
JPEG_SCAN = 0xDA
JPEG_KEPT = (0xE0, 0xEE)  # JFIF and Adobe say how the colours are stored


def load_image(
    path: str | os.PathLike, field: str = "reference_image_path", max_pixels: int | None = None
) -> Image.Image:
    """Reads a picture as a viewer shows it.

    The camera's orientation (EXIF) is applied, and colours are converted from the file's ICC profile to sRGB.
    Transparent parts become white, as on the page of a browser. 16-bit grey is scaled to 8 bits, which Pillow's own
    conversion clips. Of an animation, the first picture is taken. Metadata that is damaged is left out with a warning.

    Args:
        path: a picture of FORMATS; HEIF needs the package pillow-heif.
        field: the option that gave the path, for the error.
        max_pixels: allowed, checked before they are read; None is twice Pillow's limit.

    Returns:
        Picture of mode RGB.

    Raises:
        InputError: no such file, not a picture, damaged or cut off, too large, or pixels without a known range.
    """
    data = _read_file(path, field)
    try:
        with warnings.catch_warnings():
            # Pillow warns of odd metadata, and of "bombs" from 89 megapixels, which phones have; its error at twice
            # that stays.
            warnings.simplefilter("ignore")
            try:
                return _decode(_without_png_text(data), path, max_pixels)
            except (Image.DecompressionBombError, MemoryError):
                raise
            except Exception:
                bare = _without_metadata(data)
                if bare is None:
                    raise
                image = _decode(bare, path, max_pixels)
                logger.warning("%s: the picture's metadata is damaged and left out", path)
                return image
    except Image.DecompressionBombError as error:
        most = max_pixels or 2 * Image.MAX_IMAGE_PIXELS
        raise InputError(f"has too many pixels; allowed are {most}, make the picture smaller", field, path) from error
    except Image.UnidentifiedImageError as error:
        if data[4:8] == b"ftyp" and data[8:12] in HEIF_BRANDS:
            raise InputError(
                "is HEIC: install its reader (pip install pillow-heif), or give a PNG or JPEG", field, path
            ) from error
        raise InputError(f"is not a picture that can be read; give a PNG or JPEG in `{field}`", field, path) from error
    except Exception as error:  # on damaged files, Pillow's readers raise anything at all
        reason = getattr(error, "strerror", None) or first_line(error)
        raise InputError(f"cannot be read ({reason}); give a whole PNG or JPEG in `{field}`", field, path) from error


def _read_file(path: str | os.PathLike, field: str) -> bytes:
    advice = f"give a PNG or JPEG in `{field}`"
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
            raise InputError(f"is a device or pipe, not a file; {advice}", field, path)
        if status.st_size > MAX_FILE_BYTES:
            raise InputError(f"is larger than {MAX_FILE_BYTES >> 20} MiB; {advice}", field, path)
        return Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror}); {advice}", field, path) from error
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"is no file name ({error}); {advice}", field, repr(os.fspath(path))) from error


def _decode(data: bytes, path: str | os.PathLike, max_pixels: int | None) -> Image.Image:
    with contextlib.suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
    if data.startswith(COMMON_MAGIC):
        Image.preinit()
    else:
        Image.init()  # all readers, whose modules take a while to load
    formats = [name for name in FORMATS if name in Image.OPEN]
    with Image.open(io.BytesIO(data), formats=formats) as image:
        if max_pixels is not None and image.width * image.height > max_pixels:
            raise Image.DecompressionBombError
        image.load()
        orientation = _orientation(image, path)  # after loading, since Pillow sets some formats upright itself
        image = to_rgb(image, path)
    return image.transpose(ORIENTATIONS[orientation]) if orientation in ORIENTATIONS else image


def _orientation(image: Image.Image, path: str | os.PathLike) -> int:
    """The camera's orientation; 1, upright, where the file says none that makes sense."""
    try:
        orientation = image.getexif().get(ORIENTATION_TAG, 1)
    except Exception as error:  # of the many ways to be damaged, none is a reason to refuse the picture
        logger.warning("%s: its Exif block is damaged and not used (%s)", path, first_line(error))
        return 1
    return orientation if isinstance(orientation, int) else 1


def to_rgb(image: Image.Image, name: str | os.PathLike) -> Image.Image:
    """A picture as a viewer shows it, see `load_image`; `name` is for warnings.

    Raises:
        ValueError: its pixels have no known range.
    """
    profile = image.info.get("icc_profile")
    profile = profile if isinstance(profile, bytes) else None
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image)
        if image.mode == "F" or values.min() < 0 or values.max() > MAX_16_BIT:
            raise ValueError(f"pixels of mode {image.mode}, whose range is unknown")
        image = Image.fromarray(np.round(values * (255 / MAX_16_BIT)).astype(np.uint8))
    if not image.has_transparency_data:
        return _to_srgb(image, profile, name)
    image = image.convert("RGBA")
    alpha = image.getchannel("A")
    image = _to_srgb(image.convert("RGB"), profile, name)
    image.putalpha(alpha)
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def given_to_rgb(image: Image.Image, field: str) -> Image.Image:
    """As `to_rgb`, of a picture that a program hands over: its file may be read as late as here.

    Raises:
        InputError: it cannot be read, or its pixels have no known range.
    """
    try:
        return to_rgb(image, field)
    except (OSError, ValueError, SyntaxError) as error:
        raise InputError(f"cannot be read ({first_line(error)})", field) from error


def _to_srgb(image: Image.Image, profile: bytes | None, name: str | os.PathLike) -> Image.Image:
    """Converts colours by an ICC profile; without one, or with one that does not fit, they are taken for sRGB."""
    if profile is None:
        return image.convert("RGB")
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if (source.profile.profile_description or "").startswith("sRGB"):
            return image.convert("RGB")
        mode = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}[source.profile.xcolor_space]
        fitting = image if image.mode == mode else image.convert(mode)
        if mode == "CMYK" and image.mode != "CMYK":
            raise ValueError("a profile of CMYK colours")
        return ImageCms.profileToProfile(
            fitting, source, ImageCms.createProfile("sRGB"), ImageCms.Intent.RELATIVE_COLORIMETRIC, outputMode="RGB"
        )
    except Exception as error:  # a profile is no reason to refuse the picture
        logger.warning("%s: its colour profile is not used (%s)", name, first_line(error))
        return image.convert("RGB")


def _without_png_text(data: bytes) -> bytes:
    """A PNG without its texts and without a profile that unpacks to megabytes, which Pillow refuses; other files whole.

    Image generators and editors write texts of any size and kind.
    """
    if not data.startswith(PNG_SIGNATURE):
        return data
    return PNG_SIGNATURE + b"".join(
        chunk
        for kind, chunk in _png_chunks(data)
        if kind not in PNG_TEXT and not (kind == PNG_PROFILE and _is_large_profile(chunk))
    )


def _is_large_profile(chunk: bytes) -> bool:
    packed = chunk[8:-4].partition(b"\0")[2][1:]
    with contextlib.suppress(zlib.error):
        return len(zlib.decompressobj().decompress(packed, MAX_PROFILE_BYTES)) >= MAX_PROFILE_BYTES
    return False


def _without_metadata(data: bytes) -> bytes | None:
    """A PNG or JPEG with its pixels alone; None for other formats."""
    if data.startswith(PNG_SIGNATURE):
        return PNG_SIGNATURE + b"".join(chunk for kind, chunk in _png_chunks(data) if kind in PNG_PIXELS)
    if data.startswith(b"\xff\xd8"):
        return b"\xff\xd8" + b"".join(_jpeg_segments(data))
    return None


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yields the kind and the bytes of each chunk, up to where the file can be read."""
    position = len(PNG_SIGNATURE)
    while position + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        yield kind, data[position : position + 12 + length]
        position += 12 + length


def _jpeg_segments(data: bytes) -> Iterator[bytes]:
    """Yields the segments, without metadata, and at last all from the first scan on."""
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker, length = struct.unpack_from(">xBH", data, position)
        if marker == JPEG_SCAN:
            break
        is_metadata = 0xE0 <= marker <= 0xEF and marker not in JPEG_KEPT or marker == 0xFE
        if not is_metadata:
            yield data[position : position + 2 + length]
        position += 2 + length
    yield data[position:]
