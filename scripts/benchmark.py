"""Speed and memory beside transformers' ViT, every pair measured in one run by turns (A B A B).

    python scripts/benchmark.py                      # ViT-B/16 on this machine
    python scripts/benchmark.py --size small --repeats 3 --tables dense selection
    python scripts/benchmark.py --device cuda --dtype bfloat16 --batch-size 32 --compile

Prints a Markdown table: median milliseconds, and the ratio of medians to the row it is compared with. On a CPU peak
memory is the growth of the resident set of a fresh process; on a GPU what torch allocated.
"""

import argparse
import io
import json
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
import transformers
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

from vit_hf import AdaptiveViTConfig, AdaptiveViTForImageClassification, AdaptiveViTImageProcessor
from vit_hf.measure import alternate, peak_memory


SIZES = {
    "base": {},
    "small": {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536},
    "tiny": {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768},
}


@dataclass
class Side:
    """One thing that is timed: a model on images of a side length."""

    name: str
    selector: str | None = None
    stock: bool = False
    image_size: int = 224
    reduction: dict = field(default_factory=dict)

    def model(self, args: argparse.Namespace) -> torch.nn.Module:
        torch.manual_seed(0)
        fields = {"num_labels": 1000, **SIZES[args.size]}
        if self.stock:
            model = ViTForImageClassification(ViTConfig(**fields))
        else:
            number = args.num_selected_patches if self.selector else None
            config = AdaptiveViTConfig(
                patch_selector=self.selector, num_selected_patches=number, **self.reduction, **fields
            )
            model = AdaptiveViTForImageClassification(config)
        return model.to(args.device, getattr(torch, args.dtype)).eval()


def reducing(token_reducer: str, **fields: object) -> dict:
    return {"token_reducer": token_reducer, **fields}


STOCK = Side("transformers ViT, dense", stock=True)
DENSE = Side("ours, dense")
SELECTING = [
    Side(f"ours, {name}", name, image_size=1024)
    for name in (
        "variance",
        "gradient",
        "entropy",
        "saliency",
        "attention",
        "distilled",
        "policy",
        "perturbed",
        "cross_attention",
    )
]
VARIANCE = SELECTING[0]
STOCK_LARGE = Side("transformers ViT, dense", stock=True, image_size=1024)
EVERY_BLOCK = list(range(12))
REDUCING = [
    Side("ours, attentive, keep 1.0", reduction=reducing("attentive", keep_rate=1.0)),
    Side("ours, attentive, keep 0.7", reduction=reducing("attentive", keep_rate=0.7)),
    Side("ours, attentive, keep 0.5", reduction=reducing("attentive", keep_rate=0.5)),
    Side("ours, merge, r = 16", reduction=reducing("merge", merge_r=16, reduction_layers=EVERY_BLOCK)),
    Side("ours, gumbel, keep 0.7", reduction=reducing("gumbel", keep_rate=0.7)),
    Side("ours, sample, keep 0.7", reduction=reducing("sample", keep_rate=0.7)),
]


def forward(side: Side, args: argparse.Namespace) -> Callable[[], None]:
    model = side.model(args)
    images = torch.randn(args.batch_size, 3, side.image_size, side.image_size)
    images = images.to(args.device, getattr(torch, args.dtype))
    kwargs = {"interpolate_pos_encoding": True} if side.stock and side.image_size != 224 else {}
    run = torch.compile(model, fullgraph=True) if args.compile else model

    def call() -> None:
        with torch.no_grad():
            run(images, **kwargs)
        synchronize(args)

    return call


def count_operations(side: Side, args: argparse.Namespace) -> float:
    """10⁹ floating point operations of matrix products and convolutions for one image."""
    one = argparse.Namespace(**{**vars(args), "batch_size": 1, "compile": False})
    model = side.model(one)
    model.set_attn_implementation("eager")  # not every fused kernel is known to the counter
    images = torch.randn(1, 3, side.image_size, side.image_size).to(args.device, getattr(torch, args.dtype))
    kwargs = {"interpolate_pos_encoding": True} if side.stock and side.image_size != 224 else {}
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(images, **kwargs)
    return counter.get_total_flops() / 1e9


def training_step(side: Side, args: argparse.Namespace) -> Callable[[], None]:
    model = side.model(args).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
    images = torch.randn(1, 3, side.image_size, side.image_size).to(args.device, getattr(torch, args.dtype))
    labels = torch.zeros(1, dtype=torch.long, device=args.device)
    kwargs = {"interpolate_pos_encoding": True} if side.stock else {}

    def call() -> None:
        model(images, labels=labels, **kwargs).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        synchronize(args)

    return call


