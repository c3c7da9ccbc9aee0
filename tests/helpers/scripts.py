"""Commands and experiment scripts, called in this process."""

import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from vit_hf.cli import main
from vit_hf.cli.parsing import CommandParser, parse, read_arguments


SCRIPTS = Path(__file__).parents[2] / "scripts"
EXPERIMENTS = SCRIPTS / "experiments"
# Fields of a model that a script trains in seconds.
TINY = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "patch_size": 8,
    "num_channels": 1,
}


def command(name: str) -> Callable[[Sequence[str]], int]:
    """A command of `vit-hf`, as a function of its arguments."""
    return lambda argv: main([name, *argv])


def flag_parser(groups: Sequence[type]) -> CommandParser:
    """A parser for the fields of dataclasses."""
    return CommandParser("test", groups, "Describe.\n\n    indented")


def read_flags(groups: Sequence[type], argv: Sequence[str]) -> tuple[Any, ...]:
    """Reads arguments as a command does; an object for each dataclass."""
    parser = flag_parser(groups)
    return parse(parser, read_arguments(parser, argv))[:-1]


def load_script(name: str, folder: Path = SCRIPTS) -> ModuleType:
    """Imports `name`.py of `folder`; as when Python runs it, it can import what lies in its folder."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    spec = importlib.util.spec_from_file_location(f"{name}_script", folder / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load_experiment(name: str) -> ModuleType:
    """Imports `name`.py of the experiments."""
    return load_script(name, EXPERIMENTS)
