"""The table of sampling options: everything that is derived from it agrees with it."""

import dataclasses
import json
import math

import pytest

from vexpress.cli.generate import build_parser, parse_arguments
from vexpress.errors import InputError
from vexpress.options import (
    CALL,
    LOADING,
    PRESETS,
    REQUEST,
    MotionOptions,
    SamplingOptions,
    load_model_defaults,
    option_fields,
    unlearned,
)

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


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_go_before_the_model_and_flags_before_both(tmp_path, preset):
    assert load_model_defaults(tmp_path, preset) == PRESETS[preset]
    (tmp_path / "inference_defaults.json").write_text('{"num_inference_steps": 7, "shared_noise": 0.5}')
    files = ["--model_dir", str(tmp_path), "--reference_image_path", "a", "--audio_path", "b", "--preset", preset]
    options = parse_arguments(files).sampling
    assert {name: getattr(options, name) for name in PRESETS[preset]} == PRESETS[preset]
    assert options.shared_noise == 0.5
    options = parse_arguments([*files, "--num_inference_steps", "25", "--guidance_scale", "3.5"]).sampling
    assert (options.num_inference_steps, options.guidance_scale) == (25, 3.5)
    assert options.sampling == PRESETS[preset]["sampling"]


def test_live_leaves_a_student_its_own_steps_and_overlap(tmp_path):
    (tmp_path / "inference_defaults.json").write_text(
        '{"num_inference_steps": 1, "context_overlap": 4, "sampling": "rolling", "guidance_scale": 3.0}'
    )
    values = load_model_defaults(tmp_path, "live")
    assert (values["num_inference_steps"], values["context_overlap"], values["guidance_scale"]) == (1, 4, 1.0)
    assert load_model_defaults(tmp_path, "fast")["num_inference_steps"] == 13


def test_a_student_is_warned_of_other_steps_than_it_learned():
    student = {"sampling": "rolling", "num_inference_steps": 1}
    assert (
        unlearned(SamplingOptions(num_inference_steps=2), student) == "`num_inference_steps` 2: this student learned 1"
    )
    for steps, model in ((1, student), (2, {}), (2, student | {"sampling": "joint"}), (2, {"sampling": "rolling"})):
        assert unlearned(SamplingOptions(num_inference_steps=steps), model) is None


def test_no_such_preset(tmp_path):
    with pytest.raises(InputError, match="^preset=quick: must be one of released, fast, live"):
        load_model_defaults(tmp_path, "quick")


def test_released_is_what_the_table_says():
    defaults = SamplingOptions()
    assert all(getattr(defaults, name) == value for name, value in PRESETS["released"].items())


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
