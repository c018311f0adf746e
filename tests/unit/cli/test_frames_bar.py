"""The bar of a video's frames, driven as the pipeline drives it."""

import io
import re

import pytest

from vexpress.cli.frames_bar import FramesBar, TerminalPipeline


def last_line(file: io.StringIO) -> str:
    return re.split("[\r\n]", file.getvalue().strip())[-1]


def test_joint_sampling_denoises_and_then_has_frames():
    file = io.StringIO()
    bar = FramesBar(40, is_rolling=False, file=file)
    with bar.begin(10) as denoising:
        denoising.update(5)
        bar._bar.refresh()
        assert last_line(file).startswith("0 of 40 frames") and "45%" in last_line(file)
        denoising.update(5)
    with bar.begin(40) as decoding:
        for _ in range(40):
            decoding.update()
    assert last_line(file).startswith("40 of 40 frames") and "100%" in last_line(file)
    assert re.search(r"\d+\.\d per second .* left", last_line(file))


def test_rolling_sampling_counts_frames_alone():
    file = io.StringIO()
    bar = FramesBar(40, is_rolling=True, file=file)
    with bar.begin(40) as decoding, bar.begin(None) as denoising:
        denoising.update(7)
        decoding.update(10)
        bar._bar.refresh()
        assert last_line(file).startswith("10 of 40 frames") and "25%" in last_line(file)


def test_a_failure_leaves_the_line_for_its_message():
    file = io.StringIO()
    with pytest.raises(ValueError), FramesBar(40, is_rolling=False, file=file).begin(10):
        raise ValueError
    assert file.getvalue().endswith("\n")


def test_without_a_bar_the_pipelines_own_is_shown():
    assert TerminalPipeline.bar is None
