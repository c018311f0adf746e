import io
import warnings

import numpy as np
import pytest
from PIL import Image

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


@pytest.mark.parametrize(("orientation", "corner"), [(1, (0, 0)), (3, (-1, -1)), (6, (0, -1)), (8, (-1, 0))])
def test_the_orientation_of_the_camera_is_applied(tmp_path, orientation, corner):
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[0, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = np.asarray(load_image(saved(tmp_path, Image.fromarray(pixels), exif=exif)))
    assert image.shape == ((32, 16, 3) if orientation in (6, 8) else (16, 32, 3))
    assert image[corner].tolist() == [255, 255, 255]
    assert image.sum() == 3 * 255


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


def test_a_large_photo_of_a_phone_is_read_without_noise(tmp_path, monkeypatch):
    path = saved(tmp_path, Image.fromarray(GRADIENT))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", GRADIENT[..., 0].size - 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_image(path).size == (32, 20)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
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
