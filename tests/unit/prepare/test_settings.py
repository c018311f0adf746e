"""Bounds of the settings, each and together."""

import pytest

from vexpress.errors import InputError
from vexpress.prepare.settings import PrepareSettings


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("size", 8),
        ("fps", 0),
        ("fps", float("nan")),
        ("min_clip_seconds", 0),
        ("max_clip_seconds", 3),
        ("margin", float("nan")),
        ("max_bad_fraction", 1.5),
        ("speech_db", 3),
        ("max_gap", -1),
        ("format", "zip"),
    ],
)
def test_settings_that_cannot_be_are_named(name, value):
    with pytest.raises(InputError, match=f"{name}={value}: must be"):
        PrepareSettings(**{name: value})


def test_settings_that_contradict_each_other_name_both():
    with pytest.raises(InputError, match="max_clip_seconds=3: must be twice min_clip_seconds 2 or more"):
        PrepareSettings(max_clip_seconds=3)
    with pytest.raises(InputError, match="min_clip_seconds=2.0: must be one frame of fps or more"):
        PrepareSettings(fps=0.25)
