"""Options of every kind: what they allow, and how it is said."""

from dataclasses import dataclass, fields

import pytest

from vexpress.errors import InputError
from vexpress.fields import allowed_values, check_fields, kind_of, option


@dataclass
class Options:
    paths: list[str] = option([], "paths", items=str)
    ratio: tuple[float, float] = option((0.5, 1.0), "ratio", low=0.1, high=2)
    sizes: dict = option({}, "sizes")
    rate: float | None = option(None, "rate", low=0, high=1, type=float)
    count: int = option(1, "count", low=0, high=9)
    name: str = option("a", "name")

    def __post_init__(self):
        check_fields(self, "part.")


def test_kinds_and_words():
    kinds = {field.name: kind_of(field) for field in fields(Options)}
    assert kinds == {"paths": list, "ratio": tuple, "sizes": dict, "rate": float, "count": int, "name": str}
    words = {field.name: allowed_values(field) for field in fields(Options)}
    assert words["ratio"] == "a list of 2 numbers, each 0.1 to 2"
    assert (words["paths"], words["sizes"]) == ("a list of texts", "keys and values")


@pytest.mark.parametrize(
    "values",
    [
        {"paths": ["a", "b"]},
        {"paths": ("a",)},
        {"ratio": [1, 2.0]},  # libraries that read files make lists of tuples
        {"sizes": {"a": [1]}},
        {"rate": 1},
        {"rate": None},
    ],
)
def test_what_is_allowed(values):
    Options(**values)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("paths", "a"),
        ("paths", [1]),
        ("paths", ["a\0b"]),
        ("paths", None),
        ("ratio", (1.0,)),
        ("ratio", (1.0, 2.0, 2.0)),
        ("ratio", (0.0, 1.0)),
        ("ratio", ("a", 1.0)),
        ("sizes", [1]),
        ("rate", float("nan")),
        ("rate", True),
        ("count", 10**400),
        ("count", 1.0),
        ("name", "a\0b"),
    ],
)
def test_what_is_not(name, value):
    with pytest.raises(InputError) as caught:
        Options(**{name: value})
    assert caught.value.field == f"part.{name}"


def test_defaults_are_not_shared():
    Options().paths.append("a")
    assert Options().paths == []
