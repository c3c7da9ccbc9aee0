"""Train at one resolution, test at others: how well does each position encoding carry over?

    python scripts/resolution_transfer.py                       # every encoding, three seeds: hours on two cores
    python scripts/resolution_transfer.py --encodings rotary learned --seeds 0

A small model learns MNIST digits of 56 pixels (7x7 patches) and reads them at 28, 112 and 224 pixels without having seen
such sizes. Variants of an encoding count as rows of their own. Writes a Markdown table (table.md), a plot
(transfer.png), and the similarity of positions that each encoding has learned (similarity_<encoding>.png). Finished
runs of the same settings are skipped.
"""

import argparse
import json
import os
import platform
import statistics
from pathlib import Path


os.environ.setdefault("OMP_WAIT_POLICY", "passive")

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
    """Digits `(n, 1, side, side)` of a split, from -1 to 1, and their labels."""
    digits, indices = load_digits(), digits_of_split(split).ravel()
    pixels = torch.from_numpy(digits.images[indices]).float()[:, None] / 127.5 - 1
    labels = torch.from_numpy(digits.classes[indices])
    return nn.functional.interpolate(pixels, (side, side), mode="bilinear", antialias=True), labels


def shifted(images: torch.Tensor) -> torch.Tensor:
    """Each moved by up to an eighth of the side, so that 4,000 digits teach more."""
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
        (model(some).logits.argmax(-1) == of_some).float()
        for some, of_some in zip(images.split(50), labels.split(50), strict=True)
    ]
    return float(torch.cat(right).mean())


def run(name: str, seed: int, args: argparse.Namespace) -> dict:
    model = train(VARIANTS[name], seed, args)
    if seed == args.seeds[0] and name in POSITION_ENCODINGS and name != "none":
        position_similarity(model).figure().savefig(args.output / f"similarity_{name}.png", dpi=80)
    results = {str(scale): accuracy(model, scale) for scale in SCALES}
    return {"encoding": name, "seed": seed, "settings": settings(args), **results}


def settings(args: argparse.Namespace) -> dict:
    """What results must have in common to stand in one table."""
    return {"steps": args.steps, "batch_size": args.batch_size, "learning_rate": args.learning_rate}


def summary(results: list[dict], name: str, scale: float) -> tuple[float, float]:
    values = [100 * result[str(scale)] for result in results if result["encoding"] == name]
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else float("nan")


def format_table(results: list[dict]) -> str:
    sizes = [f"{scale:g}x ({round(NATIVE * scale)} px)" for scale in SCALES]
    lines = [f"| encoding | seeds | {' | '.join(sizes)} |", "|---|---|" + "---|" * len(SCALES)]
    for name in dict.fromkeys(result["encoding"] for result in results):
        seeds = sum(result["encoding"] == name for result in results)
        cells = ["{:.1f} ± {:.1f}".format(*summary(results, name, scale)) for scale in SCALES]
        if seeds == 1:
            cells = [cell.partition(" ")[0] for cell in cells]
        lines.append(f"| {name} | {seeds} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(results: list[dict], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.8), layout="constrained")
    names = list(dict.fromkeys(result["encoding"] for result in results))
    colours = pyplot.get_cmap("tab20")
    ends = []
    for index, name in enumerate(names):
        means, deviations = zip(*(summary(results, name, scale) for scale in SCALES), strict=True)
        style = "--" if "," in name else "-"
        axes.errorbar(
            SCALES,
            means,
            np.nan_to_num(deviations),
            color=colours(index),
            ls=style,
            marker="o",
            ms=3,
            capsize=2,
        )
        ends.append((means[-1], name, colours(index)))
    # Names at the ends of lines, moved apart where they would meet.
    place = -10.0
    for mean, name, colour in sorted(ends):
        place = max(mean, place + 4.2)
        axes.annotate(
            name,
            (SCALES[-1], mean),
            (SCALES[-1] * 1.12, place),
            color=colour,
            fontsize=8,
            va="center",
            arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.5, "relpos": (0, 0.5)},
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
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--encodings",
        nargs="*",
        choices=VARIANTS,
        metavar="NAME",
        default=list(VARIANTS),
        help="variants in quotes",
    )
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2], help="of initialisation and order")
    parser.add_argument("--steps", type=int, default=1500, help="of training")
    parser.add_argument("--batch-size", type=int, default=64, help="images a step")
    parser.add_argument("--learning-rate", type=float, default=2e-3, help="of AdamW, at its highest")
    output = Path("runs/resolution_transfer")
    parser.add_argument("--output", type=Path, default=output, help="folder of table, plot and pictures")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    args.output.mkdir(parents=True, exist_ok=True)
    results = []
    for seed in args.seeds:
        for name in args.encodings:
            file = args.output / f"{name.replace(', ', '_')}_{seed}.json"
            if not file.is_file() or json.loads(file.read_text())["settings"] != settings(args):
                file.write_text(json.dumps(run(name, seed, args)))
                print(file.read_text(), flush=True)
            results.append(json.loads(file.read_text()))
    results.sort(key=lambda result: (list(VARIANTS).index(result["encoding"]), result["seed"]))
    draw(results, args.output / "transfer.png")
    text = (
        f"Trained at {NATIVE} px ({args.steps} steps of {args.batch_size}), accuracy in %, mean ± sd; "
        f"{platform.machine()}, torch {torch.__version__}\n\n{format_table(results)}\n"
    )
    (args.output / "table.md").write_text(text)
    print(f"\n{text}")


if __name__ == "__main__":
    main()
