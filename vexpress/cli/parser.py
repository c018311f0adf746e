"""Flags: one parser for all programs, whose mistakes are errors like all others."""

import argparse
import dataclasses
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from vexpress.errors import InputError
from vexpress.fields import kind_of


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows defaults that are values."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None or action.default is False else super()._get_help_string(action)


class ArgumentParser(argparse.ArgumentParser):
    """Parses flags; a mistake is an `InputError`, and the value of a flag may start with a dash.

    `last` is the parser that read a command line last: its flags are the names that errors use. `parsed` is
    what it read.
    """

    last: "ArgumentParser | None" = None
    parsed: argparse.Namespace | None = None

    def __init__(self, **options):
        super().__init__(allow_abbrev=False, formatter_class=_HelpFormatter, **options)

    def parse_known_args(self, args=None, namespace=None):
        """As argparse, but `--audio_path -a.mp3` means `--audio_path=-a.mp3`."""
        ArgumentParser.last = self
        self._joined = joined = []
        for argument in sys.argv[1:] if args is None else args:
            flag = self._option_string_actions.get(joined[-1]) if joined else None
            takes_value = flag is not None and flag.nargs is None
            if takes_value and argument.startswith("-") and argument not in self._option_string_actions:
                joined[-1] += f"={argument}"
            else:
                joined.append(argument)
        self.parsed, rest = super().parse_known_args(joined, namespace)
        return self.parsed, rest

    def given(self) -> dict[str, Any]:
        """The options that the command line gives, by name, without defaults."""
        blank = argparse.Namespace(**dict.fromkeys(vars(self.parsed)))  # what has a value gets no default
        found, _ = super().parse_known_args(self._joined, blank)
        return {name: value for name, value in vars(found).items() if value is not None}

    def error(self, message: str):
        """Raises instead of printing the usage and exiting."""
        raise InputError(f"{message}; see --help")

    def has_flag(self, name: str) -> bool:
        """Whether there is a flag `--name`."""
        return f"--{name}" in self._option_string_actions

    def name_of(self, field: str) -> str:
        """What an error calls a field: the flag of that name, if there is one."""
        return f"--{field}" if self.has_flag(field) else field


def refuse_unused(given: Mapping[str, Any], unused: Mapping[str, str]) -> None:
    """Refuses options that are given and have no effect; defaults are not given.

    Args:
        given: of `ArgumentParser.given`.
        unused: name -> why it has no effect, such as "without `kps_path`".

    Raises:
        InputError: names the first of them.
    """
    for name, why in unused.items():
        if name in given:
            value = None if given[name] is True else given[name]  # of a switch
            raise InputError(f"has no effect {why}; leave it out", name, value)


def add_options(group: argparse._ActionsContainer, fields: Iterable[dataclasses.Field], default: Any = None) -> None:
    """Adds a flag for each field made by `vexpress.fields.option`: its help, type, choices and default.

    A switch that is on by default becomes `--no_NAME`.

    Args:
        group: of a parser, or the parser.
        fields: in this order.
        default: `argparse.SUPPRESS` leaves flags that are not given out of the result.
    """
    for field in fields:
        facts, kind = field.metadata, kind_of(field)
        own_default = field.default if default is None else default
        help = facts["help"] + (f", in {facts['unit']}" if facts["unit"] else "")
        if kind is bool:
            name, action = (f"no_{field.name}", "store_false") if field.default else (field.name, "store_true")
            help = f"do not {help}" if field.default else help
            group.add_argument(f"--{name}", action=action, dest=field.name, default=own_default, help=help)
            if field.default:  # for models whose own default is off
                on = f"--{field.name}"
                group.add_argument(on, action="store_true", default=own_default, help=argparse.SUPPRESS)
        else:
            group.add_argument(f"--{field.name}", type=kind, default=own_default, choices=facts["choices"], help=help)
