"""Turn a Vision Transformer of another family into an AdaptiveViT with the same outputs.

    python scripts/convert.py facebook/dinov2-base --output runs/dinov2
    python scripts/convert.py my_deit/ --output runs/deit --fields '{"patch_selector": "saliency", "num_selected_patches": 196}'
    python scripts/convert.py --verify-all

Writes model, image processor and code to a folder that `from_pretrained` loads. --verify-all converts a small random
model of every family and prints how far the outputs are apart.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
import transformers
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from vit_hf import convert
from vit_hf.checkpoints import FAMILIES
from vit_hf.checkpoints.verify import verify_all


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "source", nargs="?", help=f"checkpoint, local or on the Hub: {', '.join(sorted(FAMILIES))}"
    )
    parser.add_argument("--output", type=Path, help="folder to write")
    parser.add_argument("--fields", type=json.loads, default={}, help="of AdaptiveViTConfig, as JSON")
    parser.add_argument("--verify-all", action="store_true", help="compare every family and print a table")
    arguments = parser.parse_args(argv)
    if not arguments.verify_all and not (arguments.source and arguments.output):
        parser.error("give a checkpoint and --output, or --verify-all")
    return arguments


def print_table() -> None:
    print(f"Small random models, fp32, torch {torch.__version__}, transformers {transformers.__version__}\n")
    print(
        "| checkpoint | class in transformers | native size, max difference | other sizes, max difference | selection |"
    )
    print("|---|---|---|---|---|")
    for verdict in verify_all():
        selection = "works" if verdict.selection else "no"
        print(
            f"| {verdict.name} | {verdict.original} | {verdict.native:.1e} | {verdict.other:.1e} | {selection} |"
        )


def main(argv: list[str] | None = None) -> None:
    arguments = parse_arguments(argv)
    if arguments.verify_all:
        disable_progress_bar()
        set_verbosity_error()
        print_table()
        return
    try:
        model, image_processor = convert(arguments.source, **arguments.fields)
    except (OSError, ValueError) as error:
        sys.exit(f"convert.py: {error}")
    model.save_pretrained(arguments.output)
    image_processor.save_pretrained(arguments.output)
    print(f"{type(model).__name__} with {model.num_parameters():,} parameters written to {arguments.output}")


if __name__ == "__main__":
    main()
