"""`vit-hf compare`: every strategy for large images, on the user's own data."""

import sys
from pathlib import Path

from ..arguments import ComparedDataArguments, ComparisonArguments
from . import PROGRAM
from .parsing import CommandParser, announce, fail, given_flags, parse, read_arguments


DESCRIPTION = f"""
I trained at 224 pixels and my images are 1024 wide: what should I do? Every strategy, measured on your
own data.

  {PROGRAM} compare --model google/vit-base-patch16-224 --data photos/ --adapt 200
  {PROGRAM} compare --model runs/photos --data photos/ --strategies resize select --tokens 98 196
  {PROGRAM} compare --model runs/photos --data photos/ --tokens auto --margin 1
  {PROGRAM} compare --demo

Resizing, overlapping tiles, all patches at full resolution, some of them by each selector, fewer tokens
inside the encoder, and a hybrid stem (--hybrid): accuracy with its interval, latency, images/s, peak
memory, GFLOPs and tokens. Writes results.csv, pareto.png and report.html, and says what it recommends.
--tokens auto finds the fewest patches that are as accurate as all of them, up to a margin in percentage
points, and the command to go on with. Run again with the same settings, it goes on where it was. --demo
trains two small models first and compares them on the embedded data; flags given with it override its
settings.
"""


def make_parser(name: str = "compare") -> CommandParser:
    usage = "[CONFIG.yaml] --model MODEL --data DATASET [flag ...]"
    parser = CommandParser(name, [ComparisonArguments, ComparedDataArguments], DESCRIPTION, usage)
    parser.add_argument("--demo", action="store_true", help="on the embedded data; some minutes on two cores")
    return parser


def run(name: str, argv: list[str]) -> None:
    """Compares, and prints the table and the recommendation."""
    parser = make_parser(name)
    argv = read_arguments(parser, argv)
    arguments, data_arguments, namespace = parse(parser, argv)
    announce(f"{parser.prog}: loading torch and transformers ...")
    from tqdm.auto import tqdm
    from transformers.utils.logging import disable_progress_bar

    from ..comparison.choosing import format_table
    from ..comparison.report import write_card, write_report
    from ..comparison.running import compare
    from ..comparison.training import demonstration

    disable_progress_bar()

    def say(text: str) -> None:
        tqdm.write(text)  # around the bar, if both are on a terminal
        sys.stdout.flush()

    if arguments.split == "train":
        announce(
            f"{parser.prog}: --split train measures on images that the checkpoint may have been trained on, "
            "which flatters it",
            imports=False,
        )
    try:
        if namespace.demo:
            given = given_flags(parser, argv)
            arguments, data_arguments = demonstration(arguments, data_arguments, given, say)
        comparison = compare(arguments, data_arguments, say)
    except (OSError, ValueError) as error:
        fail(parser, error)
    except KeyboardInterrupt:
        sys.exit(
            f"\n{parser.prog}: interrupted. Started again with the same arguments, it goes on where it was"
        )
    output = Path(arguments.output)
    if comparison.choice is not None:
        print(f"\n{format_table(comparison.choice)}")
    print(f"\n{write_report(comparison, output)}\n\nLook at {output / 'report.html'}")
    if comparison.choice is not None and comparison.choice.row is not None:
        print(f"To go on:\n  {comparison.choice.command}")
    if arguments.card is not None:
        command = " ".join([parser.prog, *argv])
        print(f"Card: {write_card(comparison, output, Path(arguments.card), command)}")
