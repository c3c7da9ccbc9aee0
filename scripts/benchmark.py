"""Speed and memory beside transformers' ViT, every pair measured in one run by turns (A B A B).

    python scripts/benchmark.py                      # ViT-B/16 on this machine
    python scripts/benchmark.py --size small --repeats 3 --tables dense selection
    python scripts/benchmark.py --device cuda --dtype bfloat16 --batch-size 32 --compile

Prints a Markdown table: median milliseconds, and the ratio of medians to the row it is compared with. On a
CPU peak memory is the growth of the resident set of a fresh process; on a GPU what torch allocated. "file"
times the way from a JPEG file (as `vit_hf.data.measurement_images` makes them) to logits, and says which
share each stage of it has. "swin" shows time against the side of the image, linear in the number of patches
for Swin and quadratic for ViT, and Swin on windows.
"""

import argparse
import json
import platform
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import PIL.Image
import torch
import transformers
import yaml
from torch.utils.flop_counter import FlopCounterMode
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor, pipeline

import vit_hf
from vit_hf.cli.parsing import CONFIGS
from vit_hf.data.measurement_images import picture_bands
from vit_hf.measure import SavedForBackward, alternate, peak_memory
from vit_hf.model.image_loading import read_image


SIZES = {
    "base": {},
    "small": {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536},
    "tiny": {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768},
}
SWIN_SIZES = {  # Swin-B, Swin-T, and one of half its width
    "base": {"embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32]},
    "small": {},
    "tiny": {"embed_dim": 48},
}


@dataclass
class Side:
    """Subject of a measurement: a model on images of one side length."""

    name: str
    selector: str | None = None
    num_selected: int | float | None = None
    stock: bool = False
    swin: bool = False
    image_size: int = 224
    reduction: dict = field(default_factory=dict)

    def model(self, args: argparse.Namespace) -> torch.nn.Module:
        torch.manual_seed(0)
        fields = {"num_labels": 1000, **SIZES[args.size]}
        if self.stock:
            model = ViTForImageClassification(ViTConfig(**fields))
        elif self.swin:
            fields = {"num_labels": 1000, "num_selected_windows": self.num_selected, **SWIN_SIZES[args.size]}
            config = vit_hf.AdaptiveSwinConfig(patch_selector=self.selector, **fields)
            model = vit_hf.AdaptiveSwinForImageClassification(config)
        else:
            number = (self.num_selected or args.num_selected_patches) if self.selector else None
            config = vit_hf.AdaptiveViTConfig(
                patch_selector=self.selector, num_selected_patches=number, **self.reduction, **fields
            )
            model = vit_hf.AdaptiveViTForImageClassification(config)
        return model.to(args.device, getattr(torch, args.dtype)).eval()


def reducing(token_reducer: str | dict, **fields: object) -> dict:
    return {"token_reducer": token_reducer, **fields}


STOCK = Side("transformers ViT, dense", stock=True)
DENSE = Side("ours, dense")
HEURISTICS = ("variance", "gradient", "entropy", "saliency")
NETWORKS = ("attention", "distilled", "policy", "perturbed", "cross_attention")
SELECTING = [Side(f"ours, {name}", name, image_size=1024) for name in HEURISTICS + NETWORKS]
VARIANCE = SELECTING[0]
SWIN = Side("ours, Swin, dense", swin=True)
STOCK_LARGE = Side("transformers ViT, dense", stock=True, image_size=1024)
EVERY_BLOCK = list(range(12))
REDUCING = [
    Side("ours, attentive, keep 1.0", reduction=reducing("attentive", keep_rate=1.0)),
    Side("ours, attentive, keep 0.7", reduction=reducing("attentive", keep_rate=0.7)),
    Side("ours, attentive, keep 0.5", reduction=reducing("attentive", keep_rate=0.5)),
    Side("ours, merge, r = 16", reduction=reducing({"type": "merge", "r": 16}, reduction_layers=EVERY_BLOCK)),
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


def saved_for_backward(side: Side, args: argparse.Namespace) -> float:
    """MiB that autograd keeps between the forward and the backward pass of a training step, without
    parameters."""
    model = side.model(args).train()
    images = torch.randn(1, 3, side.image_size, side.image_size).to(args.device, getattr(torch, args.dtype))
    labels = torch.zeros(1, dtype=torch.long, device=args.device)
    kwargs = {"interpolate_pos_encoding": True} if side.stock else {}
    with SavedForBackward(model, [images]) as saved:
        model(images, labels=labels, **kwargs)
    return saved.num_bytes / 2**20


def file_calls(side: int, path: str, args: argparse.Namespace) -> dict[str, Callable[[], object]]:
    """Measures prediction from a JPEG file in three ways, and each stage of it."""
    device, dtype = args.device, getattr(torch, args.dtype)
    stock, ours = STOCK.model(args), replace(VARIANCE, image_size=side).model(args)
    stock.config.id2label = dict(enumerate(map(str, range(1000))))
    classify = pipeline("image-classification", stock, image_processor=ViTImageProcessor(), device=device)
    processor = vit_hf.AdaptiveViTImageProcessor(
        do_resize=False,
        return_patches=True,
        patch_selector="variance",
        num_selected_patches=args.num_selected_patches,
    )

    def to_model(inputs: dict) -> dict:
        inputs = inputs.to(device)
        return inputs | {"pixel_values": inputs["pixel_values"].to(dtype)}

    def run(model: torch.nn.Module, inputs: dict) -> None:
        with torch.inference_mode():
            model(**inputs)
        synchronize(args)

    def decode() -> None:
        with read_image(path):
            pass

    def decode_rows() -> None:
        with vit_hf.open_image(path) as source:
            for top in range(0, side, 64):
                source.read(top, 0, 64, side)

    resized = to_model(ViTImageProcessor()(PIL.Image.open(path), return_tensors="pt"))
    patches = to_model(processor(path, return_tensors="pt"))
    unselecting = vit_hf.AdaptiveViTImageProcessor(do_resize=False)
    return {
        "pipeline": lambda: classify(path),
        "pipeline, encoder": lambda: run(stock, resized),
        "processor": lambda: run(ours, to_model(processor(path, return_tensors="pt"))),
        "streaming": lambda: vit_hf.predict_streaming(ours, path, image_processor=unselecting),
        "encoder": lambda: run(ours, patches),
        "decode": decode,
        "decode_rows": decode_rows,
    }


# Timed call -> its name, and what of it decodes and encodes; what is left cuts, scores, resizes and
# copies.
FILE_WAYS = {
    "pipeline": ("transformers pipeline, resized to 224²", "decode", "pipeline, encoder"),
    "processor": ("ours, `variance` in the image processor", "decode", "encoder"),
    "streaming": ("ours, `variance`, predict_streaming", "decode_rows", "encoder"),
}


def file_table(args: argparse.Namespace) -> list[dict]:
    rows = []
    print("\n### JPEG file to logits, and where the time goes\n")
    print("| image | way | median ms | time / pipeline | images/s | decoding | preparing | encoder |")
    print("|---|---|---|---|---|---|---|---|")
    for side in (1024, 4096):
        with tempfile.TemporaryDirectory() as folder:
            path = f"{folder}/picture.jpg"
            PIL.Image.fromarray(np.concatenate(list(picture_bands(side)))).save(path, quality=90)
            calls = file_calls(side, path, args)
            medians = dict(zip(calls, alternate(list(calls.values()), args.repeats), strict=True))
        for way, (name, decode, encode) in FILE_WAYS.items():
            total = medians[way]
            shares = [medians[decode] / total, 1 - (medians[decode] + medians[encode]) / total]
            shares.append(medians[encode] / total)
            ratio = total / medians["pipeline"]
            shown = " | ".join(f"{share:.0%}" for share in shares)
            print(
                f"| {side}² | {name} | {1000 * total:.0f} | {ratio:.2f} | {1 / total:.1f} | {shown} |",
                flush=True,
            )
            rows.append({"table": "file", "image_size": side, "way": way, "ratio": ratio, "median_s": total})
            rows[-1] |= dict(zip(("decoding", "preparing", "encoder"), shares, strict=True))
    return rows


def recipe_sides() -> list[Side]:
    """Models that the configurations for high resolution train, at the end of their schedules and at the
    beginning."""
    sides = []
    for file in sorted(
        CONFIGS.glob("high_resolution_*.yaml"), key=lambda file: int(file.stem.rpartition("_")[2])
    ):
        recipe = yaml.safe_load(file.read_text())
        size, selector = recipe["image_size"], recipe.get("patch_selector")
        patches = (size // 16) ** 2
        last = recipe.get("num_selected_patches", patches)
        counts = {"": last}
        if recipe.get("keep_rate_schedule"):
            first = last + round(recipe.get("keep_rate_initial", 1.0) * (patches - last))
            counts = {", at first": first, ", at last": last}
        for when, count in counts.items():
            name = f"{file.name}{when}, {count} of {patches} patches"
            sides.append(Side(name, selector, count if selector else None, image_size=size))
    return sides


def synchronize(args: argparse.Namespace) -> None:
    if args.device.startswith("cuda"):
        torch.cuda.synchronize()


def compare(
    title: str,
    make: Callable,
    sides: list[Side],
    args: argparse.Namespace,
    repeats: int,
    warmup: int = 1,
    columns: dict[str, Callable[[Side, argparse.Namespace], float]] | None = None,
) -> list[dict]:
    """Times `sides` by turns and prints them beside the first of them; `columns` are measured of each in
    addition."""
    columns = columns or {}
    medians = alternate([make(side, args) for side in sides], repeats, warmup)
    memories = [peak_memory(make, side, args, device=args.device) for side in sides]
    # The forward pass of one image, also where a table times more than that.
    operations = [count_operations(side, args) for side in sides]
    print(f"\n### {title}\n")
    print(
        "| model | image | median ms | time / first row | speed-up on first row | GFLOP | by "
        "GFLOP | peak MiB |" + "".join(f" {name} |" for name in columns)
    )
    print("|---|---|---|---|---|---|---|---|" + "---|" * len(columns))
    rows = []
    for side, median, memory, gflop in zip(sides, medians, memories, operations, strict=True):
        ratio = median / medians[0]
        pixels = f"{side.image_size}²"
        more = {name: column(side, args) for name, column in columns.items()}
        print(
            f"| {side.name} | {pixels} | {median * 1000:.1f} | {ratio:.3f} | {1 / ratio:.2f} "
            f"| {gflop:.1f} | {operations[0] / gflop:.2f} | {'?' if memory is None else round(memory)} |"
            + "".join(f" {value:.0f} |" for value in more.values()),
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
                **more,
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


def swin_tables(args: argparse.Namespace) -> list[dict]:
    growing = [replace(side, image_size=size) for side in (DENSE, SWIN) for size in (224, 448, 672, 896)]
    rows = compare("Dense ViT and Swin by the side of the image", forward, growing, args, few(args))
    sides = [replace(SWIN, image_size=1024)]
    for share in (1.0, 0.5, 0.25, 0.125, 0.0625):
        name = f"ours, Swin, {share:.1%} of windows"
        sides += [replace(sides[0], name=name, selector="variance", num_selected=share)]
    return rows + compare("Swin at 1024² on windows by `variance`", forward, sides, args, few(args))


def few(args: argparse.Namespace) -> int:
    return 3 if args.device == "cpu" else args.repeats


TABLES: dict[str, Callable[[argparse.Namespace], list[dict]]] = {
    "dense": lambda args: compare("Dense at 224²", forward, [STOCK, DENSE], args, args.repeats),
    "selection": lambda args: compare(
        "1024² by selection, beside dense 224²", forward, [DENSE, *SELECTING], args, args.repeats
    ),
    "reduction": reduction_tables,
    "swin": swin_tables,
    "large": lambda args: compare(
        "1024² by selection, beside dense 1024²", forward, [STOCK_LARGE, VARIANCE], args, few(args)
    ),
    "file": file_table,
    "training": lambda args: compare(
        "One training step at 1024², batch 1",
        training_step,
        [STOCK_LARGE, VARIANCE],
        args,
        few(args),
        columns={"saved for backward MiB": saved_for_backward},
    ),
    "recipes": lambda args: compare(
        "One training step by the configs high_resolution_*, batch 1, beside dense 224²",
        training_step,
        [DENSE, *recipe_sides()],
        args,
        few(args),
        columns={"saved for backward MiB": saved_for_backward},
    ),
}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--size",
        choices=SIZES,
        default="base",
        help="ViT-B/16 and Swin-B, -S/16 and -T, or -Ti/16 and half of Swin-T",
    )
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
        f"ViT-{args.size}/16, {args.dtype}, batch {args.batch_size}, {args.num_selected_patches} "
        "patches of 1024²; "
        f"{device} ({platform.machine()}), torch {torch.__version__}, transformers {transformers.__version__}"
    )
    rows = [row for name in args.tables for row in TABLES[name](args)]
    if args.output:
        args.output.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
