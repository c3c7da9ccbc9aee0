"""What selection costs in IoU: masks of digits among strokes, from all patches and from some.

    python scripts/segmentation_iou.py

For each seed, one small Vision Transformer for each selector and share of patches, trained from scratch with as many
steps on the same canvases; patches that were not kept are filled by the model's `restore`.
"""

import argparse
import json
import os
import statistics
import time
from pathlib import Path


# Before torch starts its threads: those that wait should sleep, or they take the cores from others.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from transformers.utils.logging import disable_progress_bar

from vit_hf.training import (
    DataArguments,
    ModelArguments,
    RunArguments,
    SegmentationArguments,
    prepare_segmentation,
)


ARCHITECTURE = {
    "hidden_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 192,
    "patch_size": 16,
    "num_channels": 1,
}


def train(output: Path, args: argparse.Namespace, selector: str | None, share: float, seed: int) -> float:
    """IoU of digits on test canvases, of digits that no training canvas has."""
    selection = {} if selector is None else {"patch_selector": selector, "num_selected_patches": share}
    options = {"size": args.size, "num_noise": args.num_noise, "seed": seed, "num_test": args.num_test}
    options["num_train"] = args.steps * args.batch_size
    run = prepare_segmentation(
        ModelArguments(
            config_overrides=ARCHITECTURE, position_encoding="rotary", image_size=args.size, **selection
        ),
        DataArguments(dataset="megapixel_digits", dataset_options=options, validation_share=0.0),
        SegmentationArguments(segmentation_decoder=args.segmentation_decoder, binary=True),
        RunArguments(
            output_dir=str(output),
            num_train_epochs=1,
            per_device_train_batch_size=args.batch_size,
            per_device_eval_batch_size=50,
            learning_rate=args.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=0.1,
            weight_decay=0.05,
            eval_strategy="no",
            save_strategy="no",
            logging_steps=50,
            seed=seed,
            use_cpu=args.use_cpu,
            disable_tqdm=True,
        ),
    )
    return run.execute()["test_iou_foreground"]


def table(results: dict[str, list[float]]) -> str:
    """Mean and standard deviation over seeds, a row for each selector and share."""
    lines = ["| selection | patches | seeds | IoU of digits % |", "|---|---|---|---|"]
    for way, values in results.items():
        name, share = way.rsplit(" ", 1)
        deviation = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
        lines.append(
            f"| {name} | {float(share):.0%} | {len(values)} | {100 * statistics.mean(values):.1f}{deviation} |"
        )
    return "\n".join(lines)


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--output", type=Path, default=Path("runs/segmentation_iou"), help="folder of the runs"
    )
    parser.add_argument("--selectors", nargs="+", default=["saliency", "random"], help="beside all patches")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.25, 0.5], help="of the patches kept")
    parser.add_argument("--seeds", type=int, default=3, help="of data, initialisation and order")
    parser.add_argument("--steps", type=int, default=600, help="of training, of each way")
    parser.add_argument("--batch-size", type=int, default=16, help="of training")
    parser.add_argument("--learning-rate", type=float, default=2e-3, help="highest")
    parser.add_argument("--segmentation-decoder", default="convolutional", help="or linear")
    parser.add_argument("--size", type=int, default=128, help="side of the canvases in pixels")
    parser.add_argument("--num-noise", type=int, default=5, help="strokes on a canvas")
    parser.add_argument("--num-test", type=int, default=200, help="canvases to evaluate on")
    parser.add_argument("--use-cpu", action="store_true", help="even where there is an accelerator")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    disable_progress_bar()
    ways = [("all", None, 1.0)]
    ways += [(name, name, share) for name in args.selectors for share in sorted(args.shares, reverse=True)]
    results = {f"{name} {share}": [] for name, _, share in ways}
    start = time.process_time()
    for seed in range(args.seeds):
        for name, selector, share in ways:
            iou = train(args.output / f"{name}-{share}-{seed}", args, selector, share, seed)
            results[f"{name} {share}"].append(iou)
            print(
                f"[{time.process_time() - start:.0f} s] seed {seed}, {share:.0%} by {name}: IoU {iou:.1%}",
                flush=True,
            )
    (args.output / "results.json").write_text(json.dumps(results, indent=2))
    print(f"\n{table(results)}\n\n{time.process_time() - start:.0f} s of CPU time in all")


if __name__ == "__main__":
    main()
