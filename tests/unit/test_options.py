"""The table of sampling options: everything that is derived from it agrees with it."""

import dataclasses
import json
import math

import pytest

from vexpress.cli.generate import build_parser
from vexpress.errors import InputError
from vexpress.options import CALL, LOADING, REQUEST, MotionOptions, SamplingOptions, load_model_defaults, option_fields

FIELDS = option_fields()


def test_every_option_says_what_it_is():
    for field in (*FIELDS, *dataclasses.fields(MotionOptions)):
        assert field.metadata["help"], field.name
    for field in FIELDS:
        assert field.metadata["where"] in (REQUEST, LOADING, CALL)


def test_flags_are_the_tables_and_have_its_defaults():
    parser = build_parser()
    args = parser.parse_args([])
    for field in FIELDS:
        assert getattr(args, field.name) == field.default
        assert parser.has_flag(field.name) or parser.has_flag(f"no_{field.name}")


@pytest.mark.parametrize("field", [f for f in FIELDS if f.metadata["low"] is not None], ids=lambda field: field.name)
def test_bounds_hold_at_the_field(field):
    low, high = field.metadata["low"], field.metadata["high"]
    for value in (low - 1, high + 1, math.nan, math.inf, "1", None, True, [low]):
        with pytest.raises(InputError) as caught:
            SamplingOptions(**{field.name: value})
        assert caught.value.field == field.name
        assert str(low) in str(caught.value)


def test_choices_hold_at_the_field():
    for field in FIELDS:
        if field.metadata["choices"]:
            with pytest.raises(InputError, match=field.metadata["choices"][0].replace("+", r"\+")):
                SamplingOptions(**{field.name: "another"})


def test_overlap_must_be_smaller_than_the_window():
    with pytest.raises(InputError, match="0 to 5, below context_frames"):
        SamplingOptions(context_frames=6, context_overlap=6)


def test_unknown_options_are_named():
    with pytest.raises(InputError, match="num_steps: is no sampling option"):
        SamplingOptions().changed(num_steps=3)


def test_what_is_recorded_is_all_that_changes_the_result():
    changed = SamplingOptions(windows_per_batch=2)
    assert changed.recorded() == SamplingOptions().recorded()
    for field in FIELDS:
        if field.name != "windows_per_batch":
            assert field.name in SamplingOptions().recorded()


def test_a_model_may_set_what_is_its_own(tmp_path):
    def write(**values) -> None:
        (tmp_path / "inference_defaults.json").write_text(json.dumps(values))

    assert load_model_defaults(tmp_path) == {}
    write(image_width=96, no_median_filter=True)
    assert load_model_defaults(tmp_path) == {"image_width": 96, "median_filter": False}
    for values in ({"seed": 1}, {"dtype": "fp16"}, {"windows_per_batch": 2}, {"fps": 0}, {"fps": "30"}, {"x": 1}):
        write(**values)
        with pytest.raises(InputError, match=next(iter(values))):
            load_model_defaults(tmp_path)
