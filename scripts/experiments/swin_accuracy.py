"""Compares Swin, Swin on some of its windows, and a plain ViT on objects of several sizes.

    python scripts/experiments/swin_accuracy.py

Canvases hold one digit among strokes, as large as a stroke, half or twice that; the label is the digit. For
each seed, each architecture first learns digits of all sizes on canvases half as wide, without strokes. Each
method continues from there with equally many steps on the same canvases: all patches, some windows by each
selector, or the canvas resized to half its width, which has equally many windows. Then it is tested on
canvases with digits of one size.
"""

import argparse
from functools import cache
from pathlib import Path
from typing import Any

import harness
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoImageProcessor, AutoModelForImageClassification

from vit_hf.arguments import AugmentationArguments, FinetuningArguments, ModelArguments
from vit_hf.data.megapixel_digits import megapixel_digits
from vit_hf.training.arguments import RunArguments
from vit_hf.training.classification import Classification
from vit_hf.training.task import prepare


# With about equally many operations on a canvas.
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
    """Trains for one pass over canvases that are all different, and saves the model to `folder`."""
    run = prepare(
        Classification(
            ModelArguments(**model),
            harness.digit_canvases(**data | {"num_test": 1}),
            AugmentationArguments(),
            FinetuningArguments(),
        ),
        RunArguments(**harness.training_options(folder, args, seed), overwrite_output_dir=True),
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
    """Returns the accuracy by the side of the digit, and the GFLOPs of a canvas."""
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


def methods(args: argparse.Namespace) -> dict[str, tuple[str, dict[str, Any]]]:
    """Returns, by name, the architecture and its further arguments."""
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
    """Formats a row for each method."""
    rows = [
        [
            method,
            f"{found[0]['gflops']:.3f}",
            *(harness.mean_and_sd([row[str(side)] for row in found]) for side in sizes),
        ]
        for method, found in results.items()
    ]
    return harness.markdown_table(["", "GFLOPs", *(f"digits of {side} px" for side in sizes)], rows)


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    return harness.make_parser(
        __doc__,
        output="runs/swin_accuracy",
        seeds=3,
        batch_size=32,
        learning_rate=2e-3,
        size=112,
        num_noise=4,
        num_train=6000,
        num_test=500,
        use_cpu=False,
        selectors=(["saliency", "variance", "random"], "of windows"),
        windows=(0.25, "fraction of the windows to keep"),
        digit_sizes=([14, 28, 56], "tested, in pixels"),
        num_pretrain=(16000, "canvases without strokes, half as wide"),
    ).parse_args(argv)


def main(argv: list[str] | None = None) -> dict[str, list[dict[str, float]]]:
    args = parse_arguments(argv)
    sizes = (min(args.digit_sizes), max(args.digit_sizes))
    log = harness.Log()

    @cache
    def pretrained(name: str, seed: int) -> str:
        half, folder = args.size // 2, args.output / f"{name}-{seed}"
        easy = canvases(args, sizes, size=half, num_noise=0, num_train=args.num_pretrain, seed=seed)
        finetune(folder, ARCHITECTURES[name] | {"image_size": half}, easy, args, seed)
        log(f"{name}, seed {seed}: knows digits")
        return str(folder)

    def run(setting: tuple[int, tuple[str, dict[str, Any]]], seed: int) -> dict[str, float]:
        number, (name, further) = setting
        folder = args.output / f"{number}-{seed}"
        model = {"model_name_or_path": pretrained(name, seed), **further}
        finetune(folder, model, canvases(args, sizes, num_train=args.num_train, seed=seed + 1000), args, seed)
        return test(folder, args, seed + 2000)

    def summarize(found: dict[str, float]) -> str:
        return ", ".join(f"{found[str(side)]:.1%} at {side} px" for side in args.digit_sizes)

    settings = {name: (number, method) for number, (name, method) in enumerate(methods(args).items())}
    results = harness.run_settings(args.seeds, settings, run, log, summarize, args.output / "results.json")
    print(f"\n{table(results, args.digit_sizes)}\n\n{log.total()}")
    return results


if __name__ == "__main__":
    main()
