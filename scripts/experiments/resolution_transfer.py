"""Trains at one resolution and tests at others, to compare how position encodings carry over.

    python scripts/experiments/resolution_transfer.py  # every encoding, three seeds: hours on two cores
    python scripts/experiments/resolution_transfer.py --encodings rotary learned --seeds 0

A small model learns MNIST digits of 56 pixels (7x7 patches) and classifies them at 28, 112 and 224 pixels
without having seen such sizes. Variants of an encoding are rows of their own. Writes a Markdown table
(table.md), a plot (transfer.png), and the similarity of positions that each encoding has learned
(similarity_<encoding>.png). Finished runs are not repeated.
"""

import argparse
import functools
import json
from pathlib import Path

import harness
import numpy as np
import torch
import transformers
from torch import nn

from vit_hf import POSITION_ENCODINGS, AdaptiveViTConfig, AdaptiveViTForImageClassification
from vit_hf.data.digits import digits_of_split, load_digits
from vit_hf.explanations.position_maps import position_similarity


NATIVE, PATCH = 56, 8
SCALES = (0.5, 1.0, 2.0, 4.0)
VARIANTS: dict[str, dict] = {
    **{name: {"position_encoding": name} for name in POSITION_ENCODINGS},
    "learned, antialiased": {"position_encoding": {"type": "learned", "antialias": True}},
    "rotary, native": {"position_encoding": {"type": "rotary", "coordinates": "native"}},
    "rotary, normalized": {"position_encoding": {"type": "rotary", "coordinates": "normalized"}},
    "rotary, normalized, augmented": {
        "position_encoding": {"type": "rotary", "coordinates": "normalized", "jitter": 1.5, "rescale": 2.0}
    },
}


