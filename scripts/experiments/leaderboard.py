"""Compares every patch selector on megapixel digits, from one checkpoint and with several seeds.

    python scripts/experiments/leaderboard.py                         # everything; hours on two cores
    python scripts/experiments/leaderboard.py --arms policy variance  # finished runs are not repeated

A canvas of 512x512 pixels holds one digit of 28 pixels among strokes that are equally bright, so that
contrast alone does not tell where it is. A small model learns digits on small canvases first; every selection
method then fine-tunes that checkpoint on large ones with plain `Trainer`. `oracle` knows where the digit is.
`recall` is the fraction of the patches touching the digit that were kept. Training time is that of the
process, on however many threads torch has (OMP_NUM_THREADS).
"""

import argparse
import functools
import json
import statistics
import time
from pathlib import Path

import harness
import numpy as np
import torch
from torch import nn
from transformers import Trainer, TrainingArguments, set_seed
from transformers.optimization import get_cosine_schedule_with_warmup

from vit_hf import AdaptiveViTConfig, AdaptiveViTForImageClassification, KeepRateSchedule
from vit_hf.data.megapixel_digits import megapixel_digits


PATCH, SIZE, TOKENS = 16, 512, 24
RESIZED = 80  # 25 patches: the smallest square that is not below TOKENS
ARCHITECTURE = {
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "image_size": 32,
    "patch_size": PATCH,
    "num_channels": 1,
    "num_labels": 10,
    "position_encoding": "rotary",
}
# (side, strokes, steps) of the training on small canvases.
SMALL = [(32, 0, 500), (48, 0, 700), (64, 1, 150), (112, 4, 250)]

THUMBNAIL = {"thumbnail_size": 256}
SCORER = {**THUMBNAIL, "hidden_size": 32}
# Options of the selectors; `resize` and `oracle` select nothing themselves.
ARMS: dict[str, dict] = {
    "resize": {},
    "random": {},
    "uniform": {},
    "variance": {},
    "gradient": {},
    "entropy": {},
    "saliency": {},
    "attention": {**THUMBNAIL, "num_layers": 4},
    "distilled": {**THUMBNAIL, "num_layers": 2, "loss_weight": 1.0, "batch_fraction": 0.125},
    "policy": SCORER,
    "perturbed": {**SCORER, "num_samples": 100},
    "cross_attention": {},
    "oracle": {},
}
# Peak learning rates of selectors for which that of the command line does not suit.
RATES = {"perturbed": 2e-3, "cross_attention": 2e-3}


def to_input(rows: dict, resize: bool) -> dict[str, list]:
    images = torch.from_numpy(np.stack([np.asarray(image) for image in rows["image"]]))
    pixels = images[:, None].float() / 127.5 - 1
    if resize:
        pixels = nn.functional.interpolate(pixels, (RESIZED, RESIZED), mode="bilinear", antialias=True)
    return {"pixel_values": list(pixels), "labels": rows["label"]}


def with_selection(rows: dict) -> dict[str, list]:
    """Adds the choice of the oracle: the patches that touch the digit, and their neighbors up to TOKENS."""
    grid = SIZE // PATCH
    row, column = np.divmod(np.arange(grid * grid), grid)
    selected = []
    for (x0, y0, x1, y1), *_ in rows["boxes"]:
        middle = ((y0 + y1) / 2 / PATCH - 0.5, (x0 + x1) / 2 / PATCH - 0.5)
        distance = np.maximum(abs(row - middle[0]), abs(column - middle[1]))
        selected.append(torch.from_numpy(np.sort(np.argsort(distance, kind="stable")[:TOKENS])))
    return {**to_input(rows, resize=False), "selected_patches": selected}


