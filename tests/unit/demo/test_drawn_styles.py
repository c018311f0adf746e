"""People of other styles: everyone differs from the plain, and the mouth meter reads them."""

import numpy as np
import pytest

from scripts.demo.clip_figures import correlation_or_zero
from scripts.demo.drawn_faces import render_frame
from scripts.demo.drawn_people import Person, random_motion, random_person
from scripts.demo.drawn_styles import random_styled_person
from scripts.demo.mouth_meter import measure_mouth

SIZE_PX, NUM_FRAMES = 96, 24


@pytest.mark.parametrize("seed", range(6))
def test_the_mouth_meter_reads_them(seed):
    rng = np.random.default_rng(seed)
    person, motion = random_styled_person(rng), random_motion(rng, NUM_FRAMES, 30)
    time = np.linspace(0, 1, NUM_FRAMES)
    mouth = np.stack([np.sin(9 * time) ** 2, np.cos(7 * time) ** 2], 1)
    frames = [render_frame(person, motion.row(i), mouth[i], SIZE_PX) for i in range(NUM_FRAMES)]
    read = measure_mouth(np.stack([frame.pixels for frame in frames]), np.stack([frame.kps for frame in frames]))
    assert correlation_or_zero(read[:, 0], mouth[:, 0]) > 0.9
    assert correlation_or_zero(read[:, 1], mouth[:, 1]) > 0.7


def test_everyone_has_something_that_plain_people_have_not():
    for seed in range(20):
        person = random_styled_person(np.random.default_rng(seed))
        plain = Person(**{name: getattr(person, name) for name in Person.__dataclass_fields__})
        motion = random_motion(np.random.default_rng(0), 1, 30, amount=0).row(0)
        one, other = (render_frame(each, motion, np.zeros(2), SIZE_PX).pixels for each in (person, plain))
        assert (one != other).any(2).mean() > 0.005


def test_plain_people_are_drawn_as_they_were():
    person, motion = random_person(np.random.default_rng(1)), random_motion(np.random.default_rng(1), 1, 30).row(0)
    assert person.decorate(None, True) is None and person.decorate(None, False) is None  # paints nothing
    assert render_frame(person, motion, np.zeros(2), SIZE_PX).pixels.shape == (SIZE_PX, SIZE_PX, 3)
