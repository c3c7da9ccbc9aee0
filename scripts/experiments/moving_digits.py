"""Measures what patch selection costs on video: classifies a digit that moves among strokes that do not.

    python scripts/experiments/moving_digits.py

For each seed a small video transformer first learns digits that move alone, on small clips, then on larger
ones among few strokes. From that checkpoint each method is fine-tuned with equally many steps on the same
clips: on all patches; on as many as a smaller clip has, chosen by motion, by variance or at random; and on
the smaller clip. Then the forward pass of a ViT-S is timed at a real size, with all patches and with some.
"""

import argparse
import copy
import functools
import tempfile
from pathlib import Path

import harness
import torch
from torch.utils.data import DataLoader, Dataset
from transformers import Trainer, TrainingArguments
from transformers.utils.logging import disable_progress_bar

from vit_hf import AdaptiveViTConfig, AdaptiveViTForVideoClassification
from vit_hf.data.moving_digits import MovingDigits
from vit_hf.measure import alternate


ARCHITECTURE = {
    "hidden_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 192,
    "num_channels": 1,
    "patch_size": 16,
    "tubelet_size": 2,
    "num_labels": 10,
    "position_encoding": "rotary",
    "drop_path_rate": 0.0,
}
VIT_S = {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536, "num_frames": 16}
SMALL_SIZE = 32  # side of resized clips
# Frames, side and strokes of the clips of the first stages.
FIRST_STAGES = [(2, 32, 0), (4, 48, 0), (8, 80, 3)]
FIRST_BATCH_SIZE = 64


class Resized(Dataset):
    """Resizes clips frame by frame."""

    def __init__(self, clips: Dataset, size: int):
        self.clips, self.size = clips, size

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> dict:
        row = self.clips[index]
        pixels = torch.nn.functional.interpolate(
            row["pixel_values"], (self.size, self.size), mode="bilinear", antialias=True
        )
        return {**row, "pixel_values": pixels}


def train(
    model: AdaptiveViTForVideoClassification,
    clips: Dataset,
    args: argparse.Namespace,
    batch_size: int,
    rate: float,
    seed: int,
) -> None:
    """Trains for one pass over the clips."""
    with tempfile.TemporaryDirectory() as folder:
        options = {"per_device_train_batch_size": batch_size, "learning_rate": rate, "logging_strategy": "no"}
        arguments = TrainingArguments(**harness.training_options(Path(folder), args, seed, **options))
        Trainer(model, arguments, train_dataset=clips).train()


@torch.no_grad()
def accuracy(model: AdaptiveViTForVideoClassification, clips: Dataset) -> float:
    model.eval()
    right = 0
    for batch in DataLoader(clips, 50):
        logits = model(batch["pixel_values"].to(model.device)).logits
        right += int((logits.argmax(-1).cpu() == batch["labels"]).sum())
    return right / len(clips)


def first_stage(args: argparse.Namespace, seed: int) -> AdaptiveViTForVideoClassification:
    """Trains a model on digits that move alone, then among few strokes."""
    torch.manual_seed(seed)
    config = AdaptiveViTConfig(**ARCHITECTURE, num_frames=args.num_frames, image_size=args.size)
    model = AdaptiveViTForVideoClassification(config)
    for steps, (num_frames, size, num_strokes) in zip(args.first_steps, FIRST_STAGES, strict=True):
        options = {"num_frames": num_frames, "size": size, "num_strokes": num_strokes, "seed": seed}
        clips = MovingDigits("train", FIRST_BATCH_SIZE * steps, **options)
        train(model, clips, args, FIRST_BATCH_SIZE, args.first_learning_rate, seed)
        right = accuracy(model, MovingDigits("test", args.num_test, **options))
        print(f"seed {seed}, after {steps} steps at {size} pixels: {right:.1%}", flush=True)
    return model


