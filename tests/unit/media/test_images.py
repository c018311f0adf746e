import io
import os
import struct
import subprocess
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from vexpress.errors import InputError
from vexpress.media.images import load_image

ODD_NAME = "-weird 'na\"me [1] %d ünï: a.png"
GRADIENT = np.stack([np.tile(np.arange(0, 256, 8, dtype=np.uint8), (20, 1))] * 3, -1)


def saved(folder, image, name="a.png", **options):
    path = folder / name
    image.save(path, **options)
    return path


def test_rgb_is_returned_as_it_is(tmp_path):
    path = saved(tmp_path, Image.fromarray(GRADIENT), ODD_NAME)
    image = load_image(path)
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image), GRADIENT)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.webp"])
@pytest.mark.parametrize(
    ("orientation", "corner", "second"),
    [
        (1, (0, 0), (0, 1)),
        (2, (0, -1), (0, -2)),
        (3, (-1, -1), (-1, -2)),
        (4, (-1, 0), (-1, 1)),
        (5, (0, 0), (1, 0)),
        (6, (0, -1), (1, -1)),
        (7, (-1, -1), (-2, -1)),
        (8, (-1, 0), (-2, 0)),
    ],
)
def test_the_orientation_of_the_camera_is_applied(tmp_path, name, orientation, corner, second):
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[0, :2] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if name == "a.webp" else {}
    image = np.asarray(load_image(saved(tmp_path, Image.fromarray(pixels), name, exif=exif, **options)))
    assert image.shape == ((32, 16, 3) if orientation >= 5 else (16, 32, 3))
    assert image[corner].tolist() == image[second].tolist() == [255, 255, 255]
    assert image.sum() == 6 * 255


# Metadata -------------------------------------------------------------------------------------------------------------
def png_with(chunk: bytes, content: bytes) -> bytes:
    """GRADIENT as a PNG with one more chunk."""
    whole = io.BytesIO()
    Image.fromarray(GRADIENT).save(whole, "PNG")
    data, body = whole.getvalue(), chunk + content
    added = struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))
    return data[:33] + added + data[33:]


BROKEN_EXIF = (
    b"",
    b"II*\0\x08\0\0\0",
    b"MM\0*\xff\xff\xff\xff",
    b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x63\0\0\0\0\0\0\0",  # orientation 99
    b"II*\0\x08\0\0\0\x01\0\x12\x01\x05\0\xff\xff\xff\xff\x63\0\0\0\0\0\0\0",  # an endless fraction
    b"II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x04\0\0\0abc\0\0\0\0\0",  # a text
    b"nonsense" * 1000,
)


@pytest.mark.parametrize("exif", BROKEN_EXIF)
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp"])
def test_a_broken_exif_block_does_not_refuse_the_picture(tmp_path, name, exif):
    path = tmp_path / name
    options = {"lossless": True} if name == "a.webp" else {"quality": 100, "subsampling": 0} if name == "a.jpg" else {}
    if name == "a.png":
        path.write_bytes(png_with(b"eXIf", exif))
    else:
        Image.fromarray(GRADIENT).save(path, exif=b"Exif\0\0" + exif, **options)
    assert np.abs(np.asarray(load_image(path)).astype(int) - GRADIENT).max() <= (3 if name == "a.jpg" else 0)


