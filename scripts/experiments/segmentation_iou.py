"""Measures what patch selection costs in IoU: masks of digits among strokes, from all patches and from some.

    python scripts/experiments/segmentation_iou.py

For each seed, trains one small Vision Transformer from scratch for each selector and fraction of patches,
with equally many steps on the same canvases; the model's `restore` fills in the patches that were not kept.
"""

import argparse
from functools import partial

import harness

from vit_hf.arguments import ModelArguments, SegmentationArguments
from vit_hf.training.arguments import RunArguments
from vit_hf.training.segmentation import Segmentation
from vit_hf.training.task import prepare


ARCHITECTURE = {
    "hidden_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 192,
    "patch_size": 16,
    "num_channels": 1,
}


def train(args: argparse.Namespace, setting: tuple[str, float], seed: int) -> float:
    """Trains one model and returns the IoU of digits on test canvases; no digit is in both splits."""
    selector, fraction = setting
    selection = {} if selector == "all" else {"patch_selector": selector, "num_selected_patches": fraction}
    output = args.output / f"{selector}-{fraction}-{seed}"
    run = prepare(
        Segmentation(
            ModelArguments(
                config_overrides=ARCHITECTURE, position_encoding="rotary", image_size=args.size, **selection
            ),
            harness.digit_canvases(
                size=args.size,
                num_noise=args.num_noise,
                seed=seed,
                num_train=args.steps * args.batch_size,
                num_test=args.num_test,
            ),
            SegmentationArguments(segmentation_decoder=args.segmentation_decoder, binary=True),
        ),
        RunArguments(**harness.training_options(output, args, seed, logging_steps=50)),
    )
    return run.execute()["test_iou_foreground"]


def table(results: dict[str, list[float]]) -> str:
    """Formats a row for each selector and fraction of patches."""
    rows = []
    for method, values in results.items():
        name, fraction = method.rsplit(" ", 1)
        rows.append([name, f"{float(fraction):.0%}", len(values), harness.mean_and_sd(values)])
    return harness.markdown_table(["selection", "patches", "seeds", "IoU of digits %"], rows)


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    return harness.make_parser(
        __doc__,
        output="runs/segmentation_iou",
        seeds=3,
        steps=600,
        batch_size=16,
        learning_rate=2e-3,
        size=128,
        num_noise=5,
        num_test=200,
        use_cpu=False,
        selectors=(["saliency", "random"], "to compare with all patches"),
        shares=([0.25, 0.5], "fractions of the patches to keep"),
        segmentation_decoder=("convolutional", "or linear"),
    ).parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    log = harness.Log()
    results = harness.run_settings(
        args.seeds,
        harness.selections(args.selectors, args.shares),
        partial(train, args),
        log,
        lambda iou: f"IoU {iou:.1%}",
        args.output / "results.json",
    )
    print(f"\n{table(results)}\n\n{log.total()}")


if __name__ == "__main__":
    main()