def images_of(split: str, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the digits of a split, `(n, 1, side, side)` from -1 to 1, and their labels."""
    digits, indices = load_digits(), digits_of_split(split).ravel()
    pixels = torch.from_numpy(digits.images[indices]).float()[:, None] / 127.5 - 1
    labels = torch.from_numpy(digits.classes[indices])
    return nn.functional.interpolate(pixels, (side, side), mode="bilinear", antialias=True), labels


def shifted(images: torch.Tensor) -> torch.Tensor:
    """Moves a batch by up to an eighth of the side, so that 4,000 digits teach more."""
    side = images.shape[-1]
    padded = nn.functional.pad(images, (side // 8,) * 4, value=-1.0)
    top, left = torch.randint(side // 4 + 1, (2,)).tolist()
    return padded[..., top : top + side, left : left + side]


def train(fields: dict, seed: int, args: argparse.Namespace) -> AdaptiveViTForImageClassification:
    torch.manual_seed(seed)
    config = AdaptiveViTConfig(
        hidden_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=192,
        image_size=NATIVE,
        patch_size=PATCH,
        num_channels=1,
        num_labels=10,
        **fields,
    )
    model = AdaptiveViTForImageClassification(config).train()
    images, labels = images_of("train", NATIVE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate, weight_decay=0.05)
    schedule = transformers.get_cosine_schedule_with_warmup(optimizer, args.steps // 10, args.steps)
    for _ in range(args.steps):
        batch = torch.randint(len(labels), (args.batch_size,))
        model(shifted(images[batch]), labels=labels[batch]).loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return model.eval()


@torch.no_grad()
def accuracy(model: AdaptiveViTForImageClassification, scale: float) -> float:
    images, labels = images_of("test", round(NATIVE * scale))
    right = [
        (model(batch).logits.argmax(-1) == answers).float()
        for batch, answers in zip(images.split(50), labels.split(50), strict=True)
    ]
    return float(torch.cat(right).mean())


def run(name: str, seed: int, args: argparse.Namespace) -> dict:
    model = train(VARIANTS[name], seed, args)
    if seed == args.seeds[0] and name in POSITION_ENCODINGS and name != "none":
        position_similarity(model).figure().savefig(args.output / f"similarity_{name}.png", dpi=80)
    results = {str(scale): accuracy(model, scale) for scale in SCALES}
    result = {"encoding": name, "seed": seed, **results}
    print(json.dumps(result), flush=True)
    return result


def settings(args: argparse.Namespace) -> dict:
    """Returns what must be equal for results to stand in one table."""
    return {"steps": args.steps, "batch_size": args.batch_size, "learning_rate": args.learning_rate}


def accuracies(results: list[dict], name: str, scale: float) -> list[float]:
    """Returns the accuracies of an encoding, one for each seed."""
    return [result[str(scale)] for result in results if result["encoding"] == name]


def format_table(results: list[dict]) -> str:
    rows = []
    for name in dict.fromkeys(result["encoding"] for result in results):
        values = [accuracies(results, name, scale) for scale in SCALES]
        rows.append([name, len(values[0]), *map(harness.mean_and_sd, values)])
    sizes = (f"{scale:g}x ({round(NATIVE * scale)} px)" for scale in SCALES)
    return harness.markdown_table(["encoding", "seeds", *sizes], rows)


def draw(results: list[dict], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.8), layout="constrained")
    names = list(dict.fromkeys(result["encoding"] for result in results))
    colors = pyplot.get_cmap("tab20")
    ends = []
    for index, name in enumerate(names):
        values = [100 * np.array(accuracies(results, name, scale)) for scale in SCALES]
        means = [found.mean() for found in values]
        deviations = [found.std(ddof=1) if len(found) > 1 else 0.0 for found in values]
        style = "--" if "," in name else "-"
        axes.errorbar(
            SCALES,
            means,
            deviations,
            color=colors(index),
            ls=style,
            marker="o",
            ms=3,
            capsize=2,
        )
        ends.append((means[-1], name, colors(index)))
    # Names at the ends of lines, moved apart where they would overlap.
    height = -10.0
    for mean, name, color in sorted(ends):
        height = max(mean, height + 4.2)
        axes.annotate(
            name,
            (SCALES[-1], mean),
            (SCALES[-1] * 1.12, height),
            color=color,
            fontsize=8,
            va="center",
            arrowprops={"arrowstyle": "-", "color": color, "lw": 0.5, "relpos": (0, 0.5)},
        )
    axes.set(
        xscale="log",
        xlim=(0.45, 9),
        ylim=(0, 103),
        ylabel="accuracy on test digits, %",
        xlabel=f"size of test images, times the {NATIVE} pixels of training",
    )
    axes.set_xticks(SCALES, [f"{scale:g}x" for scale in SCALES])
    axes.minorticks_off()
    axes.axhline(10, color="#bbbbbb", lw=0.8, zorder=0)
    axes.text(0.46, 11, "chance", color="#888888", fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


def parse_arguments() -> argparse.Namespace:
    parser = harness.make_parser(
        __doc__,
        output="runs/resolution_transfer",
        seeds=[0, 1, 2],
        steps=1500,
        batch_size=64,
        learning_rate=2e-3,
    )
    parser.add_argument(
        "--encodings",
        nargs="*",
        choices=VARIANTS,
        metavar="NAME",
        default=list(VARIANTS),
        help="variants in quotes",
    )
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    args.output.mkdir(parents=True, exist_ok=True)
    results = []
    for seed in args.seeds:
        for name in args.encodings:
            file = args.output / f"{name.replace(', ', '_')}_{seed}.json"
            results.append(harness.cached(file, settings(args), functools.partial(run, name, seed, args)))
    results.sort(key=lambda result: (list(VARIANTS).index(result["encoding"]), result["seed"]))
    draw(results, args.output / "transfer.png")
    text = (
        f"Trained at {NATIVE} px ({args.steps} steps of {args.batch_size}), accuracy in %, mean ± sd; "
        f"{harness.machine_line()}\n\n{format_table(results)}\n"
    )
    (args.output / "table.md").write_text(text)
    print(f"\n{text}")


if __name__ == "__main__":
    main()
