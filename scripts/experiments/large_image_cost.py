"""Measures memory and time of `predict_streaming`, and of loading all pixels, by the size of an image.

    python scripts/experiments/large_image_cost.py          # 1024 to 16384 pixels a side; TIFF and JPEG
    python scripts/experiments/large_image_cost.py --card   # also writes model_cards/large_images
    python scripts/experiments/large_image_cost.py --sides 1024 4096 --selectors entropy --model runs/photos

Generates the pictures once (about 0.9 GB on disk). Every figure is of a process of its own, as a user sees
it: peak memory is the most that the process had resident, with Python, torch and the model, from its start
until the first image is classified; time is that of classifying, the first time if it takes over five
seconds, else the median of later ones. "In memory" opens the file with Pillow, prepares it and gives the
model all pixels; it is stopped when it needs more than --memory-limit, or than four fifths of the free
memory.
"""

import argparse
import json
import math
import resource
import shutil
import statistics
import sys
import time
from pathlib import Path

import harness
import PIL.Image
import torch

from vit_hf import (
    PATCH_SELECTORS,
    AdaptiveViTConfig,
    AdaptiveViTForImageClassification,
    AdaptiveViTImageProcessor,
    predict_streaming,
    select_streaming,
)
from vit_hf.data.measurement_images import write_jpeg, write_tiff
from vit_hf.measure import in_fresh_process, peak_resident


CARD = Path(__file__).parents[2] / "model_cards" / "large_images"
# Marks around the table and plot in the card.
BEGIN, END = "<!-- measured -->", "<!-- end -->"
SMALL = {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536, "num_labels": 1000}
STREAMING, IN_MEMORY = "streaming", "in memory"
# Smallest side that the exponent of time is fitted to: below, the fixed costs of a call outweigh the pixels.
FITTED_FROM = 2048
# Repeats until either is reached.
ENOUGH_SECONDS, ENOUGH_TIMES = 5, 5


def make_pictures(folder: Path, sides: list[int], formats: list[str]) -> None:
    """Writes the pictures that do not exist yet."""
    folder.mkdir(parents=True, exist_ok=True)
    for side in sides:
        for name in dict.fromkeys(("tif", *formats)):
            path, part = folder / f"{side}.{name}", folder / f"part.{name}"
            if path.is_file():
                continue
            if name == "tif":
                write_tiff(part, side)
            else:
                write_jpeg(part, folder / f"{side}.tif")
            part.rename(path)


def make_model(folder: Path) -> Path:
    """Saves a ViT-S/16 with random weights."""
    torch.manual_seed(0)
    AdaptiveViTForImageClassification(AdaptiveViTConfig(**SMALL)).save_pretrained(folder)
    AdaptiveViTImageProcessor(do_resize=False).save_pretrained(folder)
    return folder


def measure(
    path: Path, method: str, model: str, selector: str, num_patches: int, memory_limit: float
) -> dict:
    """Measures one figure, in a process that does nothing else."""
    harness.hide_reports()
    classifier = AdaptiveViTForImageClassification.from_pretrained(
        model, patch_selector=selector, num_selected_patches=num_patches
    ).eval()
    result = {"file": path.name, "side": int(path.stem), "way": method, "selector": selector}
    if method == STREAMING:
        times = timed(lambda: predict_streaming(classifier, path), result)
        with torch.inference_mode():
            kept = select_streaming(classifier, path).inputs
            result["encoder_seconds"] = statistics.median(timed(lambda: classifier(**kept), {}))
    else:
        processor = AdaptiveViTImageProcessor.from_pretrained(model, do_resize=False)
        limit_memory(memory_limit)

        @torch.inference_mode()
        def classify() -> None:
            with PIL.Image.open(path) as image:
                classifier(**processor(image, return_tensors="pt"))

        try:
            with PIL.Image.open(path):
                pass
        except PIL.Image.DecompressionBombError:
            result["refused"] = True
            PIL.Image.MAX_IMAGE_PIXELS = None
        try:
            times = timed(classify, result)
        except (MemoryError, RuntimeError, ValueError) as error:
            # On a CPU, torch has no error of its own for that, and image processors name the image.
            if "memory" not in f"{error!r}".lower():
                raise
            return result | {"out_of_memory": True}
    return result | {"seconds": statistics.median(times[1:] or times)}