def fine_tune(
    start: AdaptiveViTForVideoClassification,
    method: str,
    num_selected: int,
    args: argparse.Namespace,
    seed: int,
) -> float:
    """Fine-tunes and returns the accuracy on test clips; no digit is in both splits."""
    config = copy.deepcopy(start.config)
    if method in args.selectors:
        config.patch_selector, config.num_selected_patches = method, num_selected
    model = AdaptiveViTForVideoClassification(config)
    model.load_state_dict(start.state_dict())
    options = {
        "num_frames": args.num_frames,
        "size": args.size,
        "num_strokes": args.num_strokes,
        "seed": seed,
    }
    splits = [
        MovingDigits("train", args.steps * args.batch_size, **options),
        MovingDigits("test", args.num_test, **options),
    ]
    if method == "resize":
        splits = [Resized(clips, SMALL_SIZE) for clips in splits]
    train(model, splits[0], args, args.batch_size, args.learning_rate, seed)
    return accuracy(model, splits[1])


def table(results: dict[str, list[float]], tokens: dict[str, int]) -> str:
    """Formats a row for each method."""
    rows = [
        [method, tokens[method], len(values), harness.mean_and_sd(values)]
        for method, values in results.items()
    ]
    return harness.markdown_table(["method", "patches", "seeds", "accuracy %"], rows)


@torch.no_grad()
def speed(args: argparse.Namespace) -> str:
    """Times the forward pass of a ViT-S; the methods take turns."""
    video = torch.randn(1, 16, 3, 224, 224)
    methods = {"all patches": {}}
    for name in args.selectors:
        methods[name] = {"patch_selector": name, "num_selected_patches": args.num_selected_of_vit_s}
    models = [
        AdaptiveViTForVideoClassification(AdaptiveViTConfig(**VIT_S, **fields)).eval()
        for fields in methods.values()
    ]
    seconds = alternate([functools.partial(model, video) for model in models], args.repeats)
    rows = []
    for (name, fields), time in zip(methods.items(), seconds, strict=True):
        number = fields.get("num_selected_patches", 8 * 14 * 14)
        rows.append([name, number, f"{1000 * time:.0f}", f"{seconds[0] / time:.1f}"])
    return harness.markdown_table(["ViT-S, 16 x 224 x 224", "patches", "ms", "times less"], rows)


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = harness.make_parser(
        __doc__,
        output="runs/moving_digits",
        seeds=3,
        steps=200,
        batch_size=16,
        learning_rate=1e-3,
        size=96,
        num_test=400,
        use_cpu=False,
        selectors=(["motion", "variance", "random"], "to compare"),
        first_learning_rate=(2e-3, "peak in the first stages"),
        num_frames=(16, "of a clip"),
        num_strokes=(8, "strokes that do not move"),
        num_selected_of_vit_s=(196, "patches, of 1568, for the speed"),
        repeats=(5, "timed turns, for the speed; 0 for none"),
    )
    parser.add_argument(
        "--first-steps",
        type=int,
        nargs=3,
        default=[500, 400, 150],
        help="of the first stages, which all methods share",
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    disable_progress_bar()
    times = args.num_frames // ARCHITECTURE["tubelet_size"]
    dense, few = (times * (size // ARCHITECTURE["patch_size"]) ** 2 for size in (args.size, SMALL_SIZE))
    tokens = {"all patches": dense, **dict.fromkeys(args.selectors, few), "resize": few}
    results = {method: [] for method in tokens}
    log = harness.Log()
    for seed in range(args.seeds):
        model = first_stage(args, seed)
        for method, values in results.items():
            values.append(fine_tune(model, method, few, args, seed))
            log(f"seed {seed}, {method}: {values[-1]:.1%}")
    harness.write_json(args.output / "results.json", results)
    if args.seeds:
        print(f"\n{table(results, tokens)}\n\n{log.total()}")
    if args.repeats:
        print(f"\n{speed(args)}")


if __name__ == "__main__":
    main()
