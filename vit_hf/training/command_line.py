"""Flags, or a file of them: `script.py config.yaml --learning_rate 1e-4`."""

import difflib
import json
import sys
from argparse import ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser


CONFIG_SUFFIXES = (".yaml", ".yml", ".json")


class HelpFormatter(ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter):
    """Leaves the description as it is; shows defaults, but not those that say nothing; and no second
    spelling of each flag."""

    def _get_help_string(self, action: Any) -> str | None:
        if action.default is None or action.required:
            return action.help
        return super()._get_help_string(action)

    def _format_action_invocation(self, action: Any) -> str:
        # --patch_selector and --patch-selector both work; one is enough to read.
        spellings = action.option_strings
        action.option_strings = [name for name in spellings if "-" not in name[2:]] or spellings
        text = super()._format_action_invocation(action)
        action.option_strings = spellings
        return text


def make_parser(dataclass_types: Iterable[type], description: str, **options: Any) -> HfArgumentParser:
    """A parser for the fields of dataclasses, whose help shows the defaults."""
    return HfArgumentParser(
        dataclass_types,
        description=description,
        formatter_class=lambda prog: HelpFormatter(prog, max_help_position=32),
        allow_abbrev=False,
        **options,
    )


def parse_arguments(parser: HfArgumentParser, argv: list[str] | None = None) -> tuple[Any, ...]:
    """Parse flags; if the first argument is a YAML or JSON file, its entries come first and flags override
    them.

    Args:
        parser: see `make_parser`.
        argv: arguments, by default those of the command line.

    Returns:
        One object for each dataclass; what a dataclass refuses (ValueError) ends the program with its
        message.
    """
    argv = sys.argv[1:] if argv is None else argv
    try:
        if argv and argv[0].endswith(CONFIG_SUFFIXES) and not argv[0].startswith("-"):
            argv = read_config(parser, argv[0]) + argv[1:]
        return parser.parse_args_into_dataclasses(args=argv, look_for_args_file=False)
    except (OSError, ValueError) as error:
        return parser.error(str(error))


def given_flags(parser: HfArgumentParser, argv: list[str] | None = None) -> set[str]:
    """Names of the fields that are given, in a file or as flags, and not left to their defaults."""
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0].endswith(CONFIG_SUFFIXES) and not argv[0].startswith("-"):
        argv = read_config(parser, argv[0]) + argv[1:]
    spellings = {option: action.dest for action in parser._actions for option in action.option_strings}
    return {spellings[word.partition("=")[0]] for word in argv if word.partition("=")[0] in spellings}


def read_config(parser: HfArgumentParser, path: str) -> list[str]:
    """The entries of a YAML or JSON file as flags of `parser`.

    As flags, because argparse checks the type and the choices of these only, and because YAML takes 1e-4 for
    text.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no mapping, or has an entry that is no flag.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no configuration file {path}")
    try:
        # JSON is YAML, too.
        entries = yaml.safe_load(Path(path).read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML or JSON: {error}") from error
    if not isinstance(entries, dict):
        raise ValueError(f"{path} must hold a mapping from names of flags to values")
    known = {action.dest: bool(action.option_strings) for action in parser._actions}
    flags = []
    for name, value in entries.items():
        if name not in known:
            close = difflib.get_close_matches(str(name), known, 1)
            raise ValueError(f"{path}: there is no flag {name!r}{f', perhaps {close[0]!r}' if close else ''}")
        if value is None:
            continue
        if isinstance(value, dict):
            value = json.dumps(value)
        values = [str(item) for item in value] if isinstance(value, list) else [str(value)]
        flags += ([f"--{name}"] if known[name] else []) + values
    return flags


def format_metrics(metrics: dict[str, float]) -> str:
    """Metrics as a table of two columns, without those that are only of technical interest."""
    shown = {name: value for name, value in metrics.items() if not name.endswith(("_flos", "_per_second"))}
    width = max(map(len, shown), default=0)
    return "\n".join(
        f"{name:<{width}}  {value:>10.4f}" if isinstance(value, float) else f"{name:<{width}}  {value!s:>10}"
        for name, value in shown.items()
    )
