"""Measures what pretraining without labels gains where labels are few, on the embedded digits.

    python scripts/experiments/pretraining_gain.py

For each seed a small Vision Transformer is pretrained by masked autoencoding on canvases without labels. Then
models are fine-tuned on a few labeled canvases, from that encoder and from scratch, with the same steps and
settings.
"""

import argparse
from functools import cache
from pathlib import Path

import harness

from vit_hf.arguments import (
    ArchitectureArguments,
    AugmentationArguments,
    DataArguments,
    FinetuningArguments,
    ModelArguments,
    PretrainingArguments,
)
from vit_hf.training.arguments import RunArguments
from vit_hf.training.classification import Classification
from vit_hf.training.pretraining import Pretraining
from vit_hf.training.task import prepare


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

METHODS = ("scratch", "pretrained")


def canvases(args: argparse.Namespace, num_train: int, seed: int) -> DataArguments:
    return harness.digit_canvases(
        task="single",
        size=args.size,
        num_noise=args.num_noise,
        seed=seed,
        num_train=num_train,
        num_test=args.num_test,
    )


def settings(output: Path, args: argparse.Namespace, seed: int, steps: int, rate: float) -> RunArguments:
    options = {
        "max_steps": steps,
        "learning_rate": rate,
        "per_device_eval_batch_size": 100,
        "logging_steps": 50,
    }
    return RunArguments(**harness.training_options(output, args, seed, **options))


def pretrain(output: Path, args: argparse.Namespace, seed: int) -> None:
    """Pretrains on canvases that are each drawn once, without their labels."""
    run = prepare(
        Pretraining(
            ArchitectureArguments(
                config_overrides=ARCHITECTURE, position_encoding="rotary", image_size=args.size
            ),
            canvases(args, args.pretraining_steps * args.batch_size, 1000 + seed),
            AugmentationArguments(),
            PretrainingArguments(mask_ratio=args.mask_ratio, norm_pix_loss=args.norm_pix_loss),
        ),
        settings(output, args, seed, args.pretraining_steps, args.pretraining_rate),
    )
    run.execute()


def finetune(
    output: Path, checkpoint: Path | None, args: argparse.Namespace, num_labels: int, seed: int
) -> float:
    """Fine-tunes and returns the accuracy on test canvases; no digit is in both splits."""
    model = ModelArguments(
        model_name_or_path=None if checkpoint is None else str(checkpoint),
        config_overrides={} if checkpoint else ARCHITECTURE,
        position_encoding="rotary",
        image_size=args.size,
    )
    run = prepare(
        Classification(
            model, canvases(args, num_labels, seed), AugmentationArguments(), FinetuningArguments()
        ),
        settings(output, args, seed, args.finetuning_steps, args.learning_rate),
    )
    return run.execute()["test_accuracy"]


def table(results: dict[str, dict[str, list[float]]]) -> str:
    """Formats a row for each number of labels."""
    rows = []
    for number, values in results.items():
        scratch, pretrained = values["scratch"], values["pretrained"]
        gains = [after - before for after, before in zip(pretrained, scratch, strict=True)]
        rows.append([number, len(gains), *map(harness.mean_and_sd, (scratch, pretrained, gains))])
    return harness.markdown_table(["labels", "seeds", "from scratch", "pretrained", "gain"], rows)


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    return harness.make_parser(
        __doc__,
        output="runs/pretraining_gain",
        seeds=3,
        batch_size=64,
        learning_rate=3e-3,
        size=32,
        num_noise=0,
        num_test=1000,
        use_cpu=False,
        labels=([100, 500], "numbers of labeled canvases"),
        pretraining_steps=(2000, "without labels"),
        finetuning_steps=(200, "of each training"),
        pretraining_rate=(3e-3, "peak learning rate without labels"),
        mask_ratio=(0.75, "fraction of the patches that are dropped"),
        norm_pix_loss=(True, "normalize patches first"),
    ).parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    log = harness.Log()

    @cache
    def pretrained(seed: int) -> Path:
        folder = args.output / f"pretrained-{seed}"
        pretrain(folder, args, seed)
        log(f"seed {seed} is pretrained")
        return folder

    def run(setting: tuple[str, int], seed: int) -> float:
        method, number = setting
        origin = pretrained(seed) if method == "pretrained" else None
        return finetune(args.output / f"{method}-{number}-{seed}", origin, args, number, seed)

    settings = {f"{method} {number}": (method, number) for number in args.labels for method in METHODS}
    found = harness.run_settings(args.seeds, settings, run, log, "{:.1%}".format)
    results = {str(number): {name: found[f"{name} {number}"] for name in METHODS} for number in args.labels}
    harness.write_json(args.output / "results.json", results)
    print(f"\n{table(results)}\n\nAccuracy in per cent; {log.total()}")


if __name__ == "__main__":
    main()