def timed(classify, result: dict) -> list[float]:
    """Returns the seconds of every call; the peak of memory is that of the first."""
    times = []
    while sum(times) < ENOUGH_SECONDS and len(times) < ENOUGH_TIMES:
        start = time.perf_counter()
        classify()
        times.append(time.perf_counter() - start)
        result.setdefault("peak_mib", peak_resident())
    return times


def limit_memory(gibibytes: float) -> None:
    """Limits the memory that the process may write to; torch reserves far more than it uses."""
    with open("/proc/self/status") as file:
        data = next(int(line.split()[1]) for line in file if line.startswith("VmData"))
    most = data * 1024 + int(gibibytes * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def free_memory() -> float:
    """Returns the GiB that processes may take."""
    with open("/proc/meminfo") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("MemAvailable")) / 2**20


def growth(rows: list[dict]) -> float:
    """Returns by which fraction the peak of the largest image exceeds that of the smallest."""
    rows = sorted(rows, key=lambda row: row["side"])
    return rows[-1]["peak_mib"] / rows[0]["peak_mib"] - 1


def exponent(rows: list[dict]) -> float | None:
    """Returns e of seconds ~ pixels**e without the encoder's seconds, by least squares over logarithms."""
    points = [
        (math.log(row["side"] ** 2), math.log(max(row["seconds"] - row["encoder_seconds"], 1e-3)))
        for row in rows
        if row["side"] >= FITTED_FROM
    ]
    return statistics.linear_regression(*zip(*points, strict=True)).slope if len(points) > 1 else None


def cell(row: dict, memory_limit: float) -> str:
    if row.get("out_of_memory"):
        text = f"out of {memory_limit:.3g} GiB"
    else:
        text = f"{row['peak_mib']:.0f} MiB, {row['seconds']:.2f} s"
    return f"refused by Pillow; else {text}" if "refused" in row else text


def table(rows: list[dict], args: argparse.Namespace) -> str:
    methods = [(selector, method) for selector in args.selectors for method in (STREAMING, IN_MEMORY)]
    costs, trends = [], []
    for name in args.formats:
        for side in args.sides:
            found = {(row["selector"], row["way"]): row for row in rows if row["file"] == f"{side}.{name}"}
            cells = (cell(found[method], args.memory_limit) for method in methods)
            costs.append([f"{side}², {name}", *cells])
        for selector in args.selectors:
            streamed = series(rows, name, selector, STREAMING)
            slope = exponent(streamed)
            encoder = statistics.median(row["encoder_seconds"] for row in streamed)
            trends.append(
                [
                    f"{name}, `{selector}`",
                    f"{100 * growth(streamed):+.1f} %",
                    f"{encoder:.2f} s",
                    "-" if slope is None else f"{slope:.2f}",
                ]
            )
    header = ["image", *(f"`{selector}`, {method}" for selector, method in methods)]
    streaming = f"streaming, {min(args.sides)}² to {max(args.sides)}²"
    trend_header = [streaming, "peak memory", "encoder", "time but for the encoder ~ pixels^e, e"]
    return f"{harness.markdown_table(header, costs)}\n\n{harness.markdown_table(trend_header, trends)}"


def series(rows: list[dict], name: str, selector: str, method: str) -> list[dict]:
    return [
        row
        for row in rows
        if (row["selector"], row["way"]) == (selector, method) and row["file"].endswith(f".{name}")
    ]