@pytest.mark.parametrize(
    ("chunk", "content"),
    [
        (b"tEXt", b"exif\0b'Exif'"),
        (b"tEXt", b"parameters\0" + b"x" * 3_000_000),
        (b"zTXt", b"workflow\0\0" + zlib.compress(bytes(70_000_000))),
        (b"zTXt", b"workflow\0\0damaged"),
        (b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n  4\nzz")),
        (b"iTXt", b"exif\0\0\0en\0exif\0b'Exif'"),
        (b"iTXt", b"icc_profile\0\0\0en\0\0text"),
        (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0<broken"),
        (b"iCCP", b"icc\0\0damaged"),
        (b"iCCP", b"icc\0\0" + zlib.compress(bytes(20_000_000))),
        (b"iCCP", b"icc\0\0" + zlib.compress(b"no profile" * 100)),
        (b"pHYs", b"short"),
        (b"gAMA", b""),
        (b"cHRM", b"odd"),
    ],
)
def test_metadata_of_any_kind_and_size_does_not_refuse_a_png(tmp_path, chunk, content):
    path = tmp_path / "a.png"
    path.write_bytes(png_with(chunk, content))
    np.testing.assert_array_equal(np.asarray(load_image(path)), GRADIENT)


def test_damaged_segments_do_not_refuse_a_jpeg(tmp_path):
    whole = io.BytesIO()
    Image.fromarray(GRADIENT).save(whole, "JPEG", quality=100, subsampling=0)
    data = whole.getvalue()
    for marker in (0xE1, 0xE2, 0xED, 0xFE):
        for content in (b"", b"ICC_PROFILE\0\x01\x09", b"MPF\0II*\0\xff", b"Photoshop 3.0\x008BIM", b"Exif\0\0"):
            segment = struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content
            (tmp_path / "a.jpg").write_bytes(data[:2] + segment + data[2:])
            image = np.asarray(load_image(tmp_path / "a.jpg"))
            assert np.abs(image.astype(int) - GRADIENT).max() <= 3


def srgb_profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def swapped_profile() -> bytes:
    """sRGB with the primaries of red and blue exchanged: what it shows is the picture with these channels exchanged."""
    data = bytearray(srgb_profile().replace(b"s\0R\0G\0B", b"n\0o\0n\0e").replace(b"\0s\0R\0G\0B", b"\0n\0o\0n\0e"))
    red, blue = data.find(b"rXYZ"), data.find(b"bXYZ")
    data[red : red + 4], data[blue : blue + 4] = b"bXYZ", b"rXYZ"
    return bytes(data)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "a.webp"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_colours_are_converted_from_the_profile_to_srgb(tmp_path, name, mode):
    if (name, mode) == ("a.jpg", "RGBA"):
        pytest.skip("JPEG has no transparency")
    pixels = np.full((16, 16, 3), (200, 60, 20), np.uint8)
    options = {"lossless": True} if name == "a.webp" else {"quality": 100} if name == "a.jpg" else {}
    path = saved(tmp_path, Image.fromarray(pixels).convert(mode), name, icc_profile=swapped_profile(), **options)
    assert np.abs(np.asarray(load_image(path)).astype(int) - (20, 60, 200)).max() <= 3


def test_srgb_profiles_change_nothing(tmp_path):
    path = saved(tmp_path, Image.fromarray(GRADIENT), icc_profile=srgb_profile())
    np.testing.assert_array_equal(np.asarray(load_image(path)), GRADIENT)


def test_only_named_formats_are_opened(tmp_path, monkeypatch):
    """EPS would start Ghostscript."""
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("another program was started"))
    for kind in ("EPS", "PDF", "TGA", "ICNS", "PCX", "IM"):
        path = tmp_path / f"{kind}.png"
        Image.fromarray(GRADIENT).resize((32, 32)).save(path, kind)
        with pytest.raises(InputError, match="is not a picture that can be read"):
            load_image(path)


def test_heic_is_read_with_its_package_and_named_without(tmp_path):
    try:
        import pillow_heif
    except ImportError:
        path = tmp_path / "a.heic"
        path.write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100))
        with pytest.raises(InputError, match="is HEIC: .*pip install pillow-heif"):
            load_image(path)
        return
    pillow_heif.register_heif_opener()
    image = load_image(saved(tmp_path, Image.fromarray(GRADIENT), "a.heic", quality=100))
    assert np.abs(np.asarray(image).astype(int) - GRADIENT).mean() < 3


def test_pipes_and_impossible_names_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for path, reason in ((tmp_path / "pipe.png", "device or pipe"), ("a\0b.png", "is no file name")):
        with pytest.raises(InputError, match=reason):
            load_image(path)


def test_16_bit_grey_keeps_its_range(tmp_path):
    values = np.array([[0, 257, 32768, 65535]], np.uint16)
    image = np.asarray(load_image(saved(tmp_path, Image.fromarray(values))))
    assert image[0].tolist() == [[0] * 3, [1] * 3, [128] * 3, [255] * 3]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB"])
