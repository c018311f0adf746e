"""Flags: one parser for all programs, whose mistakes are errors like all others."""

import argparse
import sys

from vexpress.errors import InputError


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows defaults that are values."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None or action.default is False else super()._get_help_string(action)


class ArgumentParser(argparse.ArgumentParser):
    """Parses flags; a mistake is an `InputError`, and the value of a flag may start with a dash."""

    def __init__(self, **options):
        super().__init__(allow_abbrev=False, formatter_class=_HelpFormatter, **options)

    def parse_known_args(self, args=None, namespace=None):
        """As argparse, but `--audio_path -a.mp3` means `--audio_path=-a.mp3`."""
        joined: list[str] = []
        for argument in sys.argv[1:] if args is None else args:
            flag = self._option_string_actions.get(joined[-1]) if joined else None
            takes_value = flag is not None and flag.nargs is None
            if takes_value and argument.startswith("-") and argument not in self._option_string_actions:
                joined[-1] += f"={argument}"
            else:
                joined.append(argument)
        return super().parse_known_args(joined, namespace)

    def error(self, message: str):
        """Raises instead of printing the usage and exiting."""
        raise InputError(f"{message}; see --help")
