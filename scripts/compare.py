"""I trained at 224 pixels and my images are 1024 wide: what should I do? Every way, measured on your own
data.

    python scripts/compare.py --model google/vit-base-patch16-224 --data photos/ --adapt 200
    python scripts/compare.py --model runs/photos --data photos/ --strategies resize select --tokens 98 196
    python scripts/compare.py --demo

Resizing, overlapping tiles, all patches at full resolution, some of them by each selector, fewer tokens
inside the encoder, and a hybrid stem (--hybrid): accuracy with its interval, latency, images/s, peak memory,
GFLOPs and tokens. Writes results.csv, pareto.png and report.html, and says what it recommends. Run again with
the same settings, it goes on where it was. --demo trains two small models first and compares them on the
embedded data; flags beside it override.

The first argument may be a YAML or JSON file of flags; flags after it override it.
"""

import os
import sys
from pathlib import Path


# Before torch starts its threads: those that wait should sleep.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from transformers.utils.logging import disable_progress_bar

from vit_hf.comparison.options import ComparedDataArguments, ComparisonArguments
from vit_hf.comparison.report import write_card, write_report
from vit_hf.comparison.running import compare
from vit_hf.comparison.training import demonstration
from vit_hf.training.command_line import given_flags, make_parser, parse_arguments


def main(argv: list[str] | None = None) -> None:
    parser = make_parser(
        [ComparisonArguments, ComparedDataArguments],
        __doc__,
        usage="%(prog)s [CONFIG.yaml] --model MODEL --data DATASET [flag ...]",
    )
    parser.add_argument("--demo", action="store_true", help="on the embedded data; some minutes on two cores")
    arguments, data_arguments, namespace = parse_arguments(parser, argv)
    disable_progress_bar()
    log = lambda text: print(text, flush=True)  # noqa: E731
    try:
        if namespace.demo:
            given = given_flags(parser, argv)
            arguments, data_arguments = demonstration(arguments, data_arguments, given, log)
        comparison = compare(arguments, data_arguments, log)
    except (OSError, ValueError) as error:
        sys.exit(f"compare.py: {error}")
    except KeyboardInterrupt:
        sys.exit("\ncompare.py: interrupted. Started again with the same arguments, it goes on where it was")
    output = Path(arguments.output)
    print(f"\n{write_report(comparison, output)}\n\nLook at {output / 'report.html'}")
    if arguments.card is not None:
        command = " ".join(["python scripts/compare.py", *(sys.argv[1:] if argv is None else argv)])
        print(f"Card: {write_card(comparison, output, Path(arguments.card), command)}")


if __name__ == "__main__":
    main()
