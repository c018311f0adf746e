"""Options as fields of a dataclass: default, bounds, choices, unit and help stand together, at the field."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from vexpress.errors import InputError


def option(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: Sequence[str] | None = None,
    multiple: int | None = None,
    unit: str = "",
    optional: bool = False,
    **facts: Any,
) -> Any:
    """A field of a dataclass that `check_fields` can check and doors can show.

    Args:
        default: its type is the option's, unless `type` is among `facts`. A tuple has as many items as the default; a
            list any number, of the type that `items` among `facts` names.
        help: one line, for flags, pages and schemas.
        low: smallest value allowed, also of each item, likewise `high`: the largest.
        choices: all values allowed.
        multiple: the value must be a multiple of this.
        unit: of a number, such as "px".
        optional: None is allowed.
        facts: anything else that a door or a program wants to know of the field.
    """
    metadata = {"help": help, "low": low, "high": high, "choices": choices, "multiple": multiple, "unit": unit}
    metadata |= {"optional": optional or default is None, **facts}
    if isinstance(default, list | dict):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def kind_of(field: dataclasses.Field) -> type:
    """The type of an option's values: int, float, bool, str, list, tuple or dict."""
    if "type" in field.metadata:
        return field.metadata["type"]
    return type(field.default if field.default_factory is dataclasses.MISSING else field.default_factory())


def item_kind_of(field: dataclasses.Field) -> type:
    """The type of the items of an option that is a list or tuple."""
    return field.metadata.get("items") or type(field.default[0])


def check_fields(values: Any, prefix: str = "") -> None:
    """Checks all fields made by `option` of a dataclass.

    Args:
        values: an instance.
        prefix: put before names in messages, such as "data.".

    Raises:
        InputError: a value of another type, out of bounds or not among the choices.
    """
    for field in dataclasses.fields(values):
        if "help" in field.metadata:
            check_value(field, getattr(values, field.name), prefix)


def check_value(field: dataclasses.Field, value: Any, prefix: str = "") -> None:
    """Checks one value of a field made by `option`.

    Raises:
        InputError: as `check_fields`.
    """
    if value is None and field.metadata["optional"]:
        return
    kind = kind_of(field)
    if kind in (list, tuple):  # libraries that read configurations make lists of tuples
        fits = isinstance(value, list | tuple) and all(_fits(field, item_kind_of(field), item) for item in value)
        fits = fits and (kind is list or len(value) == len(field.default))
    else:
        fits = _fits(field, kind, value)
    if not fits:
        raise InputError(f"must be {allowed_values(field)}", f"{prefix}{field.name}", value)


def _fits(field: dataclasses.Field, kind: type, value: Any) -> bool:
    """Whether a value or an item is of this type and within the field's bounds."""
    facts = field.metadata
    fits = type(value) is kind or (kind is float and type(value) is int)
    if fits and facts["choices"] is not None:
        fits = value in facts["choices"]
    if fits and kind is str:
        fits = "\0" not in value  # no path, name or text of ours holds one, and the system refuses it
    if fits and kind in (int, float):
        low, high = (math.inf * sign if facts[key] is None else facts[key] for key, sign in (("low", -1), ("high", 1)))
        fits = low <= value <= high and math.isfinite(value)  # in this order: a huge int is no float
        fits = fits and not (facts["multiple"] and value % facts["multiple"])
    return fits


def allowed_values(field: dataclasses.Field) -> str:
    """What a field made by `option` allows, in words."""
    facts, kind = field.metadata, kind_of(field)
    if facts["choices"] is not None:
        return f"one of {', '.join(map(str, facts['choices']))}"
    if kind is bool:
        return "true or false"
    if kind is dict:
        return "keys and values"
    if kind in (list, tuple):
        items = "texts" if item_kind_of(field) is str else f"numbers, each {_bounds(field)}"
        return f"a list of {'' if kind is list else f'{len(field.default)} '}{items}"
    if kind is str:
        return "a text"
    what = "a whole number" if kind is int else "a number"
    if facts["multiple"]:
        what = f"a multiple of {facts['multiple']}"
    bounds = _bounds(field)
    if not facts["multiple"] and bounds:
        return bounds
    return f"{what}, {bounds}" if bounds else what


def _bounds(field: dataclasses.Field) -> str:
    low, high = field.metadata["low"], field.metadata["high"]
    return f"{low} to {high}" if None not in (low, high) else f"{low} or more" if low is not None else ""


def check_range(key: str, value: float, low: float, high: float) -> None:
    """Raises an InputError unless low <= value <= high; NaN is not."""
    if not low <= value <= high:
        raise InputError(f"must be {low} to {high}", key, value)
