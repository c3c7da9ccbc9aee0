"""What pretraining without labels brings where labels are few, measured on the embedded digits.

    python scripts/pretraining_gain.py

For each seed a small Vision Transformer is pretrained by masked autoencoding on canvases without labels. Then models are
fine-tuned on a few labelled canvases, from that encoder and from scratch, with as many steps and the same settings.
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
    ArchitectureArguments,
    AugmentationArguments,
    DataArguments,
    MethodArguments,
    ModelArguments,
    PretrainingArguments,
    RunArguments,
    prepare_pretraining,
    prepare_run,
)


ARCHITECTURE = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "patch_size": 4,
    "initializer": "xavier_uniform",
    "num_channels": 1,
    "pooling": "mean",
    "masked_autoencoder": {
        "decoder_hidden_size": 32,
        "decoder_num_hidden_layers": 1,
        "decoder_num_attention_heads": 4,
        "decoder_intermediate_size": 64,
    },
}


def canvases(args: argparse.Namespace, num_train: int, seed: int) -> DataArguments:
    options = {"task": "single", "size": args.size, "num_noise": args.num_noise, "seed": seed}
    options |= {"num_train": num_train, "num_test": args.num_test}
    return DataArguments(dataset="megapixel_digits", dataset_options=options, validation_share=0.0)


def settings(output: Path, args: argparse.Namespace, seed: int, steps: int, rate: float) -> RunArguments:
    return RunArguments(
        output_dir=str(output),
        max_steps=steps,
        per_device_train_batch_size=args.batch_size,
        per_device_eval_batch_size=100,
        learning_rate=rate,
        lr_scheduler_type="cosine",
        warmup_steps=0.1,
        weight_decay=0.05,
        eval_strategy="no",
        save_strategy="no",
        logging_steps=50,
        seed=seed,
        use_cpu=args.use_cpu,
        disable_tqdm=True,
    )


def pretrain(output: Path, args: argparse.Namespace, seed: int) -> None:
    """Every canvas is drawn once; no label is read."""
    run = prepare_pretraining(
        ArchitectureArguments(
            config_overrides=ARCHITECTURE, position_encoding="rotary", image_size=args.size
        ),
        canvases(args, args.pretraining_steps * args.batch_size, 1000 + seed),
        AugmentationArguments(),
        PretrainingArguments(mask_ratio=args.mask_ratio, norm_pix_loss=args.norm_pix_loss),
        settings(output, args, seed, args.pretraining_steps, args.pretraining_rate),
    )
    run.execute()


def finetune(
    output: Path, checkpoint: Path | None, args: argparse.Namespace, num_labels: int, seed: int
) -> float:
    """Accuracy on test canvases, of digits that no training canvas has."""
    model = ModelArguments(
        model_name_or_path=None if checkpoint is None else str(checkpoint),
        config_overrides={} if checkpoint else ARCHITECTURE,
        position_encoding="rotary",
        image_size=args.size,
    )
    run = prepare_run(
        model,
        canvases(args, num_labels, seed),
        AugmentationArguments(),
        MethodArguments(),
        settings(output, args, seed, args.finetuning_steps, args.learning_rate),
    )
    return run.execute()["test_accuracy"]


def table(results: dict[str, dict[str, list[float]]]) -> str:
    """Mean and standard deviation over seeds, a row for each number of labels."""

    def cell(values: list[float]) -> str:
        deviation = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
        return f"{100 * statistics.mean(values):.1f}{deviation}"

    lines = ["| labels | seeds | from scratch | pretrained | gain |", "|---|---|---|---|---|"]
    for number, ways in results.items():
        scratch, pretrained = ways["scratch"], ways["pretrained"]
        gains = [after - before for after, before in zip(pretrained, scratch, strict=True)]
        lines.append(f"| {number} | {len(gains)} | {cell(scratch)} | {cell(pretrained)} | {cell(gains)} |")
    return "\n".join(lines)


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--output", type=Path, default=Path("runs/pretraining_gain"), help="folder of the runs"
    )
    parser.add_argument("--labels", type=int, nargs="+", default=[100, 500], help="labelled canvases")
    parser.add_argument("--seeds", type=int, default=3, help="of data, initialisation and order")
    parser.add_argument("--pretraining-steps", type=int, default=2000, help="without labels")
    parser.add_argument("--finetuning-steps", type=int, default=200, help="of each way")
    parser.add_argument(
        "--pretraining-rate", type=float, default=3e-3, help="highest learning rate without labels"
    )
    parser.add_argument("--learning-rate", type=float, default=3e-3, help="highest of fine-tuning")
    parser.add_argument(
        "--mask-ratio", type=float, default=0.75, help="share of the patches that are dropped"
    )
    parser.add_argument(
        "--norm-pix-loss", action=argparse.BooleanOptionalAction, default=True, help="normalise patches first"
    )
    parser.add_argument("--batch-size", type=int, default=64, help="of all training")
    parser.add_argument("--size", type=int, default=32, help="side of the canvases in pixels")
    parser.add_argument("--num-noise", type=int, default=0, help="strokes on a canvas")
    parser.add_argument("--num-test", type=int, default=1000, help="canvases to evaluate on")
    parser.add_argument("--use-cpu", action="store_true", help="even where there is an accelerator")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    disable_progress_bar()
    results = {str(number): {"scratch": [], "pretrained": []} for number in args.labels}
    start = time.process_time()
    for seed in range(args.seeds):
        checkpoint = args.output / f"pretrained-{seed}"
        pretrain(checkpoint, args, seed)
        print(f"[{time.process_time() - start:.0f} s] seed {seed} is pretrained", flush=True)
        for number in args.labels:
            for way, origin in (("scratch", None), ("pretrained", checkpoint)):
                accuracy = finetune(args.output / f"{way}-{number}-{seed}", origin, args, number, seed)
                results[str(number)][way].append(accuracy)
                print(
                    f"[{time.process_time() - start:.0f} s] {way}, {number} labels: {accuracy:.1%}",
                    flush=True,
                )
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "results.json").write_text(json.dumps(results, indent=2))
    print(
        f"\n{table(results)}\n\nAccuracy in per cent; {time.process_time() - start:.0f} s of CPU time in all"
    )


if __name__ == "__main__":
    main()
