"""Pictures: read as upright 8-bit RGB, whatever the file holds."""

import os
import struct
import warnings

import numpy as np
from PIL import Image, ImageOps

from vexpress.errors import InputError

MAX_16_BIT = 65535
# What Pillow's readers raise on damaged files.
DAMAGE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, RuntimeError, struct.error)


def load_image(path: str | os.PathLike, field: str = "reference_image_path") -> Image.Image:
    """Reads a picture as a viewer shows it.

    The camera's orientation (EXIF) is applied. Transparent parts become white, as on the page of a browser. 16-bit
    grey is scaled to 8 bits, which Pillow's own conversion clips. Of an animation, the first picture is taken.

    Args:
        path: any picture that Pillow reads.
        field: the option that gave the path, for the error.

    Returns:
        Picture of mode RGB.

    Raises:
        InputError: no such file, not a picture, damaged or cut off, too large, or pixels without a known range.
    """
    try:
        with warnings.catch_warnings():
            # Pillow warns of "bombs" from 89 megapixels, which phones have; its error at twice that stays.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                return _to_rgb(ImageOps.exif_transpose(image))
    except Image.DecompressionBombError as error:
        raise InputError(
            f"has too many pixels; allowed are {2 * Image.MAX_IMAGE_PIXELS}, make the picture smaller", field, path
        ) from error
    except Image.UnidentifiedImageError as error:
        raise InputError(f"is not a picture that Pillow reads; give a PNG or JPEG in `{field}`", field, path) from error
    except DAMAGE_ERRORS as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot be read ({reason}); give a whole PNG or JPEG in `{field}`", field, path) from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image)
        if image.mode == "F" or values.min() < 0 or values.max() > MAX_16_BIT:
            raise ValueError(f"pixels of mode {image.mode}, whose range is unknown")
        image = Image.fromarray(np.round(values * (255 / MAX_16_BIT)).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
