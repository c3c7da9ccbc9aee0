"""`vit-hf evaluate`: metrics of a saved classifier."""

import sys

from ..arguments import DataArguments, EvaluationArguments
from . import PROGRAM
from .parsing import CommandParser, announce, fail, format_metrics, parse, read_arguments


DESCRIPTION = f"""
Measure a saved image classifier on labeled images.

  {PROGRAM} evaluate --model_name_or_path runs/photos --dataset photos/ --split validation
  {PROGRAM} evaluate --model_name_or_path runs/photos --dataset photos/ --num_selected_patches 49

Prints a table of metrics and writes them to a JSON file.
"""


def make_parser(name: str = "evaluate") -> CommandParser:
    usage = "[CONFIG.yaml] --model_name_or_path MODEL --dataset DATASET [flag ...]"
    return CommandParser(name, [EvaluationArguments, DataArguments], DESCRIPTION, usage)


def run(name: str, argv: list[str]) -> None:
    """Evaluates, and prints the metrics."""
    parser = make_parser(name)
    arguments, data_arguments, _ = parse(parser, read_arguments(parser, argv))
    announce(f"{parser.prog}: loading torch and transformers ...")
    from ..inference.evaluation import evaluate_model

    try:
        metrics, output = evaluate_model(arguments, data_arguments)
    except (OSError, ValueError) as error:
        fail(parser, error)
    print(f"{format_metrics(metrics)}\n\nSaved to {output}")
    if arguments.split is None and any(metric.startswith("train_") for metric in metrics):
        print(
            "\nNote: these data have no test or validation split, so all of them were evaluated. If the "
            "model was trained on them, --split validation measures the part that finetune held out.",
            file=sys.stderr,
        )
