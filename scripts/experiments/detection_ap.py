"""Measures what patch selection costs in average precision: boxes around digits, from some of the patches.

    pip install vit_hf[train,detection]
    python scripts/experiments/detection_ap.py

For each seed and each method, trains one small Deformable DETR over a Vision Transformer from scratch, with
equally many steps on the same canvases of digits among strokes. `resize` shrinks the canvases until they have
about as many patches.
"""

import argparse
import time
from functools import partial

import harness

from vit_hf.arguments import DetectionArguments, ModelArguments
from vit_hf.training.arguments import RunArguments
from vit_hf.training.detection import Detection
from vit_hf.training.task import prepare


ARCHITECTURE = {
    "hidden_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 192,
    "patch_size": 16,
}
DETECTOR = {
    "d_model": 64,
    "num_queries": 10,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 128,
    "dropout": 0.0,
    "num_feature_levels": 1,
    "with_box_refine": True,
    "auxiliary_loss": True,
}
METRICS = ("test_map_50", "test_map", "test_mar_100")


def train(args: argparse.Namespace, setting: tuple[str, float], seed: int) -> dict[str, float]:
    """Trains one detector and returns `METRICS` on test canvases; no digit is in both splits."""
    method, fraction = setting
    patch_size, selection, image_size = ARCHITECTURE["patch_size"], {}, args.size
    if method == "resize":
        image_size = patch_size * round(args.size / patch_size * fraction**0.5)
    elif method != "all":
        selection = {"patch_selector": method, "num_selected_patches": fraction}
    run = prepare(
        Detection(
            ModelArguments(
                config_overrides=ARCHITECTURE, position_encoding="rotary", image_size=image_size, **selection
            ),
            harness.digit_canvases(
                size=args.size,
                num_noise=args.num_noise,
                num_digits=args.num_digits,
                seed=seed,
                num_train=args.steps * args.batch_size,
                num_test=args.num_test,
            ),
            DetectionArguments(detector_overrides=DETECTOR, single_class=True, num_pictured=0),
        ),
        RunArguments(
            **harness.training_options(
                args.output / f"{method}-{fraction}-{seed}", args, seed, weight_decay=1e-4
            ),
            overwrite_output_dir=True,
        ),
    )
    metrics = run.execute()
    return {name: metrics[name] for name in METRICS} | {"patches": (image_size // patch_size) ** 2}


def table(results: dict[str, list[dict[str, float]]]) -> str:
    """Formats a row for each method and fraction of patches."""
    rows = []
    for key, runs in results.items():
        method, fraction = key.rsplit(" ", 1)
        number = runs[0]["patches"] if method == "resize" else round(runs[0]["patches"] * float(fraction))
        cells = (harness.mean_and_sd([run[name] for run in runs]) for name in METRICS)
        rows.append([method, number, len(runs), *cells])
    return harness.markdown_table(["method", "patches", "seeds", "AP50 %", "AP %", "recall %"], rows)


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    return harness.make_parser(
        __doc__,
        output="runs/detection_ap",
        seeds=3,
        steps=1000,
        batch_size=16,
        learning_rate=1e-3,
        size=160,
        num_noise=5,
        num_test=200,
        use_cpu=False,
        ways=(["saliency", "random", "resize"], "selectors, and resize; compared with all patches"),
        shares=([0.25, 0.5], "fractions of the patches to keep"),
        num_digits=(3, "on a canvas"),
        jobs=(2, "runs at a time, each on as many threads as are left for it"),
    ).parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    log = harness.Log(time.perf_counter)  # the runs are processes of their own
    results = harness.run_settings(
        args.seeds,
        harness.selections(args.ways, args.shares),
        partial(train, args),
        log,
        lambda metrics: f"AP50 {metrics['test_map_50']:.1%}",
        args.output / "results.json",
        args.jobs,
    )
    print(f"\n{table(results)}\n\n{log.total()}")


if __name__ == "__main__":
    main()
