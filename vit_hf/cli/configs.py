"""`vit-hf configs`: the configurations that come with the package."""

from . import PROGRAM
from .parsing import CONFIGS, CommandParser, config_names, parse, read_arguments


DESCRIPTION = f"""
List the configurations that come with the package, with what each is for.

  {PROGRAM} configs
  {PROGRAM} configs small_digits > mine.yaml
  {PROGRAM} finetune --config small_digits --learning_rate 1e-4
"""


def make_parser(name: str = "configs") -> CommandParser:
    parser = CommandParser(name, [], DESCRIPTION, "[NAME]")
    parser.add_argument("name", nargs="?", help="configuration to print")
    return parser


def run(name: str, argv: list[str]) -> None:
    """Prints the list, or one of them."""
    parser = make_parser(name)
    (namespace,) = parse(parser, read_arguments(parser, argv))
    if namespace.name is None:
        for config in config_names():
            first = (CONFIGS / f"{config}.yaml").read_text(encoding="utf-8").partition("\n")[0]
            print(f"{config:<24} {first.lstrip('# ')}")
    elif namespace.name in config_names():
        print((CONFIGS / f"{namespace.name}.yaml").read_text(encoding="utf-8"), end="")
    else:
        parser.error(f"there is no configuration {namespace.name!r}; there are {', '.join(config_names())}")
