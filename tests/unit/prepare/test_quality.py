"""Limits of what was measured."""

from dataclasses import fields

import pytest

from vexpress.prepare.quality import (
    PICTURE_LIMITS,
    REASONS,
    SPEECH_LIMITS,
    SYNC_LIMITS,
    Rejected,
    check_limits,
    rounded,
)
from vexpress.prepare.settings import PrepareSettings

LIMITS = (*SPEECH_LIMITS, *PICTURE_LIMITS, *SYNC_LIMITS)
SETTINGS = PrepareSettings()


@pytest.mark.parametrize("limit", LIMITS, ids=lambda limit: limit.setting)
def test_each_limit_rejects_on_its_side_only(limit):
    assert limit.setting in {field.name for field in fields(PrepareSettings)} and limit.reason in REASONS
    allowed = getattr(SETTINGS, limit.setting)
    worse = -0.01 if limit.setting.startswith("min") else 0.01
    for value in (allowed, allowed - 2 * worse):
        limit.check({limit.key: value}, SETTINGS)
    with pytest.raises(Rejected) as rejection:
        limit.check({limit.key: allowed + worse, "other": 1.0}, SETTINGS)
    assert rejection.value.reason == limit.reason and rejection.value.quality["other"] == 1
    assert f"`{limit.setting}` is {allowed:g}" in rejection.value.detail


def test_what_was_not_measured_is_allowed():
    check_limits(LIMITS, {}, SETTINGS)


def test_numbers_are_kept_to_four_digits():
    assert rounded({"a": 0.123456, "b": 3, "c": "x"}) == {"a": 0.1235, "b": 3, "c": "x"}
