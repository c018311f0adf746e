"""What a user did that cannot work, in parts: what was given, what is wrong with it, and which field says so."""

import re
from collections.abc import Callable

FIELD_NAME = re.compile(r"`([\w.]+)`")


class InputError(ValueError):
    """Something that a user gave cannot be used.

    Code of the package names fields as the API does, in messages between backticks: "change `image_width`". A door
    gives them the names that its users know, such as flags, by `worded`.

    Args:
        problem: what is wrong, and what is allowed.
        field: name of the argument, option or key that was given; empty where none is to blame.
        value: what was given; None is left out of the message.
    """

    def __init__(self, problem: str, field: str = "", value: object = None):
        super().__init__(problem, field, value)
        self.problem, self.field, self.value = problem, field, value

    def worded(self, name_of: Callable[[str], str] = str) -> str:
        """The message on one line.

        Args:
            name_of: a field's name -> what a door's users call it, such as a flag.
        """
        name = name_of(self.field)
        value = "" if self.value is None else f"{' ' if name.startswith('-') else '=' * bool(name)}{self.value}"
        problem = FIELD_NAME.sub(lambda match: name_of(match[1]), self.problem)
        return " ".join(f"{name}{value}{': ' * bool(name or value)}{problem}".split())

    def __str__(self) -> str:
        return self.worded()


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its type's name where it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
