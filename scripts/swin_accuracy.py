"""Does a hierarchy help with objects of several sizes? Swin beside a plain ViT, and Swin on some of its windows.

    python scripts/swin_accuracy.py

Canvases hold one digit among strokes, as large as a stroke, half or twice that; the answer is which digit it is. For each
seed each architecture first learns digits of all sizes on canvases half as wide, without strokes. Each way goes on from
there, with as many steps on the same canvases: all patches, some windows by each selector, or the canvas made half as
wide, which are as many windows. Then it is tested on canvases with digits of one size.
"""

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any


# Before torch starts its threads: those that wait should sleep, or they take the cores from others.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoImageProcessor, AutoModelForImageClassification
from transformers.utils.logging import disable_progress_bar

from vit_hf.data import megapixel_digits
from vit_hf.training import (
    AugmentationArguments,
    DataArguments,
    MethodArguments,
    ModelArguments,
    RunArguments,
    prepare_run,
)


# Of about as many operations on a canvas.
ARCHITECTURES = {
    "ViT": {
        "model_type": "adaptive_vit",
        "position_encoding": "rotary",
        "config_overrides": {
            "hidden_size": 96,
            "num_hidden_layers": 3,
            "num_attention_heads": 3,
            "intermediate_size": 384,
            "patch_size": 8,
            "num_channels": 1,
            "pooling": "mean",
            "initializer_range": 0.1,
        },
    },
    "Swin": {
        "model_type": "adaptive_swin",
        "config_overrides": {
            "embed_dim": 32,
            "depths": [2, 2, 2],
            "num_heads": [2, 4, 8],
            "window_size": 7,
            "window_fit": "fixed",
            "patch_size": 4,
            "num_channels": 1,
            "drop_path_rate": 0.0,
            "initializer_range": 0.1,
        },
    },
}


def finetune(
    folder: Path, model: dict[str, Any], data: dict[str, Any], args: argparse.Namespace, seed: int
) -> None:
    """One pass over canvases that are all different; the model is saved to `folder`."""
    run = prepare_run(
        ModelArguments(**model),
        DataArguments(
            dataset="megapixel_digits", dataset_options=data | {"num_test": 1}, validation_share=0.0
        ),
        AugmentationArguments(),
        MethodArguments(start_anew=True),
        RunArguments(
            output_dir=str(folder),
            num_train_epochs=1,
            per_device_train_batch_size=args.batch_size,
            learning_rate=args.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=0.1,
            weight_decay=0.05,
            eval_strategy="no",
            save_strategy="no",
            logging_steps=100,
            seed=seed,
            use_cpu=args.use_cpu,
            disable_tqdm=True,
        ),
    )
    run.execute()


def canvases(args: argparse.Namespace, digit_size: Any, **options: Any) -> dict[str, Any]:
    return {
        "task": "single",
        "size": args.size,
        "num_noise": args.num_noise,
        "digit_size": digit_size,
        **options,
    }


@torch.no_grad()
def test(folder: Path, args: argparse.Namespace, seed: int) -> dict[str, float]:
    """Accuracy by the side of the digit, and GFLOPs of a canvas."""
    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    processor = AutoImageProcessor.from_pretrained(folder)
    results = {}
    for side in args.digit_sizes:
        rows = megapixel_digits(**canvases(args, side, num_train=0, num_test=args.num_test, seed=seed))[
            "test"
        ]
        right = 0
        for batch in rows.iter(100):
            logits = model(**processor(batch["image"], return_tensors="pt")).logits
            right += (logits.argmax(-1) == torch.tensor(batch["label"])).sum().item()
        results[str(side)] = right / len(rows)
    counter = FlopCounterMode(display=False)
    with counter:
        model(**processor(rows[0]["image"], return_tensors="pt"))
    return results | {"gflops": counter.get_total_flops() / 1e9}


