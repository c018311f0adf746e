"""Drawn people of a style that the demo pack has never seen: other palettes, hats, glasses and beards.

They are drawn, labelled and measured like all others. Beards are whiskers, which leave the mouth to the mouth meter.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from scripts.demo.drawn_people import LIP_TINT, Colour, Person, mix_colours, random_person

SKINS = ((150, 196, 160), (168, 176, 214), (196, 172, 210), (142, 190, 200), (206, 206, 150), (160, 164, 176))
HAIRS = ((196, 70, 150), (40, 130, 140), (90, 60, 170), (60, 150, 80), (226, 226, 232), (210, 120, 40))
BACKGROUNDS = ((40, 48, 70), (70, 40, 60), (36, 66, 58), (90, 80, 40), (24, 28, 34), (110, 60, 40))
EXTRAS = ((20, 20, 24), (200, 40, 50), (40, 90, 190), (235, 200, 60), (240, 240, 240), (50, 140, 70))
HAT_STYLES = ("none", "beanie", "cap", "brim")
GLASSES_STYLES = ("none", "round", "square")
EYE_X, EYE_Y = 0.43, -0.06  # middle of a lens, in face units


@dataclass(frozen=True)
class StyledPerson(Person):
    """Someone with a hat, glasses or a beard, of unusual colours."""

    hat_style: str
    hat: Colour
    glasses_style: str
    glasses: Colour
    has_beard: bool

    def decorate(self, canvas: Any, is_in_front: bool) -> None:
        """Paints the beard on bare skin; glasses and hat in front of all else."""
        if not is_in_front:
            if self.has_beard:
                _render_beard(canvas, self)
            return
        if self.glasses_style != "none":
            _render_glasses(canvas, self)
        if self.hat_style != "none":
            _render_hat(canvas, self)


def random_styled_person(rng: np.random.Generator) -> StyledPerson:
    """Chooses what someone looks like; everyone has at least one of hat, glasses and beard."""

    def one_of(colours: tuple[Colour, ...]) -> Colour:
        chosen = np.clip(np.array(colours[rng.integers(len(colours))]) + rng.normal(0, 6, 3), 0, 255)
        return tuple(float(value) for value in chosen)

    person, skin, hair = random_person(rng), one_of(SKINS), one_of(HAIRS)
    background = np.array(one_of(BACKGROUNDS))
    hat, glasses, beard = 0, 0, False
    while not (hat or glasses or beard):
        hat, glasses = int(rng.integers(len(HAT_STYLES))), int(rng.integers(len(GLASSES_STYLES)))
        beard = bool(rng.random() < 0.4)
    colours = {
        "skin": skin,
        "hair": hair,
        "brow": mix_colours(hair, (30, 26, 30), 0.4),
        "lips": mix_colours(skin, LIP_TINT, float(rng.uniform(0.55, 0.8))),
        "clothes": one_of(EXTRAS),
        "background": (tuple(map(float, background)), tuple(map(float, 0.7 * background))),
    }
    return StyledPerson(
        **{**vars(person), **colours},
        hat_style=HAT_STYLES[hat],
        hat=one_of(EXTRAS),
        glasses_style=GLASSES_STYLES[glasses],
        glasses=one_of(EXTRAS),
        has_beard=beard,
    )


def _render_beard(canvas: Any, person: StyledPerson) -> None:
    """Whiskers along the jaw from both ears; they end beside the mouth, out of what the meter takes for it."""
    angle = np.linspace(-0.05 * np.pi, 0.22 * np.pi, 21)
    jaw = np.stack([np.cos(angle) ** person.jaw, 1.22 * np.sin(angle)], 1)
    band = np.concatenate([jaw, (jaw * [0.84, 0.95] - [0, 0.05])[::-1]])
    for side in (-1, 1):
        canvas.fill(canvas.place(band * [side, 1], depth=0.0), person.hair)


def _render_glasses(canvas: Any, person: StyledPerson) -> None:
    """Two rims, the bridge and the temples."""
    angle = np.linspace(0, 2 * np.pi, 33)
    power = 1.0 if person.glasses_style == "round" else 0.35
    ring = np.stack([np.sign(t) * np.abs(t) ** power for t in (np.cos(angle), np.sin(angle))], 1) * [0.3, 0.25]
    for side in (-1, 1):
        canvas.line(canvas.place(ring + [side * EYE_X, EYE_Y]), person.glasses, 0.05)
        temple = np.array([(side * (EYE_X + 0.3), EYE_Y - 0.03), (side * 1.0, EYE_Y - 0.08)])
        canvas.line(canvas.place(temple), person.glasses, 0.05)
    bridge = np.array([(-EYE_X + 0.3, EYE_Y - 0.03), (0, EYE_Y - 0.08), (EYE_X - 0.3, EYE_Y - 0.03)])
    canvas.line(canvas.place(bridge), person.glasses, 0.05)


def _render_hat(canvas: Any, person: StyledPerson) -> None:
    """A dome over the skull, and what goes around it."""
    angle = np.linspace(np.pi, 2 * np.pi, 33)
    width, top = 1.08 + person.hair_volume, 1.42 + person.hair_volume
    dome = np.stack([np.cos(angle) * width, -0.66 + np.sin(angle) * (top - 0.66)], 1)
    canvas.fill(canvas.place(dome, depth=0.1), person.hat)
    edge = mix_colours(person.hat, (20, 20, 26), 0.35)
    if person.hat_style == "beanie":
        fold = np.array([(-width, -0.9), (width, -0.9), (width, -0.62), (-width, -0.62)])
    elif person.hat_style == "cap":
        fold = np.array([(-width, -0.72), (width, -0.72), (0.75, -0.5), (-0.75, -0.5)])
    else:
        fold = np.array([(-1.7, -0.72), (1.7, -0.72), (1.7, -0.58), (-1.7, -0.58)])
    canvas.fill(canvas.place(fold, depth=0.15), edge)
