"""ComfyUI's pictures, sounds and widgets as ours, and back."""

import numpy as np
import pytest
import torch
from PIL import Image

from vexpress.comfyui import values
from vexpress.errors import InputError
from vexpress.media.audio import Audio
from vexpress.options import MotionOptions, SamplingOptions


def test_pictures_survive_both_ways():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    picture = values.to_picture(values.to_batch([pixels]), "portrait")
    assert np.array_equal(np.asarray(picture), pixels)


def test_transparency_and_overshoot_are_left_out():
    picture = values.to_picture(torch.tensor([[[[1.5, -1.0, 0.5, 0.2]]]]), "portrait")
    assert picture.getpixel((0, 0)) == (255, 0, 128)


def test_the_first_of_several_pictures_is_used_with_a_warning(caplog):
    picture = values.to_picture(torch.stack([torch.zeros(2, 2, 3), torch.ones(2, 2, 3)]), "portrait")
    assert picture.getpixel((0, 0)) == (0, 0, 0) and "first of 2" in caplog.text


def test_an_empty_batch_is_refused():
    with pytest.raises(InputError, match="no picture"):
        values.to_picture(torch.zeros(0, 2, 2, 3), "portrait")


def test_sounds_survive_both_ways():
    audio = Audio(np.linspace(-1, 1, 8, dtype=np.float32).reshape(2, 4), 44100)
    back = values.to_audio(values.from_audio(audio))
    assert np.array_equal(back.samples, audio.samples) and back.sampling_rate_hz == 44100


@pytest.mark.parametrize("shape", [(2, 1, 5), (1, 1, 0), (1, 5)])
def test_what_is_no_single_sound_is_refused(shape):
    with pytest.raises(InputError, match="one sound"):
        values.to_audio({"waveform": torch.zeros(shape), "sample_rate": 16000})


def test_sound_that_is_not_finite_is_refused():
    with pytest.raises(InputError, match="NaN"):
        values.to_audio({"waveform": torch.full((1, 1, 5), torch.nan), "sample_rate": 16000})


def test_widgets_become_options():
    given = {"image_width": 96, "kps_extend": "hold", "retarget_strategy": values.UNSET, "dtype": values.UNSET}
    assert values.options_of(SamplingOptions, given) == SamplingOptions(image_width=96)
    assert values.options_of(MotionOptions, given) == MotionOptions(kps_extend="hold")


@pytest.mark.parametrize(
    "given, told",
    [
        ({"image_width": 100}, "image_width=100"),
        ({"scheduler": "nobody"}, "scheduler=nobody"),
        ({"kps_extend": "nobody"}, "kps_extend=nobody"),
        ({"context_frames": 4, "context_overlap": 4}, "context_overlap=4"),
    ],
)
def test_wrong_widgets_are_named(given, told):
    assert told in values.check_options(given)


def test_what_another_node_gives_is_not_checked():
    assert values.check_options({"image_width": None, "context_frames": None, "context_overlap": 900}) is True


def test_errors_say_the_nodes_names():
    with pytest.raises(InputError, match="^portrait: no face; try another `?audio`?"), values.node_words():
        raise InputError("no face; try another `audio_path`", "reference_image_path")


def test_portraits_are_rgb():
    assert values.to_picture(values.to_batch([Image.new("RGB", (3, 2), "red")]), "portrait").mode == "RGB"
