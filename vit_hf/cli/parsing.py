"""Arguments of commands: flags, or a YAML or JSON file of them, read without importing torch."""

import argparse
import difflib
import importlib
import importlib.resources
import json
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml
from transformers import HfArgumentParser

from . import PROGRAM
from .choices import PACKAGE, read_choices, read_fields, trainer_flags


CONFIGS = importlib.resources.files(PACKAGE) / "configs"
CONFIG_SUFFIXES = (".yaml", ".yml", ".json")
# Flags whose choices come from a table of classes: its module and name.
TABLES = {
    "patch_selector": ("model.selectors", "PATCH_SELECTORS"),
    "position_encoding": ("model.positions", "POSITION_ENCODINGS"),
    "token_reducer": ("model.reducers", "TOKEN_REDUCERS"),
}
# Module and class of the flags of Trainer.
RUN_ARGUMENTS = ("training.arguments", "RunArguments")
# Flags of Trainer that `--help` shows; `--help-all` shows all.
USUAL = [
    "output_dir",
    "overwrite_output_dir",
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
    "max_grad_norm",
    "bf16",
    "torch_compile",
    "gradient_checkpointing",
    "seed",
    "dataloader_num_workers",
    "logging_steps",
    "eval_strategy",
    "save_strategy",
    "report_to",
    "push_to_hub",
    "hub_model_id",
]


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Leaves the description unchanged, shows defaults that say something, and one spelling of each flag."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=32, width=110)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, argparse.SUPPRESS) or action.required:
            return action.help
        return super()._get_help_string(action)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        # --patch_selector and --patch-selector both work; one is enough to read.
        spellings = action.option_strings
        action.option_strings = [name for name in spellings if "-" not in name[2:]] or spellings
        text = super()._format_action_invocation(action)
        action.option_strings = spellings
        return text


class CommandParser(HfArgumentParser):
    """A parser of a command's arguments.

    Args:
        command: name of the command.
        groups: dataclasses whose fields are flags.
        description: what `--help` says first.
        usage: arguments in the first line of the help.
        run_arguments: module and class with the flags of `Trainer`, if the command takes them. They are known
            by name; `complete` adds them to the parser, for which torch is imported.
    """

    def __init__(
        self,
        command: str,
        groups: Sequence[type],
        description: str,
        usage: str = "",
        run_arguments: tuple[str, str] | None = None,
    ):
        self.command, self.run_arguments = command, run_arguments
        super().__init__(
            list(groups),
            prog=f"{PROGRAM} {command}",
            usage=f"%(prog)s {usage}" if usage else None,
            description=description.strip(),
            formatter_class=HelpFormatter,
            allow_abbrev=False,
            add_help=False,
        )
        self.add_argument("-h", "--help", action="store_true", help="describe the usual flags")
        self.add_argument("--help-all", action="store_true", help="describe all flags, those of Trainer too")
        self.add_argument(
            "--config",
            metavar="NAME",
            help=f"YAML or JSON file of flags, or a name that `{PROGRAM} configs` lists; flags override it",
        )

    def error(self, message: str) -> NoReturn:
        """Ends the program with a message on standard error, and status 2."""
        self.exit(2, f"{self.prog}: {message}\n\n{self.prog} --help describes the arguments.\n")

    def known_flags(self) -> dict[str, str]:
        """Spellings of all flags, with the names of their fields."""
        flags = {option: action.dest for action in self._actions for option in action.option_strings}
        if self.run_arguments is not None:
            for name in self.trainer_fields():
                for spelling in (name, f"no_{name}"):
                    flags |= {f"--{spelling}": name, f"--{spelling.replace('_', '-')}": name}
        return flags

    def format_help(self) -> str:
        """Describes the command, its flags, the usual ones of Trainer, and the choices of tables."""
        parts = [super().format_help().rstrip()]
        if self.run_arguments is not None:
            fields = self.trainer_fields()
            usual = {name: fields[name] for name in USUAL}
            parts.append(
                _list(f"Trainer (the usual ones of {len(fields)}; --help-all shows all)", usual, "--")
            )
        for field, table in TABLES.items():
            if any(action.dest == field for action in self._actions):
                parts.append(_list(f"choices of --{field}", read_choices(*table)))
        return "\n\n".join(parts) + "\n"

    def trainer_fields(self) -> dict[str, str]:
        """Names of the flags of Trainer, with their help, read without torch."""
        # A class of its own derives from that of all commands.
        return {**trainer_flags(), **read_fields(*RUN_ARGUMENTS), **read_fields(*self.run_arguments)}

    def complete(self) -> None:
        """Adds the flags of Trainer, if the command takes them; imports torch."""
        if self.run_arguments is None:
            return
        (module, name), self.run_arguments = self.run_arguments, None
        run_arguments = getattr(importlib.import_module(f"{PACKAGE}.{module}"), name)
        self._add_dataclass_arguments(run_arguments)
        self.dataclass_types.append(run_arguments)


def _list(title: str, lines: dict[str, str], prefix: str = "") -> str:
    """Lists names with a line of text for each, as argparse does."""
    texts = [f"{title}:"]
    for name, text in lines.items():
        wrapped = textwrap.wrap(text, 78) or [""]
        texts += [f"  {prefix}{name:<{30 - len(prefix)}}{wrapped[0]}".rstrip()]
        texts += [" " * 32 + line for line in wrapped[1:]]
    return "\n".join(texts)


