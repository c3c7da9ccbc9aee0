"""Megapixel MNIST as published, reduced so that a CPU trains it: which patches to compute on, at the same number of them.

    python scripts/megapixel_protocol.py                                    # three ways, three seeds each
    python scripts/megapixel_protocol.py --task top --arms saliency random  # others; what is there is not repeated

Canvases are smaller than in scripts/configs/megapixel_protocol.yaml, which all else is taken from, and as dense: of
600x600 pixels with 8 strokes for 1500x1500 with 50, 16 of 144 patches for 100 of 900. The CNN is narrower. There are
fewer canvases and far fewer passes over them, too few to find out from them what digits are: a first run learns that
from single digits, a patch each, and every arm goes on from there. `resize` shrinks the canvases to as many patches as
the others keep. Time is that of the process, on however many threads torch is given (OMP_NUM_THREADS), and memory that
by which its resident set grows.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path


os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch

from vit_hf.measure import peak_memory
from vit_hf.training import (
    AugmentationArguments,
    DataArguments,
    MethodArguments,
    ModelArguments,
    RunArguments,
    make_parser,
    parse_arguments,
    prepare_run,
)


CONFIG = Path(__file__).parent / "configs" / "megapixel_protocol.yaml"
PATCH = 50
# As published: the side of a canvas, its strokes, and one patch of how many is kept.
SIZE, STROKES, SHARE = 1500, 50, 9
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
# What tells how good the answers to a task are, if not accuracy.
METRICS = {"multi": "exact_match"}


def finetune(flags: dict) -> Callable[[], None]:
    """Prepares a run of CONFIG with other `flags`; called, it writes result.json. In a process of its own (`run`)."""
    argv = [str(CONFIG)]
    for name, value in flags.items():
        argv += [f"--{name}", json.dumps(value) if isinstance(value, dict) else str(value)]
    groups = [ModelArguments, DataArguments, AugmentationArguments, MethodArguments, RunArguments]
    *arguments, training = parse_arguments(make_parser(groups, ""), argv)
    prepared = prepare_run(*arguments, training)

    def execute() -> None:
        start = time.process_time()
        metrics = prepared.execute()
        result = {"metrics": metrics, "cpu_s": time.process_time() - start}
        Path(training.output_dir, "result.json").write_text(json.dumps(result))

    return execute


def run(folder: Path, flags: dict) -> dict:
    """Metrics, CPU seconds and MiB of a run; it is not repeated if `folder` has them."""
    file = folder / "measured.json"
    if file.is_file():
        measured = json.loads(file.read_text())
        if measured["flags"] != flags:
            raise SystemExit(f"{folder} was made with other settings: give another --output, or remove it")
        return measured
    options = {"output_dir": folder, "start_anew": True, "save_strategy": "no", "disable_tqdm": True}
    # In workers images would cost time and memory that is not seen.
    memory = peak_memory(finetune, flags | options | {"dataloader_num_workers": 0, "use_cpu": True})
    measured = json.loads((folder / "result.json").read_text()) | {"memory_mib": memory, "flags": flags}
    file.write_text(json.dumps(measured, indent=2))
    return measured


def learn_digits(args: argparse.Namespace, seed: int) -> Path:
    """A checkpoint that knows single digits."""
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
    """What becomes of an arm."""
    patches = (args.size // PATCH) ** 2 // SHARE
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
    lines = [
        f"| selection | seeds | {metric.replace('_', ' ')} % | training and test, CPU s | memory MiB |",
        "|---|---|---|---|---|",
    ]
    for arm, rows in results.items():
        values = [100 * row["metrics"][f"test_{metric}"] for row in rows]
        deviation = statistics.stdev(values) if len(values) > 1 else float("nan")
        seconds, memory = (statistics.mean(row[name] for row in rows) for name in ("cpu_s", "memory_mib"))
        lines.append(
            f"| {arm} | {len(rows)} | {statistics.mean(values):.1f} ± {deviation:.1f} | {seconds:.0f} | {memory:.0f} |"
        )
    return "\n".join(lines)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--arms", nargs="*", default=["entropy", "random", "resize"], help="patch selectors, or resize"
    )
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2], help="of everything")
    parser.add_argument(
        "--task", choices=["majority", "max", "top", "multi"], default="majority", help="of four"
    )
    parser.add_argument("--size", type=int, default=600, help="of a canvas in pixels; a multiple of 150")
    parser.add_argument("--num-train", type=int, default=2000, help="canvases to train on")
    parser.add_argument("--num-test", type=int, default=500, help="canvases to test on")
    parser.add_argument("--num-digits", type=int, default=20000, help="single digits to learn from at first")
    parser.add_argument("--epochs", type=float, default=1, help="passes over the canvases")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="highest, on the canvases")
    parser.add_argument("--output", type=Path, default=Path("runs/megapixel_protocol_reduced"), help="folder")
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
        f"\n{args.task} at {args.size}x{args.size}, {patches // SHARE} of {patches} patches, {args.num_train} canvases; "
        f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}\n\n"
        f"{format_table(results, metric)}"
    )
    return results


if __name__ == "__main__":
    main()
