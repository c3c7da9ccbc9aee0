"""What selection costs in average precision: boxes around digits among strokes, from all patches and from some.

    pip install vit_hf[train,detection]
    python scripts/detection_ap.py

For each seed and each way one small Deformable DETR over a Vision Transformer, trained from scratch with as many steps on the
same canvases. `resize` shrinks the canvases until they have about as many patches.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path


# Before torch starts its threads: those that wait should sleep, or they take the cores from others.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from transformers.utils.logging import disable_progress_bar

from vit_hf.training import (
    DataArguments,
    DetectionArguments,
    ModelArguments,
    RunArguments,
    prepare_detection,
)


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


def train(args: argparse.Namespace, way: str, share: float, seed: int) -> dict[str, float]:
    """`METRICS` on test canvases, of digits that no training canvas has."""
    patch_size, selection, image_size = ARCHITECTURE["patch_size"], {}, args.size
    if way == "resize":
        image_size = patch_size * round(args.size / patch_size * share**0.5)
    elif way != "all":
        selection = {"patch_selector": way, "num_selected_patches": share}
    options = {"size": args.size, "num_noise": args.num_noise, "num_digits": args.num_digits, "seed": seed}
    options |= {"num_train": args.steps * args.batch_size, "num_test": args.num_test}
    run = prepare_detection(
        ModelArguments(
            config_overrides=ARCHITECTURE, position_encoding="rotary", image_size=image_size, **selection
        ),
        DataArguments(dataset="megapixel_digits", dataset_options=options, validation_share=0.0),
        DetectionArguments(detector_overrides=DETECTOR, single_class=True, num_pictured=0, start_anew=True),
        RunArguments(
            output_dir=str(args.output / f"{way}-{share}-{seed}"),
            num_train_epochs=1,
            per_device_train_batch_size=args.batch_size,
            per_device_eval_batch_size=50,
            learning_rate=args.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=0.1,
            weight_decay=1e-4,
            eval_strategy="no",
            save_strategy="no",
            logging_steps=100,
            seed=seed,
            use_cpu=args.use_cpu,
            disable_tqdm=True,
        ),
    )
    metrics = run.execute()
    return {name: metrics[name] for name in METRICS} | {"patches": (image_size // patch_size) ** 2}


def start_process(num_threads: int) -> None:
    """Processes share the cores."""
    torch.set_num_threads(num_threads)
    disable_progress_bar()


def table(results: dict[str, list[dict[str, float]]]) -> str:
    """Mean and standard deviation over seeds, a row for each way and share."""
    lines = ["| way | patches | seeds | AP50 % | AP % | recall % |", "|---|---|---|---|---|---|"]
    for key, runs in results.items():
        way, share = key.rsplit(" ", 1)
        number = runs[0]["patches"] if way == "resize" else round(runs[0]["patches"] * float(share))
        cells = [
            way,
            str(number),
            str(len(runs)),
            *(_spread([run[name] for run in runs]) for name in METRICS),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _spread(values: list[float]) -> str:
    deviation = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.1f}{deviation}"


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("runs/detection_ap"), help="folder of the runs")
    parser.add_argument(
        "--ways",
        nargs="+",
        default=["saliency", "random", "resize"],
        help="selectors, and resize; beside all",
    )
    parser.add_argument("--shares", type=float, nargs="+", default=[0.25, 0.5], help="of the patches kept")
    parser.add_argument("--seeds", type=int, default=3, help="of data, initialisation and order")
    parser.add_argument("--steps", type=int, default=1000, help="of training, of each way")
    parser.add_argument("--batch-size", type=int, default=16, help="of training")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="highest")
    parser.add_argument("--size", type=int, default=160, help="side of the canvases in pixels")
    parser.add_argument("--num-digits", type=int, default=3, help="on a canvas")
    parser.add_argument("--num-noise", type=int, default=5, help="strokes on a canvas")
    parser.add_argument("--num-test", type=int, default=200, help="canvases to evaluate on")
    parser.add_argument(
        "--jobs", type=int, default=2, help="runs at a time, each on as many threads as are left for it"
    )
    parser.add_argument("--use-cpu", action="store_true", help="even where there is an accelerator")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    ways = [("all", 1.0)]
    ways += [(way, share) for way in args.ways for share in sorted(args.shares, reverse=True)]
    runs = [(way, share, seed) for seed in range(args.seeds) for way, share in ways]
    results: dict[str, dict[int, dict[str, float]]] = {f"{way} {share}": {} for way, share in ways}
    start = time.perf_counter()

    def note(way: str, share: float, seed: int, metrics: dict[str, float]) -> None:
        results[f"{way} {share}"][seed] = metrics
        print(
            f"[{time.perf_counter() - start:.0f} s] seed {seed}, {share:.0%}, {way}: AP50 {metrics['test_map_50']:.1%}",
            flush=True,
        )

    if args.jobs == 1:
        disable_progress_bar()
        for run in runs:
            note(*run, train(args, *run))
    else:
        threads = max(1, torch.get_num_threads() // args.jobs)
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(args.jobs, context, start_process, (threads,)) as pool:
            futures = {pool.submit(train, args, *run): run for run in runs}
            for future in as_completed(futures):
                note(*futures[future], future.result())
    ordered = {way: [by_seed[seed] for seed in sorted(by_seed)] for way, by_seed in results.items()}
    (args.output / "results.json").write_text(json.dumps(ordered, indent=2))
    print(f"\n{table(ordered)}\n\n{time.perf_counter() - start:.0f} s in all")


if __name__ == "__main__":
    main()
