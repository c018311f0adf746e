"""The mark in generated videos."""

import json

import av
import numpy as np

from vexpress.media.video import write_video
from vexpress.options import MotionOptions, SamplingOptions
from vexpress.provenance import SOURCE_TYPE, read_mark, video_metadata


def test_the_mark_is_in_the_file_and_says_how_it_was_made(tmp_path):
    options = SamplingOptions(num_inference_steps=7)
    metadata = video_metadata(tmp_path / "my_model", options, MotionOptions(auto_crop=True))
    write_video(tmp_path / "video.mp4", [np.zeros((32, 32, 3), np.uint8)] * 3, 25, metadata=metadata)
    with av.open(str(tmp_path / "video.mp4")) as container:
        mark = read_mark(container.metadata)
    assert mark["generated"] is True
    assert mark["digital_source_type"] == SOURCE_TYPE
    assert mark["model"] == "my_model"
    assert mark["settings"]["num_inference_steps"] == 7
    assert mark["settings"]["auto_crop"] is True
    assert str(tmp_path) not in json.dumps(mark)


def test_the_same_settings_give_the_same_mark(tmp_path):
    assert video_metadata(tmp_path, SamplingOptions()) == video_metadata(tmp_path, SamplingOptions())


def test_other_files_have_no_mark():
    for metadata in ({}, {"comment": "hello"}, {"comment": "[" * 100_000}, {"comment": '{"generated": "yes"}'}):
        assert read_mark(metadata) is None