def ways(args: argparse.Namespace) -> dict[str, tuple[str, dict[str, Any]]]:
    """Name: architecture, and what is asked of it."""
    native = {"native_resolution": True}
    small = {"image_size": args.size // 2}
    chosen = {"config_overrides": {"num_selected_windows": args.windows}}
    return {
        "ViT, all patches": ("ViT", native),
        "Swin, all windows": ("Swin", native),
        **{
            f"Swin, {args.windows:.0%} of the windows by `{name}`": (
                "Swin",
                native | chosen | {"patch_selector": name},
            )
            for name in args.selectors
        },
        f"Swin, resized to {args.size // 2}x{args.size // 2}": ("Swin", small),
    }


def table(results: dict[str, list[dict[str, float]]], sizes: list[int]) -> str:
    """Mean and standard deviation over seeds, a row for each way."""
    lines = ["| | GFLOPs | " + " | ".join(f"digits of {side} px" for side in sizes) + " |"]
    lines.append("|---" * (len(sizes) + 2) + "|")
    for way, rows in results.items():
        cells = []
        for side in sizes:
            values = [100 * row[str(side)] for row in rows]
            deviation = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.1f}{deviation}")
        lines.append(f"| {way} | {rows[0]['gflops']:.3f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("runs/swin_accuracy"), help="folder of the runs")
    parser.add_argument(
        "--selectors", nargs="+", default=["saliency", "variance", "random"], help="of windows"
    )
    parser.add_argument("--windows", type=float, default=0.25, help="share of the windows that is kept")
    parser.add_argument("--seeds", type=int, default=3, help="of data, initialisation and order")
    parser.add_argument("--size", type=int, default=112, help="side of the canvases in pixels")
    parser.add_argument("--digit-sizes", type=int, nargs="+", default=[14, 28, 56], help="tested, in pixels")
    parser.add_argument("--num-noise", type=int, default=4, help="strokes on a canvas")
    parser.add_argument(
        "--num-pretrain", type=int, default=16000, help="canvases without strokes, half as wide"
    )
    parser.add_argument("--num-train", type=int, default=6000, help="canvases that each way learns from")
    parser.add_argument("--num-test", type=int, default=500, help="canvases for each size of digits")
    parser.add_argument("--batch-size", type=int, default=32, help="of training")
    parser.add_argument("--learning-rate", type=float, default=2e-3, help="highest")
    parser.add_argument("--use-cpu", action="store_true", help="even where there is an accelerator")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> dict[str, list[dict[str, float]]]:
    args = parse_arguments(argv)
    disable_progress_bar()
    sizes = (min(args.digit_sizes), max(args.digit_sizes))
    results: dict[str, list[dict[str, float]]] = {name: [] for name in ways(args)}
    start = time.process_time()
    for seed in range(args.seeds):
        for name, architecture in ARCHITECTURES.items():
            easy = canvases(
                args, sizes, size=args.size // 2, num_noise=0, num_train=args.num_pretrain, seed=seed
            )
            model = architecture | {"image_size": args.size // 2}
            finetune(args.output / f"{name}-{seed}", model, easy, args, seed)
            print(f"[{time.process_time() - start:.0f} s] {name}, seed {seed}: knows digits", flush=True)
        for number, (way, (name, asked)) in enumerate(ways(args).items()):
            folder = args.output / f"{number}-{seed}"
            model = {"model_name_or_path": str(args.output / f"{name}-{seed}"), **asked}
            finetune(
                folder, model, canvases(args, sizes, num_train=args.num_train, seed=seed + 1000), args, seed
            )
            results[way].append(test(folder, args, seed + 2000))
            accuracies = ", ".join(
                f"{results[way][-1][str(side)]:.1%} at {side} px" for side in args.digit_sizes
            )
            print(f"[{time.process_time() - start:.0f} s] {way}, seed {seed}: {accuracies}", flush=True)
            (args.output / "results.json").write_text(json.dumps(results, indent=2))
    print(f"\n{table(results, args.digit_sizes)}\n\n{time.process_time() - start:.0f} s of CPU time in all")
    return results


if __name__ == "__main__":
    main()
