"""Errors in parts, and how a door words them."""

from vexpress.errors import InputError, first_line


def test_an_error_names_field_value_and_problem():
    error = InputError("must be 1 or more; change `width` too", "num_frames", 0)
    assert str(error) == "num_frames=0: must be 1 or more; change width too"
    assert error.worded(lambda field: f"--{field}") == "--num_frames 0: must be 1 or more; change --width too"


def test_parts_may_be_missing():
    assert str(InputError("no face was found")) == "no face was found"
    assert str(InputError("no such file", value="a.wav")) == "a.wav: no such file"
    assert str(InputError("is needed", "audio_path")) == "audio_path: is needed"


def test_the_message_is_one_line_whatever_was_given():
    assert "\n" not in str(InputError("has\nlines", "path", "a\nb"))


def test_first_lines():
    assert first_line(ValueError("one\ntwo")) == "one"
    assert first_line(ValueError()) == "ValueError"
