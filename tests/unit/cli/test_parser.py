"""What a command line gives, and options of it that have no effect."""

import argparse

import pytest

from vexpress.cli.parser import ArgumentParser, refuse_unused
from vexpress.errors import InputError


def given(*arguments: str) -> dict:
    parser = ArgumentParser()
    parser.add_argument("video")
    parser.add_argument("--fps", type=float, default=30.0)
    parser.add_argument("--lora", action="append", default=[])
    parser.add_argument("--any_base", action="store_true")
    parser.add_argument("--no_filter", action="store_false", dest="filter")
    parser.add_argument("--scale", type=float, default=argparse.SUPPRESS)
    parser.set_defaults(fps=25.0, model_dir="model")
    parser.parse_args(["a.mp4", *arguments])
    return parser.given()


def test_defaults_are_not_given_and_what_equals_one_is():
    assert given() == {"video": "a.mp4"}
    assert given("--fps", "25", "--scale=-2")["fps"] == 25.0
    found = given("--lora", "a", "--lora", "-b", "--any_base", "--no_filter")
    assert found == {"video": "a.mp4", "lora": ["a", "-b"], "any_base": True, "filter": False}


def test_only_what_is_given_is_refused():
    why = {"fps": "without `kps_path`", "any_base": "without `lora`"}
    refuse_unused(given(), why)
    with pytest.raises(InputError, match="^fps=25.0: has no effect without kps_path; leave it out$"):
        refuse_unused(given("--fps", "25"), why)
    with pytest.raises(InputError, match="^any_base: has no effect without lora; leave it out$"):
        refuse_unused(given("--any_base"), why)
