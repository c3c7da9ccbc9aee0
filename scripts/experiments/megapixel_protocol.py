"""Compares patch selectors on Megapixel MNIST as published, reduced for a CPU.

    python scripts/experiments/megapixel_protocol.py  # three methods, three seeds each
    python scripts/experiments/megapixel_protocol.py --task top --arms saliency random

Finished runs are not repeated. Settings are those of scripts/configs/megapixel_protocol.yaml, except that
canvases are smaller, and equally dense: of 600x600 pixels with 8 strokes for 1500x1500 with 50, 16 of 144
patches for 100 of 900. The CNN is narrower. There are fewer canvases and far fewer passes over them, too few
to learn from them what digits are: a first run learns that from single digits, a patch each, and every method
continues from there. `resize` shrinks the canvases to as many patches as the others keep. Time is that of the
process, on however many threads torch has (OMP_NUM_THREADS), and memory is the growth of its resident set.
"""

import argparse
import functools
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import harness

from vit_hf.arguments import AugmentationArguments, DataArguments, FinetuningArguments, ModelArguments
from vit_hf.cli.parsing import CommandParser, parse, read_arguments
from vit_hf.measure import peak_memory
from vit_hf.training.arguments import RunArguments
from vit_hf.training.classification import Classification
from vit_hf.training.task import prepare


CONFIG = "megapixel_protocol"
PATCH = 50
# As published: the side of a canvas, its strokes, and the number of patches of which one is kept.
SIZE, STROKES, ONE_IN = 1500, 50, 9
MODEL = {
    "num_channels": 1,
    "patch_size": PATCH,
    "patch_embedding": {
        "type": "convolutional",
        "hidden_sizes": [16, 32],
        "depths": [1, 1],
        "num_groups": 4,
    },
    "hidden_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "initializer_range": 0.1,
    "pooling": "map",
}
# Metrics of the tasks that are not measured by accuracy.
METRICS = {"multi": "exact_match"}


def finetune(flags: dict) -> Callable[[], None]:
    """Prepares a run of CONFIG with other `flags`, and returns a function that writes its result.json."""
    argv = ["--config", CONFIG]
    for name, value in flags.items():
        argv += [f"--{name}", json.dumps(value) if isinstance(value, dict) else str(value)]
    groups = [ModelArguments, DataArguments, AugmentationArguments, FinetuningArguments, RunArguments]
    parser = CommandParser("finetune", groups, "")
    *arguments, training, _ = parse(parser, read_arguments(parser, argv))
    prepared = prepare(Classification(*arguments), training)

    def execute() -> None:
        start = time.process_time()
        metrics = prepared.execute()
        result = {"metrics": metrics, "cpu_s": time.process_time() - start}
        Path(training.output_dir, "result.json").write_text(json.dumps(result))

    return execute


def measure(folder: Path, flags: dict) -> dict:
    """Returns metrics, CPU seconds and MiB of a run in a process of its own."""
    options = {
        "output_dir": folder,
        "overwrite_output_dir": True,
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    # In workers, images would cost time and memory that is not measured.
    memory = peak_memory(finetune, flags | options | {"dataloader_num_workers": 0, "use_cpu": True})
    return json.loads((folder / "result.json").read_text()) | {"memory_mib": memory}


def run(folder: Path, flags: dict) -> dict:
    """Returns metrics, CPU seconds and MiB of a run, which is not repeated if `folder` has them."""
    return harness.cached(folder / "measured.json", flags, functools.partial(measure, folder, flags))


def learn_digits(args: argparse.Namespace, seed: int) -> Path:
    """Trains a checkpoint on single digits."""
    folder = args.output / f"digits_{seed}"
    options = {"task": "single", "size": PATCH, "num_noise": 0, "num_train": args.num_digits, "seed": seed}
    flags = {
        "config_overrides": MODEL,
        "dataset_options": options,
        "num_selected_patches": 1,
        "num_train_epochs": 1,
        "per_device_train_batch_size": 32,
        "learning_rate": 3e-3,
        "seed": seed,
    }
    run(folder, flags)
    return folder


def learn_task(args: argparse.Namespace, arm: str, seed: int) -> dict:
    """Fine-tunes the checkpoint of single digits with one selection method."""
    patches = (args.size // PATCH) ** 2 // ONE_IN
    strokes = round(STROKES * (args.size / SIZE) ** 2)
    options = {
        "task": args.task,
        "size": args.size,
        "num_noise": strokes,
        "num_train": args.num_train,
        "num_test": args.num_test,
        "seed": seed,
    }
    flags = {
        "model_name_or_path": str(learn_digits(args, seed)),
        "config_overrides": {},
        "dataset_options": options,
        "num_selected_patches": patches,
        "num_train_epochs": args.epochs,
        "learning_rate": args.learning_rate,
        "seed": seed,
    }
    if arm == "resize":
        side = PATCH * round(patches**0.5)
        flags |= {
            "native_resolution": False,
            "image_size": side,
            "num_selected_patches": (side // PATCH) ** 2,
        }
    else:
        flags["patch_selector"] = arm
    return run(args.output / f"{args.task}_{arm}_{seed}", flags)


def format_table(results: dict[str, list[dict]], metric: str) -> str:
    table = []
    for arm, rows in results.items():
        score = harness.mean_and_sd([row["metrics"][f"test_{metric}"] for row in rows])
        costs = (f"{statistics.mean(row[name] for row in rows):.0f}" for name in ("cpu_s", "memory_mib"))
        table.append([arm, len(rows), score, *costs])
    header = ["selection", "seeds", f"{metric.replace('_', ' ')} %", "training and test, CPU s", "memory MiB"]
    return harness.markdown_table(header, table)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = harness.make_parser(
        __doc__,
        output="runs/megapixel_protocol_reduced",
        seeds=[0, 1, 2],
        learning_rate=1e-3,
        num_train=2000,
        num_test=500,
        arms=(["entropy", "random", "resize"], "patch selectors, or resize"),
        size=(600, "of a canvas in pixels; a multiple of 150"),
        num_digits=(20000, "single digits of the first run"),
        epochs=(1.0, "passes over the canvases"),
    )
    parser.add_argument(
        "--task", choices=["majority", "max", "top", "multi"], default="majority", help="task of the canvases"
    )
    args = parser.parse_args(argv)
    if args.size < 1 or args.size % (3 * PATCH):
        parser.error(
            f"--size is {args.size}; a ninth of its patches is a square grid for multiples of {3 * PATCH}"
        )
    return args


def main(argv: list[str] | None = None) -> dict[str, list[dict]]:
    args = parse_args(argv)
    results = {arm: [] for arm in args.arms}
    metric = METRICS.get(args.task, "accuracy")
    for seed in args.seeds:
        for arm in args.arms:
            results[arm].append(learn_task(args, arm, seed))
            print(
                f"{args.task}, {arm}, seed {seed}: {results[arm][-1]['metrics'][f'test_{metric}']:.1%}",
                flush=True,
            )
    patches = (args.size // PATCH) ** 2
    print(
        f"\n{args.task} at {args.size}x{args.size}, {patches // ONE_IN} of {patches} patches, "
        f"{args.num_train} canvases; {harness.machine_line()}\n\n"
        f"{format_table(results, metric)}"
    )
    return results


if __name__ == "__main__":
    main()
