"""Measure a saved image classifier on labelled images.

    python scripts/evaluate.py --model_name_or_path runs/photos --dataset photos/ --split validation
    python scripts/evaluate.py --model_name_or_path runs/photos --dataset photos/ --num_selected_patches 49

Prints a table of metrics and writes them to a JSON file. The first argument may be a YAML or JSON file of
flags; flags after it override it.
"""

import sys

from vit_hf.data.arguments import DataArguments
from vit_hf.inference.evaluation import EvaluationArguments, evaluate_model
from vit_hf.training.command_line import format_metrics, make_parser, parse_arguments


def main(argv: list[str] | None = None) -> None:
    parser = make_parser(
        [EvaluationArguments, DataArguments],
        __doc__,
        usage="%(prog)s [CONFIG.yaml] --model_name_or_path MODEL --dataset DATASET [flag ...]",
    )
    arguments, data_arguments = parse_arguments(parser, argv)
    try:
        metrics, output = evaluate_model(arguments, data_arguments)
    except (OSError, ValueError) as error:
        sys.exit(f"evaluate.py: {error}")
    print(f"{format_metrics(metrics)}\n\nSaved to {output}")
    if arguments.split is None and any(name.startswith("train_") for name in metrics):
        print(
            "\nNote: these data have no test or validation split, so all of them were evaluated. "
            "If the model was trained "
            "on them, --split validation measures the part that finetune.py held out.",
            file=sys.stderr,
        )


if __name__ == "__main__":
    main()