def draw(rows: list[dict], path: Path, args: argparse.Namespace) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (memory, seconds) = pyplot.subplots(1, 2, figsize=(10, 4.4), layout="constrained")
    colors = dict(zip(args.selectors, ("tab:blue", "tab:orange", "tab:green", "tab:red"), strict=False))
    markers = {"tif": "o", "jpg": "s"}
    for selector in args.selectors:
        for name in args.formats:
            for method in (STREAMING, IN_MEMORY):
                some = [row for row in series(rows, name, selector, method) if not row.get("out_of_memory")]
                sides = [row["side"] for row in some]
                style = {
                    "color": colors.get(selector, "black") if method == STREAMING else "#999999",
                    "ls": "-" if name == "tif" else "--",
                    "marker": markers.get(name, "o"),
                    "ms": 4,
                    "lw": 1.2,
                    "label": f"{method}, {selector}, {name}" if method == STREAMING else f"{method}, {name}",
                }
                memory.plot(sides, [row["peak_mib"] for row in some], **style)
                seconds.plot(sides, [row["seconds"] for row in some], **style)
    first = min(
        (row for row in rows if row["way"] == STREAMING), key=lambda row: (row["side"], row["seconds"])
    )
    last = min(
        (row for row in rows if row["way"] == STREAMING), key=lambda row: (-row["side"], row["seconds"])
    )
    per_pixel = last["seconds"] / last["side"] ** 2
    line = [first["side"], last["side"]]
    seconds.plot(
        line, [per_pixel * side**2 for side in line], ":", color="black", lw=1, label="linear in pixels"
    )
    memory.set(ylabel="peak resident memory of the process, MiB", title="memory")
    seconds.set(ylabel="time to classify, s", title="time")
    for axes in (memory, seconds):
        axes.set(xscale="log", yscale="log", xlabel="side of the image, pixels")
        axes.set_xticks(args.sides, [str(side) for side in args.sides])
    ticks = (500, 1000, 2000, 5000, 10000)
    memory.set_yticks(ticks, map(str, ticks))
    memory.set_ylim(bottom=500)
    for axes in (memory, seconds):
        axes.minorticks_off()
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
    handles, labels = seconds.get_legend_handles_labels()
    entries = dict(zip(labels, handles, strict=True))  # in memory, selectors cost the same
    figure.legend(entries.values(), entries, loc="outside lower center", ncols=4, fontsize=8)
    figure.savefig(path, dpi=120)


def write_card(text: str, picture: Path) -> None:
    """Puts the table between the marks of the card, and the plot into its folder."""
    shutil.copy(picture, CARD)
    card = CARD / "README.md"
    before, begin, rest = card.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    card.write_text(f"{before}{begin}\n{text}\n![Memory and time by side]({picture.name})\n{end}{after}")


def parse_arguments() -> argparse.Namespace:
    parser = harness.make_parser(
        __doc__,
        output="runs/large_image_cost",
        sides=([1024, 2048, 4096, 8192, 16384], "of the pictures, in pixels"),
        num_selected_patches=(196, "that are kept of an image"),
        memory_limit=(12.0, "GiB for images in memory"),
        card=(False, "also put table and plot into model_cards/large_images"),
    )
    parser.add_argument(
        "--formats", nargs="+", choices=("tif", "jpg"), default=["tif", "jpg"], help="of files"
    )
    parser.add_argument(
        "--selectors",
        nargs="+",
        choices=PATCH_SELECTORS,
        metavar="NAME",
        default=["variance", "saliency"],
        help="one that sees patches, and one that sees a thumbnail",
    )
    parser.add_argument("--model", help="a checkpoint; none: ViT-S/16 with random weights")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    args.sides.sort()
    args.memory_limit = min(args.memory_limit, 0.8 * free_memory())
    make_pictures(args.output, args.sides, args.formats)
    model = args.model or str(make_model(args.output / "model"))
    rows = []
    for name in args.formats:
        for side in args.sides:
            for selector in args.selectors:
                for method in (STREAMING, IN_MEMORY):
                    path = args.output / f"{side}.{name}"
                    options = (path, method, model, selector, args.num_selected_patches, args.memory_limit)
                    rows.append(in_fresh_process(measure, *options))
                    print(
                        f"{path.name}, {selector}, {method}: {cell(rows[-1], args.memory_limit)}", flush=True
                    )
    text = (
        f"{args.model or 'ViT-S/16'}, {args.num_selected_patches} patches, {harness.machine_line()}\n\n"
        f"{table(rows, args)}\n"
    )
    (args.output / "cost.json").write_text(
        json.dumps({"rows": rows, "command": sys.argv[1:]}, indent=1) + "\n"
    )
    (args.output / "cost.md").write_text(text)
    draw(rows, args.output / "cost.png", args)
    if args.card:
        write_card(text, args.output / "cost.png")
    print(f"\n{text}")


if __name__ == "__main__":
    main()
