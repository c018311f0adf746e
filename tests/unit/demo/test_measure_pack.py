"""Figures of the pack: what each says of known tracks and pictures, and which sampling they are measured with."""

from pathlib import Path

import numpy as np
import pytest

from scripts.demo import measure_pack
from scripts.demo.clip_figures import (
    abs_r_unless_still,
    best_lag,
    correlation_or_zero,
    encoded_alike,
    flicker,
    joint_ratio,
)
from scripts.demo.drawn_faces import probe_errors, render_frame
from scripts.demo.drawn_people import random_motion, random_person
from scripts.demo.heldout_clips import load_heldout_clips, silenced
from tests.demo.pack import PACK_PX
from vexpress.cli.program import run_program
from vexpress.errors import InputError

PACK_DIR = Path(__file__).parents[3] / "vexpress" / "demo_pack"
TRACK = np.sin(np.arange(40) / 3)


def test_a_correlation_needs_movement():
    assert correlation_or_zero(TRACK, 2 * TRACK + 1) == pytest.approx(1)
    assert correlation_or_zero(TRACK, np.ones(40)) == 0
    gaps = np.where(np.arange(40) % 4 == 0, np.nan, -TRACK)
    assert correlation_or_zero(TRACK, gaps) == pytest.approx(-1)
    assert abs_r_unless_still(-TRACK, TRACK) == pytest.approx(1)
    assert abs_r_unless_still(0.01 * TRACK, TRACK) == 0


@pytest.mark.parametrize("lag", [-2, 0, 3])
def test_the_lag_is_found(lag):
    noise = np.random.default_rng(0).normal(size=60)
    assert best_lag(noise[10 - lag : 50 - lag], noise[10:50]) == lag


def test_colours_are_compared_at_the_probes_alone():
    true = np.full((20, 20, 3), 100, np.uint8)
    pixels = true.copy()
    pixels[4:7, 9:12] = 110
    np.testing.assert_allclose(probe_errors(pixels, true, np.array([(10, 5), (3, 15), (15, 15)])), [10, 0, 0])
    assert flicker(np.stack([true, pixels])) == pytest.approx(10 * 9 / 400)


def test_a_drawn_clip_changes_more_than_what_was_drawn_and_as_much_as_that_encoded():
    """Which is why frames that come from no file are compared after the same encoding."""
    rng = np.random.default_rng(0)
    person, motion = random_person(rng), random_motion(rng, 12, 30)
    drawn = np.stack([render_frame(person, motion.row(i), np.array([0.3, 0.5]), PACK_PX).pixels for i in range(12)])
    in_file = encoded_alike(drawn, 30)
    assert in_file.shape == drawn.shape and np.abs(in_file.astype(int) - drawn).mean() < 3
    assert flicker(in_file) > 1.1 * flicker(drawn)
    assert flicker(encoded_alike(in_file, 30)) == pytest.approx(flicker(in_file), rel=0.05)


def test_joints_are_where_windows_meet():
    even = np.repeat(np.arange(12, dtype=np.uint8), 3).reshape(12, 1, 1, 3)  # changes by 1 at each frame
    assert joint_ratio(even, even, 6, 2) == pytest.approx(1)
    jumps = even + 10 * (np.arange(12) >= 4).astype(np.uint8).reshape(-1, 1, 1, 1)  # where the second window starts
    assert joint_ratio(jumps, even, 6, 2) == pytest.approx(3)  # windows start at 0, 4 and 6: 5 changes
    assert joint_ratio(jumps + jumps, even + even, 6, 2) == pytest.approx(3)
    assert np.isnan(joint_ratio(jumps, even, 12, 2))


def test_heldout_clips_have_a_later_portrait_and_as_much_sound_as_frames():
    clip = load_heldout_clips(PACK_DIR / "heldout", 12)[0]
    assert (
        clip.frames.shape == (12, PACK_PX, PACK_PX, 3) and clip.kps.shape == (12, 3, 2) and clip.mouth.shape == (12, 2)
    )
    assert len(clip.inputs.waveform(16000)) == 12 / 30 * 16000
    assert all(np.abs(frame.astype(int) - np.asarray(clip.inputs.portrait)).max() > 20 for frame in clip.frames)
    assert not silenced(clip).inputs.waveform(16000).any()
    with pytest.raises(InputError, match="has 60 frames and must have more than 60 frames"):
        load_heldout_clips(PACK_DIR / "heldout", 60)


def test_the_packs_sampling_can_be_changed():
    suggested, changed = measure_pack.load_options(PACK_DIR), measure_pack.load_options(PACK_DIR, {"guidance_scale": 4})
    assert (suggested.guidance, suggested.median_filter) == ("all", False)
    assert changed == suggested.changed(guidance_scale=4)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num_clips", "1"], "--num_clips 1: must be 2"),
        (["--guidance_scale", "-1"], "--guidance_scale -1.0: must be 0 to 100"),
        (["--audio_path", "x.wav"], "unrecognized arguments: --audio_path"),
        (["--output_path", "/nowhere/figures.json"], "--output_path /nowhere/figures.json: the folder"),
    ],
)
def test_mistakes_get_one_line(flags, message, capsys):
    assert run_program(lambda: measure_pack.main(["--model_dir", str(PACK_DIR), *flags])) == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert message in line
