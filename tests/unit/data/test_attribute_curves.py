"""Attributes as they are asked for: numbers, curves, blinks; and what is refused in one line."""

import json

import numpy as np
import pytest

from vexpress.data.attribute_curves import (
    BETWEEN_BLINKS_SECONDS,
    FIRST_BLINK_SECONDS,
    NaturalBlinks,
    asked_attributes,
    make_attributes,
    read_curves,
)
from vexpress.errors import InputError
from vexpress.options import MotionOptions


def made(num_frames: int = 30, fps: float = 30, **asked: str) -> np.ndarray:
    return make_attributes(MotionOptions(**asked), num_frames, fps, seed=1)


def test_numbers_stand_in_their_columns_and_the_rest_is_not_known():
    np.testing.assert_allclose(made(gaze="-1, 0.5", blink="0.25")[7], [0.25, 0.25, -1, 0.5, np.nan, np.nan])
    np.testing.assert_allclose(made(brows="-.5", smile="1e-1", blink="none")[29, [0, 1, 4, 5]], [1, 1, -0.5, 0.1])
    assert asked_attributes(MotionOptions(smile="1", gaze="0,0")) == ["gaze", "smile"]


def test_blinks_have_the_stated_statistics_and_do_not_depend_on_length_or_rate():
    lids = make_attributes(MotionOptions(), 30_000, 100, seed=3)
    assert np.array_equal(lids[:, 0], lids[:, 1]) and np.isnan(lids[:, 2:]).all()
    assert np.array_equal(lids[:500], make_attributes(MotionOptions(blink="natural"), 500, 100, 3), equal_nan=True)
    assert not np.array_equal(lids[:500, 0], make_attributes(MotionOptions(), 500, 100, seed=4)[:500, 0])
    closed = lids[:, 0] < 0.5
    starts = np.flatnonzero(np.diff(closed.astype(int)) == 1) / 100
    pauses = np.diff(starts)
    assert FIRST_BLINK_SECONDS[0] - 0.1 < starts[0] < FIRST_BLINK_SECONDS[1]
    assert pauses.min() > BETWEEN_BLINKS_SECONDS[0] - 0.02 and pauses.max() < BETWEEN_BLINKS_SECONDS[1] + 0.02
    assert abs(pauses.mean() - 3) < 0.3
    assert abs(closed.mean() * 300 / len(starts) - 0.15) < 0.02  # seconds below a half
    blinks = NaturalBlinks(3, 25)
    np.testing.assert_allclose([blinks(n) for n in range(100)], lids[: 4 * 100 : 4, 0], atol=1e-6)


def test_curves_of_all_kinds_say_the_same(tmp_path):
    times, values = [0.0, 0.5, 1.0], [[0, 0], [1, -1], [1, 1]]
    content = {"times": times, "values": values}
    (tmp_path / "c.json").write_text(json.dumps(content))
    (tmp_path / "c.csv").write_text("time,x,y\n0,0,0\n0.5,1,-1\n1,1,1\n")
    np.savez(tmp_path / "c.npz", times=times, values=values)
    expected = made(40, 20, gaze=json.dumps(content))[:, 2:4]
    np.testing.assert_allclose(expected[5], [0.5, -0.5])
    np.testing.assert_allclose(expected[[0, 10, 20, 39]], [[0, 0], [1, -1], [1, 1], [1, 1]])
    for suffix in ("json", "csv", "npz"):
        np.testing.assert_allclose(made(40, 20, gaze=str(tmp_path / f"c.{suffix}"))[:, 2:4], expected)
    (tmp_path / "s.csv").write_text("value\n0\n0.5\n1\n")
    np.testing.assert_allclose(made(5, smile=str(tmp_path / "s.csv"))[:, 5], [0, 0.5, 1, 1, 1])  # one per frame
    np.testing.assert_allclose(made(3, blink="[[0, 1], [0.5, 1], [1, 0.25]]")[:, :2], [[0, 1], [0.5, 1], [1, 0.25]])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("blink", "2"), ("blink", "sometimes"), ("blink", ""), ("blink", "0.1,0.2,0.3"), ("gaze", "0.5"),
        ("gaze", "nan,0"), ("gaze", "0,1.5"), ("gaze", "[1, 2"), ("gaze", "[[0, 0], [1]]"), ("smile", "-0.1"),
        ("smile", "[]"), ("smile", "[true]"), ("smile", '["0.5"]'), ("smile", "[null]"), ("smile", "{}"),
        ("smile", '{"values": 1}'), ("smile", '{"values": [1], "speed": 2}'), ("smile", "[" * 5000),
        ("smile", '{"values": [0, 1], "times": [0]}'), ("smile", '{"values": [0, 1], "times": [1, 1]}'),
        ("smile", '{"values": [0, 1], "times": [-1, 1]}'), ("smile", '{"values": [0, 1], "times": "ab"}'),
        ("smile", '{"values": [1e400]}'), ("brows", "gone.json"), ("brows", "gone.npz"), ("brows", "gone.txt"),
    ],
)  # fmt: skip
def test_what_is_no_curve_is_one_line_that_names_the_option(name, text):
    with pytest.raises(InputError) as caught:
        made(**{name: text})
    assert caught.value.field == name and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        *("", "x,y\n0,0\n", "value\n", "value\nhigh\n", "time,value\n0,0\n1\n", "time\n0\n", "value\n2\n"),
        "time,value\n0," + "1" * 200_000,
    ],
)
def test_a_csv_that_is_no_curve_is_one_line(tmp_path, text):
    (tmp_path / "c.csv").write_text(text)
    with pytest.raises(InputError) as caught:
        made(smile=str(tmp_path / "c.csv"))
    assert caught.value.field == "smile" and "\n" not in str(caught.value)


def test_a_csv_of_excel_and_a_curve_that_is_out_of_range(tmp_path):
    (tmp_path / "c.csv").write_text("\ufeffvalue\n0\n1\n", encoding="utf-8")
    np.testing.assert_allclose(made(2, smile=str(tmp_path / "c.csv"))[:, 5], [0, 1])
    with pytest.raises(InputError, match="^smile=2: must be 0 to 1$"):
        made(smile="[2]")


def test_files_are_not_read_for_another_machine_and_not_written_into_videos(tmp_path):
    (tmp_path / "c.csv").write_text("value\n0\n")
    motion = MotionOptions(smile=str(tmp_path / "c.csv"), gaze="0.5, 0", blink="natural", brows="[0, 1]")
    assert read_curves(motion).keys() == {"gaze", "brows", "smile"}
    with pytest.raises(InputError, match="smile"):
        read_curves(motion, reads_files=False)
    recorded = motion.recorded()
    assert [recorded[name] for name in ("blink", "gaze", "brows", "smile")] == ["natural", "0.5, 0", "curve", "curve"]
