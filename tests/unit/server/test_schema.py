"""Options of requests: schema, texts of forms, limits of a service."""

import dataclasses

import pytest

from vexpress.errors import InputError
from vexpress.options import MotionOptions, SamplingOptions
from vexpress.server.problems import Problem
from vexpress.server.schema import SERVERS_OWN, option_fields, parse_options, read_json_object, request_schema
from vexpress.server.settings import ServeSettings

DEFAULTS, SETTINGS = SamplingOptions(), ServeSettings()


def test_every_option_of_the_tables_is_in_the_schema():
    for as_form in (True, False):
        properties = request_schema(DEFAULTS, SETTINGS, as_form)["properties"]
        for field in (*dataclasses.fields(SamplingOptions), *dataclasses.fields(MotionOptions)):
            assert (field.name in properties) == (field.name not in SERVERS_OWN)
            if field.name in properties:
                assert field.metadata["help"] in properties[field.name]["description"]


def test_texts_become_what_the_options_are():
    given = {"num_inference_steps": "7", "guidance_scale": "1", "median_filter": "false", "kps_fps": "", "seed": ""}
    options, motion = parse_options({**given, "auto_crop": "on"}, DEFAULTS, SETTINGS, is_text=True)
    assert (options.num_inference_steps, options.guidance_scale, options.median_filter) == (7, 1.0, False)
    assert isinstance(options.guidance_scale, float)
    assert motion == MotionOptions(auto_crop=True)
    assert options.seed == DEFAULTS.seed


@pytest.mark.parametrize("field", option_fields(), ids=lambda field: field.name)
def test_nonsense_is_refused_by_name(field):
    for value, is_text in (([], False), ({}, False), ("\ud800", True), ("9" * 400, True), ("-9e999", True)):
        with pytest.raises(InputError) as error:
            parse_options({field.name: value}, DEFAULTS, SETTINGS, is_text)
        assert error.value.field == field.name


@pytest.mark.parametrize("number", [10**400, -(10**400), float("nan"), float("inf")])
def test_numbers_beyond_all_bounds_are_refused_by_name(number):
    for field in option_fields():
        if field.metadata["low"] is not None:
            with pytest.raises(InputError) as error:
                parse_options({field.name: number}, DEFAULTS, SETTINGS, is_text=False)
            assert error.value.field == field.name


@pytest.mark.parametrize("text", [f"[{'0,' * 10_000}0]", "\ud800", '{"values": [0], "\ud800": 1}', "é" * 9000])
def test_texts_that_are_long_or_hold_half_characters_are_neither_read_nor_kept(text):
    for name in ("smile", "blink", "gaze", "brows"):
        with pytest.raises(InputError) as error:
            parse_options({name: text}, DEFAULTS, SETTINGS, is_text=False)
        assert error.value.field == name
        assert error.value.value is None


def test_limits_of_the_service():
    with pytest.raises(InputError, match="up to 100"):
        parse_options({"num_inference_steps": 101}, DEFAULTS, SETTINGS, is_text=False)
    for values in ({"port": 70000}, {"max_queue": 0}, {"token": "short"}, {"keep_hours": float("nan")}):
        with pytest.raises(InputError):
            ServeSettings(**values)


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b"[" * 10**6, b'"x"', b"\xff"])
def test_what_is_no_json_object(body):
    with pytest.raises(InputError):
        read_json_object(body)


def test_errors_name_no_path_of_the_server():
    error = InputError(
        "cannot be read; see /srv/data/jobs/00ff/x.png, change `kps_path`", "audio_path", "/srv/data/a.wav"
    )
    problem = Problem.of(error)
    assert problem.field == "audio"
    assert "/srv" not in problem.message
    assert "`" not in problem.message
    assert "change kps" in problem.message
