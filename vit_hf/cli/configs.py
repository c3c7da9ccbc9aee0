"""`vit-hf configs`: the configurations that come with the package."""

from . import PROGRAM
from .parsing import CONFIGS, CommandParser, config_names, parse, read_arguments


DESCRIPTION = f"""
List the configurations that come with the package, or print one of them.

  {PROGRAM} configs
  {PROGRAM} configs small_digits > mine.yaml
  {PROGRAM} finetune --config small_digits --learning_rate 1e-4
  accelerate launch --config_file $({PROGRAM} configs accelerate_ddp --path) \\
      -m vit_hf finetune --config imagefolder
"""


def make_parser(name: str = "configs") -> CommandParser:
    parser = CommandParser(name, [], DESCRIPTION, "[NAME] [--path]")
    parser.add_argument("name", nargs="?", metavar="NAME", help="configuration to print; default: list them")
    parser.add_argument("--path", action="store_true", help="print the path of its file instead")
    return parser


def summary_of(config: str) -> str:
    """Returns the first sentence of the comment in a configuration."""
    lines = (CONFIGS / f"{config}.yaml").read_text(encoding="utf-8").splitlines()
    comment = " ".join(line.lstrip("# ") for line in lines if line.startswith("#"))
    return comment.partition(". ")[0].partition(": ")[0].rstrip(".:")


def run(name: str, argv: list[str]) -> None:
    """Prints the list, or one of them."""
    parser = make_parser(name)
    (namespace,) = parse(parser, read_arguments(parser, argv))
    if namespace.name is None:
        for config in config_names():
            print(f"{config:<24} {summary_of(config)}")
    elif namespace.name not in config_names():
        parser.error(f"there is no configuration {namespace.name!r}; there are {', '.join(config_names())}")
    elif namespace.path:
        print(CONFIGS / f"{namespace.name}.yaml")
    else:
        print((CONFIGS / f"{namespace.name}.yaml").read_text(encoding="utf-8"), end="")