def test_transparent_parts_become_white(tmp_path, mode):
    if mode in ("RGBA", "LA"):
        pixels = np.zeros((4, 8, len(mode)), np.uint8)
        pixels[:, :4, -1] = 255
        path = saved(tmp_path, Image.fromarray(pixels, mode))
    else:  # one colour is declared transparent
        pixels = np.zeros((4, 8, 3), np.uint8)
        pixels[:, 4:] = (0, 255, 0)
        image = Image.fromarray(pixels)
        image = image.quantize(2) if mode == "P" else image
        transparent = image.getpixel((7, 0))
        path = saved(tmp_path, image, transparency=transparent)
    image = np.asarray(load_image(path))
    assert (image[:, :4] == 0).all()
    assert (image[:, 4:] == 255).all()


def test_half_transparent_is_half_white(tmp_path):
    image = load_image(saved(tmp_path, Image.new("RGBA", (4, 4), (0, 0, 0, 127))))
    assert image.getpixel((1, 1)) == (128, 128, 128)


@pytest.mark.parametrize(
    ("mode", "suffix"), [("L", "png"), ("1", "png"), ("P", "gif"), ("CMYK", "jpg"), ("YCbCr", "jpg"), ("CMYK", "tif")]
)
def test_other_modes_show_the_same_picture(tmp_path, mode, suffix):
    pixels = GRADIENT if mode != "1" else np.where(GRADIENT > 127, 255, 0).astype(np.uint8)
    picture = Image.fromarray(pixels)
    path = saved(tmp_path, picture.quantize(64) if mode == "P" else picture.convert(mode), f"a.{suffix}")
    image = load_image(path)
    assert image.mode == "RGB"
    assert np.abs(np.asarray(image).astype(int) - pixels).mean() < 3


def test_each_unusable_file_is_one_clear_line(tmp_path, monkeypatch):
    whole = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(whole, "PNG")
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty.png").touch()
    (tmp_path / "cut.png").write_bytes(whole.getvalue()[:3000])
    (tmp_path / "large.png").write_bytes(whole.getvalue())
    cases = {
        "No such file": tmp_path / "missing.png",
        "Is a directory": tmp_path,
        "is not a picture": tmp_path / "text.png",
        "is not a picture that": tmp_path / "empty.png",
        "truncated": tmp_path / "cut.png",
        "range is unknown": saved(tmp_path, Image.fromarray(np.ones((4, 4), np.float32)), "float.tif"),
        "mode I,": saved(tmp_path, Image.fromarray(np.full((4, 4), 70000, np.int32)), "int.tif"),
    }
    for reason, path in cases.items():
        with pytest.raises(InputError) as raised:
            load_image(path, field="picture")
        assert str(raised.value).startswith(f"picture={path}: ")
        assert reason in str(raised.value)
        assert "\n" not in str(raised.value)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    with pytest.raises(InputError, match="too many pixels; allowed are 4000"):
        load_image(tmp_path / "large.png")


def test_a_door_may_allow_fewer_pixels_also_with_damaged_metadata(tmp_path):
    path = saved(tmp_path, Image.fromarray(GRADIENT))
    num_pixels = GRADIENT[..., 0].size
    assert load_image(path, max_pixels=num_pixels).size == (32, 20)
    damaged = path.read_bytes()
    chunk = b"iCCP" + b"x" * 8
    damaged = damaged[:33] + struct.pack(">I", 8) + chunk + b"crc?" + damaged[33:]
    for content in (path.read_bytes(), damaged):
        path.write_bytes(content)
        with pytest.raises(InputError, match=f"too many pixels; allowed are {num_pixels - 1}"):
            load_image(path, max_pixels=num_pixels - 1)


def test_a_large_photo_of_a_phone_is_read_without_noise(tmp_path, monkeypatch):
    path = saved(tmp_path, Image.fromarray(GRADIENT))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", GRADIENT[..., 0].size - 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_image(path).size == (32, 20)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.gif", "a.tif", "a.webp", "a.bmp"])
def test_damage_never_raises_anything_but_an_input_error(tmp_path, name):
    rng = np.random.default_rng(0)
    path = saved(tmp_path, Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)), name)
    data = path.read_bytes()
    num_errors = 0
    for _ in range(30):
        damaged = bytearray(data[: rng.integers(1, len(data))])
        damaged[rng.integers(len(damaged))] ^= 0xFF
        path.write_bytes(damaged)
        try:
            load_image(path)
        except InputError:
            num_errors += 1
    assert num_errors > 0