def read_arguments(parser: CommandParser, argv: Sequence[str]) -> list[str]:
    """Reads what can be read without torch: help, files of flags, and the names of flags.

    Args:
        parser: of the command.
        argv: arguments after the name of the command.

    Returns:
        The arguments, with the flags of files in front.

    Raises:
        SystemExit: after `--help`, and for unknown flags and files that cannot be read.
    """
    argv = list(argv)
    if "--help-all" in argv:
        parser.complete()
    if {"-h", "--help", "--help-all"} & set(argv):
        print(parser.format_help(), end="")
        parser.exit()
    try:
        argv = expand_config(parser, argv)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    known = parser.known_flags()
    for word in argv:
        name = word.partition("=")[0]
        if name.startswith("--") and name != "--" and name not in known:
            close = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {close[0]}?" if close else ""
            parser.error(f"there is no flag {name}{hint}")
    return argv


def parse(parser: CommandParser, argv: Sequence[str]) -> tuple[Any, ...]:
    """Returns an object for each dataclass of the parser, and a namespace of the other arguments.

    Raises:
        SystemExit: for wrong arguments; what a dataclass refuses (ValueError) is the message.
    """
    try:
        *values, namespace = parser.parse_args_into_dataclasses(
            args=list(argv), look_for_args_file=False, return_remaining_strings=False
        )
    except (OSError, ValueError, ImportError) as error:
        parser.error(str(error))
    return (*values, namespace)


def given_flags(parser: CommandParser, argv: Sequence[str]) -> set[str]:
    """Names the fields that `argv`, as `read_arguments` returns it, does not leave to defaults."""
    known = parser.known_flags()
    given = {known[word.partition("=")[0]] for word in argv if word.partition("=")[0] in known}
    return given - {"config"}


def expand_config(parser: CommandParser, given: Sequence[str]) -> list[str]:
    """Replaces `--config NAME`, or a file as the first argument, by the flags in it, in front of the others.

    Raises:
        FileNotFoundError: if there is no such file or name.
        ValueError: if it is no mapping, or has an entry that is no flag.
    """
    argv, files = [], []
    for word in given:
        argv += word.split("=", 1) if word.startswith("--config=") else [word]
    while "--config" in argv:
        index = argv.index("--config")
        if index + 1 == len(argv):
            raise ValueError(f"--config needs a file or a name; `{PROGRAM} configs` lists the names")
        files.append(argv[index + 1])
        del argv[index : index + 2]
    if argv and argv[0].endswith(CONFIG_SUFFIXES) and not argv[0].startswith("-"):
        files.append(argv.pop(0))
    flags = [flag for file in files for flag in read_config(parser, file)]
    # The last flag takes one value: a list before it would take what is positional in `argv`.
    return [*flags, "--config", files[-1], *argv] if files else argv


def config_names() -> list[str]:
    """Names of the configurations that come with the package."""
    return sorted(
        path.name.removesuffix(".yaml") for path in CONFIGS.iterdir() if path.name.endswith(".yaml")
    )


def read_config(parser: CommandParser, name: str) -> list[str]:
    """Reads a YAML or JSON file as flags.

    As flags, because argparse checks the type and the choices of these only, and because YAML takes 1e-4 for
    text.

    Args:
        parser: that knows the flags.
        name: of a file, or of a configuration that comes with the package.
    """
    path = Path(name)
    if not path.is_file():
        path = CONFIGS / f"{name}.yaml"
    if not path.is_file():
        close = difflib.get_close_matches(name, config_names(), 1)
        hint = f" Did you mean {close[0]!r}?" if close else f" `{PROGRAM} configs` lists the names."
        raise FileNotFoundError(f"there is no configuration {name!r}, as a file or by name.{hint}")
    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))  # JSON is YAML, too
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{name} is no YAML or JSON: {error}") from error
    if not isinstance(entries, dict):
        raise ValueError(f"{name} must hold a mapping from names of flags to values")
    named = {field for flag, field in parser.known_flags().items() if flag.startswith("--")}
    positional = {action.dest for action in parser._actions if not action.option_strings}
    switches = {action.dest for action in parser._actions if action.nargs == 0}
    flags = []
    for entry, value in entries.items():
        if entry not in named | positional:
            close = difflib.get_close_matches(str(entry), named | positional, 1)
            hint = f", perhaps {close[0]!r}" if close else ""
            raise ValueError(f"{name}: there is no flag {entry!r}{hint}")
        if value is None or (entry in switches and value is False):
            continue
        if entry in switches:
            flags.append(f"--{entry}")
            continue
        if isinstance(value, dict):
            value = json.dumps(value)
        values = [str(item) for item in value] if isinstance(value, list) else [str(value)]
        flags += ([] if entry in positional else [f"--{entry}"]) + values
    return flags


def announce(text: str, imports: bool = True) -> None:
    """Says on standard error what begins, so that nobody waits without a word, and then imports the models.

    Args:
        text: what is said.
        imports: whether to import torch, transformers and the models of this package, which registers them
            with the Auto classes; `vit_hf` itself leaves that to its commands.
    """
    print(text, file=sys.stderr, flush=True)
    if imports:
        importlib.import_module("..auto", __package__)


def fail(parser: CommandParser, error: BaseException | str) -> NoReturn:
    """Ends the program, with status 1, by the message of an error that needs no traceback, and its notes."""
    sys.exit("\n".join([f"{parser.prog}: {error}", *getattr(error, "__notes__", [])]))


def format_metrics(metrics: dict[str, float]) -> str:
    """Formats metrics as a table of two columns, without those of only technical interest."""
    shown = {name: value for name, value in metrics.items() if not name.endswith(("_flos", "_per_second"))}
    width = max(map(len, shown), default=0)
    return "\n".join(
        f"{name:<{width}}  {value:>10.4f}" if isinstance(value, float) else f"{name:<{width}}  {value!s:>10}"
        for name, value in shown.items()
    )
