"""What selection costs and brings on video: which digit moves among strokes that do not, from all patches and from some.

    python scripts/moving_digits.py

For each seed a small video transformer first learns digits that move alone, on small clips, then on larger ones among few
strokes. From that checkpoint each way is fine-tuned with as many steps on the same clips: on all patches; on as many as a
smaller clip has, chosen by motion, by variance or at random; and on the smaller clip. Then the time of a ViT-S at a real
size, all patches beside some.
"""

import argparse
import copy
import functools
import json
import os
import statistics
import tempfile
import time
from pathlib import Path


# Before torch starts its threads: those that wait should sleep, or they take the cores from others.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from torch.utils.data import DataLoader, Dataset
from transformers import Trainer, TrainingArguments
from transformers.utils.logging import disable_progress_bar

from vit_hf import AdaptiveViTConfig, AdaptiveViTForVideoClassification
from vit_hf.data import MovingDigits
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
SMALL_SIZE = 32  # of the clips that are resized
# Of the first stages: frames, side and strokes of their clips.
FIRST_STAGES = [(2, 32, 0), (4, 48, 0), (8, 80, 3)]
FIRST_BATCH_SIZE = 64


class Resized(Dataset):
    """Clips made smaller, frame by frame."""

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
    """One pass over the clips."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            num_train_epochs=1,
            per_device_train_batch_size=batch_size,
            learning_rate=rate,
            lr_scheduler_type="cosine",
            warmup_steps=0.1,
            weight_decay=0.05,
            save_strategy="no",
            logging_strategy="no",
            seed=seed,
            use_cpu=args.use_cpu,
            disable_tqdm=True,
        )
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
    """A model that knows digits which move alone, or among few strokes."""
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
    start: AdaptiveViTForVideoClassification, way: str, num_selected: int, args: argparse.Namespace, seed: int
) -> float:
    """Accuracy on test clips, of digits that no training clip has."""
    config = copy.deepcopy(start.config)
    if way in args.selectors:
        config.patch_selector, config.num_selected_patches = way, num_selected
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
    if way == "resize":
        splits = [Resized(clips, SMALL_SIZE) for clips in splits]
    train(model, splits[0], args, args.batch_size, args.learning_rate, seed)
    return accuracy(model, splits[1])


def table(results: dict[str, list[float]], tokens: dict[str, int]) -> str:
    """Mean and standard deviation over seeds, a row for each way."""
    lines = ["| way | patches | seeds | accuracy % |", "|---|---|---|---|"]
    for way, values in results.items():
        deviation = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
        lines.append(
            f"| {way} | {tokens[way]} | {len(values)} | {100 * statistics.mean(values):.1f}{deviation} |"
        )
    return "\n".join(lines)


@torch.no_grad()
def speed(args: argparse.Namespace) -> str:
    """Milliseconds of a forward pass of a ViT-S, ways by turns."""
    video = torch.randn(1, 16, 3, 224, 224)
    ways = {"all patches": {}}
    for name in args.selectors:
        ways[name] = {"patch_selector": name, "num_selected_patches": args.num_selected_of_vit_s}
    models = [
        AdaptiveViTForVideoClassification(AdaptiveViTConfig(**VIT_S, **fields)).eval()
        for fields in ways.values()
    ]
    seconds = alternate([functools.partial(model, video) for model in models], args.repeats)
    lines = ["| ViT-S, 16 x 224 x 224 | patches | ms | times less |", "|---|---|---|---|"]
    for name, fields, time_ in zip(ways, ways.values(), seconds, strict=True):
        number = fields.get("num_selected_patches", 8 * 14 * 14)
        lines.append(f"| {name} | {number} | {1000 * time_:.0f} | {seconds[0] / time_:.1f} |")
    return "\n".join(lines)


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--output", type=Path, default=Path("runs/moving_digits"), help="folder of results.json"
    )
    parser.add_argument("--selectors", nargs="+", default=["motion", "variance", "random"], help="to compare")
    parser.add_argument(
        "--seeds", type=int, default=3, help="of clips, initialisation and order; 0 for the speed alone"
    )
    parser.add_argument(
        "--first-steps",
        type=int,
        nargs=3,
        default=[500, 400, 150],
        help="of the first stages, shared by all ways",
    )
    parser.add_argument("--first-learning-rate", type=float, default=2e-3, help="highest, there")
    parser.add_argument("--steps", type=int, default=200, help="of fine-tuning, of each way")
    parser.add_argument("--batch-size", type=int, default=16, help="of fine-tuning")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="highest, of fine-tuning")
    parser.add_argument("--num-frames", type=int, default=16, help="of a clip")
    parser.add_argument("--size", type=int, default=96, help="side of a frame in pixels")
    parser.add_argument("--num-strokes", type=int, default=8, help="strokes that do not move")
    parser.add_argument("--num-test", type=int, default=400, help="clips to evaluate on")
    parser.add_argument(
        "--num-selected-of-vit-s", type=int, default=196, help="patches, of 1568, for the speed"
    )
    parser.add_argument("--repeats", type=int, default=5, help="timed turns, for the speed; 0 for none")
    parser.add_argument("--use-cpu", action="store_true", help="even where there is an accelerator")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    disable_progress_bar()
    times = args.num_frames // ARCHITECTURE["tubelet_size"]
    dense, few = (times * (size // ARCHITECTURE["patch_size"]) ** 2 for size in (args.size, SMALL_SIZE))
    tokens = {"all patches": dense, **dict.fromkeys(args.selectors, few), "resize": few}
    results = {way: [] for way in tokens}
    start = time.process_time()
    for seed in range(args.seeds):
        model = first_stage(args, seed)
        for way, values in results.items():
            values.append(fine_tune(model, way, few, args, seed))
            print(f"[{time.process_time() - start:.0f} s] seed {seed}, {way}: {values[-1]:.1%}", flush=True)
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "results.json").write_text(json.dumps(results, indent=2))
    if args.seeds:
        print(f"\n{table(results, tokens)}\n\n{time.process_time() - start:.0f} s of CPU time in all")
    if args.repeats:
        print(f"\n{speed(args)}")


if __name__ == "__main__":
    main()