def file_to_logits(side: Side, args: argparse.Namespace) -> Callable[[], None]:
    """Decoding a JPEG of 1024x1024 pixels, preparing it and running the model."""
    model = side.model(args)
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).resize((1024, 1024))
    file = io.BytesIO()
    smooth.save(file, "JPEG", quality=90)
    if side.stock:
        processor = ViTImageProcessor()
    else:
        processor = AdaptiveViTImageProcessor(
            do_resize=False,
            return_patches=True,
            patch_selector="variance",
            num_selected_patches=args.num_selected_patches,
        )

    def call() -> None:
        inputs = processor(Image.open(io.BytesIO(file.getvalue())), return_tensors="pt").to(args.device)
        inputs["pixel_values"] = inputs["pixel_values"].to(getattr(torch, args.dtype))
        with torch.no_grad():
            model(**inputs)
        synchronize(args)

    return call


def synchronize(args: argparse.Namespace) -> None:
    if args.device.startswith("cuda"):
        torch.cuda.synchronize()


def compare(
    title: str, make: Callable, sides: list[Side], args: argparse.Namespace, repeats: int, warmup: int = 1
) -> list[dict]:
    """Times `sides` by turns and prints them beside the first of them."""
    medians = alternate([make(side, args) for side in sides], repeats, warmup)
    memories = [peak_memory(make, side, args, device=args.device) for side in sides]
    # The forward pass of one image, also where a table times more than that.
    operations = [count_operations(side, args) for side in sides]
    print(f"\n### {title}\n")
    print(
        "| model | image | median ms | time / first row | speed-up on first row | GFLOP | by GFLOP | peak MiB |"
    )
    print("|---|---|---|---|---|---|---|---|")
    rows = []
    for side, median, memory, gflop in zip(sides, medians, memories, operations, strict=True):
        ratio = median / medians[0]
        pixels = f"{side.image_size}²"
        print(
            f"| {side.name} | {pixels} | {median * 1000:.1f} | {ratio:.3f} | {1 / ratio:.2f} "
            f"| {gflop:.1f} | {operations[0] / gflop:.2f} | {'?' if memory is None else round(memory)} |",
            flush=True,
        )
        rows.append(
            {
                "table": title,
                **asdict(side),
                "median_s": median,
                "ratio": ratio,
                "gflop": gflop,
                "peak_mib": memory,
            }
        )
    return rows


def reduction_tables(args: argparse.Namespace) -> list[dict]:
    """Both batch sizes, since what pays off in a batch need not pay off for one image."""
    rows = []
    for batch_size in sorted({1, 8, args.batch_size}):
        changed = argparse.Namespace(**{**vars(args), "batch_size": batch_size})
        title = f"Reduction at 224², batch {batch_size}"
        rows += compare(title, forward, [STOCK, *REDUCING], changed, args.repeats)
    return rows


def few(args: argparse.Namespace) -> int:
    return 3 if args.device == "cpu" else args.repeats


TABLES: dict[str, Callable[[argparse.Namespace], list[dict]]] = {
    "dense": lambda args: compare("Dense at 224²", forward, [STOCK, DENSE], args, args.repeats),
    "selection": lambda args: compare(
        "1024² by selection, beside dense 224²", forward, [DENSE, *SELECTING], args, args.repeats
    ),
    "reduction": reduction_tables,
    "large": lambda args: compare(
        "1024² by selection, beside dense 1024²", forward, [STOCK_LARGE, VARIANCE], args, few(args)
    ),
    "file": lambda args: compare(
        "JPEG file of 1024² to logits", file_to_logits, [STOCK, VARIANCE], args, args.repeats
    ),
    "training": lambda args: compare(
        "One training step at 1024², batch 1", training_step, [STOCK_LARGE, VARIANCE], args, 1
    ),
}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, default="base", help="ViT-B/16, ViT-S/16 or ViT-Ti/16")
    parser.add_argument("--batch-size", type=int, default=1, help="images at once in the forward tables")
    parser.add_argument("--num-selected-patches", type=int, default=196, help="patches kept of 4096")
    parser.add_argument("--repeats", type=int, default=15, help="timed turns of the fast tables")
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda"
    )
    parser.add_argument("--dtype", default="float32", help="float32, bfloat16 or float16")
    parser.add_argument("--compile", action="store_true", help="torch.compile both sides (forward tables)")
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES), help="what to measure")
    parser.add_argument("--output", type=Path, help="write the rows as JSON as well")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    device = (
        torch.cuda.get_device_name()
        if args.device.startswith("cuda")
        else f"{torch.get_num_threads()} CPU threads"
    )
    print(
        f"ViT-{args.size}/16, {args.dtype}, batch {args.batch_size}, {args.num_selected_patches} patches of 1024²; "
        f"{device} ({platform.machine()}), torch {torch.__version__}, transformers {transformers.__version__}"
    )
    rows = [row for name in args.tables for row in TABLES[name](args)]
    if args.output:
        args.output.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