def touched(box: list[int]) -> set[int]:
    """Returns the raster indices of the patches that a box touches."""
    x0, y0, x1, y1 = box
    rows, columns = range(y0 // PATCH, (y1 - 1) // PATCH + 1), range(x0 // PATCH, (x1 - 1) // PATCH + 1)
    return {row * (SIZE // PATCH) + column for row in rows for column in columns}


def canvases(size: int, num_noise: int, num_train: int, num_test: int, seed: int) -> dict:
    return megapixel_digits(
        task="single", size=size, num_noise=num_noise, num_train=num_train, num_test=num_test, seed=seed
    )


def train(
    model: AdaptiveViTForImageClassification,
    data: object,
    steps: int,
    args: argparse.Namespace,
    rates: tuple[float, float],
    seed: int,
    callbacks: list | None = None,
) -> None:
    """Trains for one pass over `data`; `rates` are those of the backbone and of the selector."""
    named = list(model.named_parameters())
    groups = [
        {"params": [value for name, value in named if "selector" not in name], "lr": rates[0]},
        {"params": [value for name, value in named if "selector" in name], "lr": rates[1], "weight_decay": 0},
    ]
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]], weight_decay=0.05)
    schedule = get_cosine_schedule_with_warmup(optimizer, steps // 10, steps)
    arguments = TrainingArguments(
        output_dir=str(args.output / "trainer"),
        max_steps=steps,
        per_device_train_batch_size=args.batch_size,
        save_strategy="no",
        logging_steps=steps,
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        seed=seed,
        use_cpu=True,  # the seconds of the process are reported
    )
    Trainer(
        model, arguments, train_dataset=data, optimizers=(optimizer, schedule), callbacks=callbacks
    ).train()


def pretrain(args: argparse.Namespace) -> Path:
    """Trains the checkpoint that all methods start from."""
    folder = args.output / "checkpoint"
    if (folder / "model.safetensors").is_file():
        return folder
    set_seed(0)
    model = AdaptiveViTForImageClassification(AdaptiveViTConfig(**ARCHITECTURE))
    for size, num_noise, steps in SMALL:
        data = canvases(size, num_noise, steps * args.batch_size, 500, seed=size)
        small = data["train"].with_transform(lambda rows: to_input(rows, resize=False))
        train(model, small, steps, args, (2e-3, 0.0), seed=0)
        accuracy, _ = evaluate(model, data["test"], args, oracle=False, resize=False)
        print(f"{size}x{size} with {num_noise} strokes: {accuracy:.1%}", flush=True)
    model.save_pretrained(folder)
    return folder


@torch.no_grad()
def evaluate(
    model: AdaptiveViTForImageClassification,
    data: object,
    args: argparse.Namespace,
    oracle: bool,
    resize: bool,
) -> tuple[float, float | None]:
    """Returns the accuracy, and the mean fraction of the patches touching the digit that were kept."""
    model.eval()
    right, recalls = [], []
    for start in range(0, len(data), 100):
        rows = data[start : start + 100]
        inputs = with_selection(rows) if oracle else to_input(rows, resize)
        labels = torch.tensor(inputs.pop("labels"))
        outputs = model(**{name: torch.stack(values) for name, values in inputs.items()})
        right += (outputs.logits.argmax(-1) == labels).tolist()
        for kept, boxes in zip(outputs.selected_patches.tolist(), rows["boxes"], strict=True):
            wanted = touched(boxes[0])
            recalls.append(len(wanted & set(kept)) / len(wanted))
    model.train()
    return statistics.mean(right), None if resize else statistics.mean(recalls)


def run(arm: str, seed: int, checkpoint: Path, args: argparse.Namespace) -> dict:
    set_seed(1000 + seed)
    resize, oracle = arm == "resize", arm == "oracle"
    fields = {}
    if not resize and not oracle:
        fields = {"patch_selector": {"type": arm, **ARMS[arm]}, "num_selected_patches": TOKENS}
    model = AdaptiveViTForImageClassification.from_pretrained(checkpoint, **fields)
    data = canvases(SIZE, args.num_noise, args.steps * args.batch_size, args.num_test, seed=SIZE + seed)
    prepare = with_selection if oracle else lambda rows: to_input(rows, resize)
    callbacks = []
    if fields:
        callbacks = [KeepRateSchedule(warmup_ratio=0.1, final_ratio=0.5, initial=args.initial)]
    start = time.process_time()
    train(
        model,
        data["train"].with_transform(prepare),
        args.steps,
        args,
        (args.learning_rate, RATES.get(arm, args.selector_learning_rate)),
        seed,
        callbacks,
    )
    seconds = time.process_time() - start
    accuracy, recall = evaluate(model, data["test"], args, oracle, resize)
    model.save_pretrained(args.output / "models" / f"{arm}_{seed}")
    result = {"arm": arm, "seed": seed, "accuracy": accuracy, "recall": recall, "train_s": seconds}
    print(json.dumps(result), flush=True)
    return result


def format_table(results: list[dict]) -> str:
    rows = []
    for arm in ARMS:
        found = [result for result in results if result["arm"] == arm]
        if found:
            columns = [harness.mean_and_sd([row[key] for row in found]) for key in ("accuracy", "recall")]
            seconds = f"{statistics.mean(row['train_s'] for row in found):.0f}"
            rows.append([arm, len(found), *columns, seconds])
    return harness.markdown_table(["selection", "seeds", "accuracy %", "recall %", "training, CPU s"], rows)


def parse_arguments() -> argparse.Namespace:
    parser = harness.make_parser(
        __doc__,
        output="runs/leaderboard",
        seeds=[0, 1, 2],
        steps=250,
        batch_size=64,
        learning_rate=5e-4,
        num_noise=64,
        num_test=1000,
        selector_learning_rate=(1e-2, "peak, of a selector without one of its own"),
        initial=(0.08, "of KeepRateSchedule: 0.08 begins with 104 patches of 1024"),
    )
    parser.add_argument("--arms", nargs="*", choices=ARMS, default=list(ARMS), help="selection methods")
    return parser.parse_args()


def settings(args: argparse.Namespace) -> dict:
    """Returns what must be equal for runs to be compared."""
    return {name: value for name, value in vars(args).items() if name not in ("arms", "seeds", "output")}


def main() -> None:
    args = parse_arguments()
    folder = args.output / "results"
    for file in folder.glob("*.json"):
        harness.check_settings(file, settings(args))
    checkpoint = pretrain(args)
    for seed in args.seeds:
        for arm in args.arms:
            compute = functools.partial(run, arm, seed, checkpoint, args)
            harness.cached(folder / f"{arm}_{seed}.json", settings(args), compute)
    results = [json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))]
    print(
        f"\n{SIZE}x{SIZE}, {args.num_noise} strokes, {TOKENS} of {(SIZE // PATCH) ** 2} patches (resize: "
        f"{(RESIZED // PATCH) ** 2}), {args.steps} steps of {args.batch_size}; {harness.machine_line()}\n\n"
        f"{format_table(results)}"
    )


if __name__ == "__main__":
    main()
