"""How many of the annotated trees in aerial photos does each selector find, beside chance?

    pip install --no-deps deepforest==2.1.0    # four annotated photos, up to 2299x2472 pixels
    python scripts/photo_recall.py --picture trees.png
    python scripts/photo_recall.py --checkpoint google/vit-base-patch16-224 --models runs/photos --data my_photos/

Photos are cut into windows of --crop pixels without overlap; what remains at the edges, and photos that are smaller,
count if at least a quarter of that wide and high. Every window keeps the same share of its patches: 196 of 4096. A
tree belongs to the window that its centre lies in, its box ends at the border. Over the trees of all windows:

- hit: a kept patch covers the centre of the tree's box;
- touched: a kept patch lies on the tree, that is, the centre of the patch is in the box or that of the box in the patch;
- covered: how much of the area of the box kept patches cover, mean over trees;
- on trees: share of the kept patches that lie on some tree.

"random, expected" is exact; "boxes known" takes centres first, then other patches on trees: the most that is possible
for hit. A checkpoint whose patches have another size sees the window resized so that they cover the same pixels.
"""

import argparse
import json
import platform
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import PIL.Image
import torch
import transformers
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from vit_hf import PATCH_SELECTORS, AdaptiveViTModel
from vit_hf.data.tree_photos import annotated_photos, deepforest_folder, photo_processor, windows
from vit_hf.model.image_loading import read_image
from vit_hf.model.options import type_of
from vit_hf.model.pixel_scorers import PIXEL_SCORERS
from vit_hf.model.sizes import to_pair


MEASURES = ("hit", "touched", "covered", "on trees")

# For each tree, or for each kept patch, of one window.
Values = dict[str, np.ndarray]


@dataclass
class Window:
    """A part of a photo, made of whole patches.

    Attributes:
        boxes: `(T, 4)` left, top, right, bottom in patches, which need not be whole.
        grid: R rows and S columns of patches.
    """

    photo: str
    image: PIL.Image.Image
    boxes: np.ndarray
    grid: tuple[int, int]

    def centres(self) -> np.ndarray:
        """The patch `(T, 2)`, as row and column, that the centre of each box lies in."""
        centre = (self.boxes[:, :2] + self.boxes[:, 2:]) / 2
        return np.floor(centre[:, ::-1]).astype(int)

    def on_trees(self) -> np.ndarray:
        """Whether each patch lies on each tree, `(T, R, S)`: the centre of either is in the other."""
        left, top, right, bottom = self.boxes.T[..., None]
        rows, columns = (np.arange(length) + 0.5 for length in self.grid)
        on = ((rows >= top) & (rows < bottom))[:, :, None] & ((columns >= left) & (columns < right))[:, None]
        on[np.arange(len(on)), *self.centres().T] = True
        return on

    def overlap(self) -> np.ndarray:
        """Share of each box that lies in each patch, `(T, R, S)`."""
        left, top, right, bottom = self.boxes.T[..., None]
        rows, columns = (np.arange(length) for length in self.grid)
        height = (np.minimum(bottom, rows + 1) - np.maximum(top, rows)).clip(0)
        width = (np.minimum(right, columns + 1) - np.maximum(left, columns)).clip(0)
        return (height / height.sum(1, keepdims=True))[:, :, None] * (width / width.sum(1, keepdims=True))[
            :, None
        ]


# From a window to which of its patches are kept, (R, S).
Method = Callable[[Window], np.ndarray]


def cut_windows(folder: Path, side: int, patch_size: int) -> list[Window]:
    found = []
    for path, boxes in annotated_photos(folder):
        image = read_image(path).convert("RGB")
        for left, top, right, bottom in windows(*image.size, side, side // 4):
            rows, columns = (bottom - top) // patch_size, (right - left) // patch_size
            area = (left, top, left + columns * patch_size, top + rows * patch_size)
            centre = (boxes[:, :2] + boxes[:, 2:]) / 2
            here = ((centre >= area[:2]) & (centre < area[2:])).all(1)
            clipped = np.clip(boxes[here], [*area[:2]] * 2, [*area[2:]] * 2)
            if here.any():
                in_patches = (clipped - [left, top, left, top]) / patch_size
                found.append(Window(path.name, image.crop(area), in_patches, (rows, columns)))
    return found


def measure(window: Window, kept: np.ndarray) -> Values:
    on = window.on_trees()
    return {
        "hit": kept[tuple(window.centres().T)],
        "touched": (on & kept).any((1, 2)),
        "covered": (window.overlap() * kept).sum((1, 2)),
        "on trees": on.any(0)[kept],
    }


def expect(window: Window, num_selected: int) -> Values:
    """What `measure` gives on average over all ways to keep `num_selected` patches."""
    on, total = window.on_trees(), window.grid[0] * window.grid[1]
    every_tree = np.full(len(window.boxes), num_selected / total)
    drawn = np.arange(num_selected)
    others = total - on.sum((1, 2))[:, None]  # patches that would not touch the tree
    return {
        "hit": every_tree,
        "touched": 1 - ((others - drawn).clip(0) / (total - drawn)).prod(1),
        "covered": every_tree,
        "on trees": np.full(num_selected, on.any(0).mean()),
    }


def keep_known(window: Window, num_selected: int) -> np.ndarray:
    """Patches with the most centres of trees, then others on trees."""
    scores = 0.5 * window.on_trees().any(0)
    np.add.at(scores, tuple(window.centres().T), 1)
    return as_mask(window, np.argsort(-scores, axis=None, kind="stable")[:num_selected])


def as_mask(window: Window, indices: np.ndarray) -> np.ndarray:
    """Raster indices as `(R, S)`."""
    kept = np.zeros(window.grid, dtype=bool)
    kept.flat[indices] = True
    return kept


def by_pixels(name: str, share: float, patch_size: int, seed: int = 0) -> Method:
    processor = photo_processor()
    selector = {"type": "random", "seed": seed} if name == "random" else name
    options = {"patch_selector": selector, "num_selected_patches": share}

    def keep(window: Window) -> np.ndarray:
        inputs = processor(
            window.image, return_patches=True, patch_size=patch_size, return_tensors="pt", **options
        )
        row, column = inputs["patch_coordinates"][0].numpy().T
        return as_mask(window, row * window.grid[1] + column)

    return keep


def by_model(model: AdaptiveViTModel, path: str) -> Method:
    processor = photo_processor(path)
    height, width = to_pair(model.config.patch_size)

    def keep(window: Window) -> np.ndarray:
        rows, columns = window.grid
        image = window.image.resize((columns * width, rows * height), PIL.Image.Resampling.BICUBIC)
        inputs = processor(image, return_tensors="pt").to(model.device)
        with torch.no_grad():
            return as_mask(window, model(**inputs).selected_patches[0].cpu().numpy())

    return keep


def methods(args: argparse.Namespace, share: float) -> Iterator[tuple[str, list[Method]]]:
    """Name and ways to keep patches; several ways are seeds of a random choice."""
    for name in PIXEL_SCORERS:
        seeds = range(args.seeds) if name == "random" else [0]
        yield name, [by_pixels(name, share, args.patch_size, seed) for seed in seeds]
    for path in args.models:
        model = AdaptiveViTModel.from_pretrained(path, add_pooling_layer=False).to(args.device).eval()
        if model.selector is None:
            sys.exit(f"photo_recall.py: {path} has no patch_selector. Give such a model as --checkpoint.")
        model.config.num_selected_patches = share
        yield f"{type_of(model.config.patch_selector)} of {Path(path).name}", [by_model(model, path)]
    for name in PATCH_SELECTORS:
        if name in PIXEL_SCORERS:
            continue
        if args.checkpoint is None:
            print(f"Left out: {name}, which needs --checkpoint, or --models with one that was trained.")
            continue
        for title, selector in variants(name, args):
            model, info = AdaptiveViTModel.from_pretrained(
                args.checkpoint,
                patch_selector=selector,
                num_selected_patches=share,
                add_pooling_layer=False,
                output_loading_info=True,
            )
            if any("selector." in key for key in info["missing_keys"]):
                print(f"Left out: {name}, for which {args.checkpoint} has no weights.")
            else:
                yield title, [by_model(model.to(args.device).eval(), args.checkpoint)]


def variants(name: str, args: argparse.Namespace) -> list[tuple[str, str | dict]]:
    """Titles of the rows of a selector, and the selector with its options."""
    if name != "attention":
        return [(name, name)]
    size = {} if args.probe_image_size is None else {"thumbnail_size": args.probe_image_size}
    return [
        (
            f"attention of block {block}" + (f", {reduction}" if reduction != "mean" else ""),
            {"type": "attention", "num_layers": block, "reduction": reduction, **size},
        )
        for block in args.probe_num_layers
        for reduction in args.probe_reduction
    ]


def pool(per_window: list[Values]) -> dict[str, float]:
    return {name: float(np.concatenate([values[name] for values in per_window]).mean()) for name in MEASURES}


def summarise(name: str, runs: list[list[Values]], found: list[Window]) -> dict:
    """One row: means over the seeds and, where there are several, their standard deviation."""
    pooled = [pool(run) for run in runs]
    photos = {
        photo: [
            pool([values for window, values in zip(found, run, strict=True) if window.photo == photo])
            for run in runs
        ]
        for photo in dict.fromkeys(window.photo for window in found)
    }
    row = {"selector": name, "seeds": len(runs), **_mean(pooled)}
    if len(runs) > 1:
        row["sd"] = {name: float(np.std([run[name] for run in pooled], ddof=1)) for name in MEASURES}
    return {**row, "photos": {photo: _mean(values) for photo, values in photos.items()}}


def _mean(runs: list[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([run[name] for run in runs])) for name in MEASURES}


def print_tables(rows: list[dict]) -> None:
    photos = list(rows[0]["photos"])
    print("\n| selector | " + " | ".join(MEASURES) + " |")
    print("|---|" + "---|" * len(MEASURES))
    for row in rows:
        sds = row.get("sd", {})
        cells = [
            f"{row[name]:.1%}" + (f" ± {100 * sds[name]:.1f}" if name in sds else "") for name in MEASURES
        ]
        print(f"| {row['selector']} | " + " | ".join(cells) + " |")
    print("\n| on trees / hit, by photo | " + " | ".join(photos) + " |")
    print("|---|" + "---|" * len(photos))
    for row in rows:
        cells = [f"{values['on trees']:.1%} / {values['hit']:.1%}" for values in row["photos"].values()]
        print(f"| {row['selector']} | " + " | ".join(cells) + " |")


def draw(window: Window, kept: dict[str, np.ndarray], path: Path) -> None:
    """The patches that each selector keeps of a window, side by side, with the boxes of trees."""
    from vit_hf.explanations.panels import draw_boxes, kept_picture, outline, panel_axes
    from vit_hf.explanations.sheets import MARGIN, Cell, Sheet, house_style

    side, gap, title, per_line = 4.5, 0.2, 0.35, min(4, len(kept))
    height, lines = side * window.grid[0] / window.grid[1], -(-len(kept) // per_line)
    with house_style():
        sheet = Sheet(2 * MARGIN + per_line * (side + gap) - gap, 2 * MARGIN + lines * (height + title))
        for index, (name, mask) in enumerate(kept.items()):
            line, place = divmod(index, per_line)
            top = MARGIN + title + line * (height + title)
            cell = Cell(MARGIN + place * (side + gap), top, side, height)
            # Sizes in patches, as the boxes are.
            spans = {"patch_span": window.grid, "picture_size": window.grid}
            shown = SimpleNamespace(picture=np.asarray(window.image), kept=mask, **spans)
            values = pool([measure(window, mask)])
            caption = f"{name}: {values['hit']:.0%} hit, {values['on trees']:.0%} on trees"
            axes = panel_axes(shown, sheet, cell, caption, kept_picture(shown))
            outline(axes, mask, width=0.5)
            draw_boxes(axes, shown, window.boxes, width=0.8)
        sheet.figure.savefig(path)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, help="folder of images with Pascal VOC files; None: the photos of deepforest"
    )
    parser.add_argument("--crop", type=int, default=1024, help="pixels a side of the windows")
    parser.add_argument("--patch-size", type=int, default=16, help="pixels a side of a patch")
    parser.add_argument("--num-selected-patches", type=int, default=196, help="kept of a whole window")
    parser.add_argument("--seeds", type=int, default=10, help="of random")
    parser.add_argument("--checkpoint", help="ViT for the selectors that look through a model, untrained")
    parser.add_argument(
        "--probe-num-layers", type=int, nargs="+", default=[3], help="blocks whose attention is tried"
    )
    parser.add_argument(
        "--probe-reduction", nargs="+", default=["mean"], help="of attention: mean, max or rollout"
    )
    parser.add_argument("--probe-image-size", type=int, help="pixels of thumbnails; None: as in --checkpoint")
    parser.add_argument("--models", nargs="+", default=[], help="saved models, for their own selectors")
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda"
    )
    parser.add_argument("--picture", type=Path, help="draw what is kept of one window into this file")
    parser.add_argument("--picture-window", type=int, default=0, help="which one, from 0")
    parser.add_argument("--picture-selectors", nargs="+", help="rows to draw; None: all")
    parser.add_argument("--output", type=Path, help="write the rows as JSON as well")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> list[dict]:
    args = parse_arguments(argv)
    command = shlex.join(["python", "scripts/photo_recall.py", *(sys.argv[1:] if argv is None else argv)])
    per_side = args.crop // args.patch_size
    share = args.num_selected_patches / per_side**2
    if not 0 < share <= 1:
        sys.exit(
            f"photo_recall.py: --num-selected-patches must lie in 1..{per_side**2}, the patches of a window."
        )
    try:
        found = cut_windows(args.data or deepforest_folder(), args.crop, args.patch_size)
    except (OSError, ValueError) as error:
        sys.exit(f"photo_recall.py: {error}")
    numbers = [max(1, round(share * window.grid[0] * window.grid[1])) for window in found]
    device = f"{torch.get_num_threads()} CPU threads ({platform.machine()})"
    if args.device.startswith("cuda"):
        device = torch.cuda.get_device_name()
    print(f"{command}\n{device}, torch {torch.__version__}, transformers {transformers.__version__}")
    print(
        f"{sum(len(window.boxes) for window in found)} trees in {len(found)} windows of "
        f"{len({window.photo for window in found})} photos; {sum(numbers)} patches of "
        f"{sum(window.grid[0] * window.grid[1] for window in found)} kept ({share:.1%})",
        flush=True,
    )

    chance = [expect(window, number) for window, number in zip(found, numbers, strict=True)]
    rows, kept = [summarise("random, expected", [chance], found)], {}
    try:
        for name, ways in methods(args, share):
            masks = [[keep(window) for window in found] for keep in ways]
            runs = [[measure(*pair) for pair in zip(found, way, strict=True)] for way in masks]
            rows.append(summarise(name, runs, found))
            kept[name] = masks[0][args.picture_window]
    except (OSError, ValueError) as error:
        sys.exit(f"photo_recall.py: {error}")
    known = [keep_known(*pair) for pair in zip(found, numbers, strict=True)]
    rows.append(
        summarise("boxes known", [[measure(*pair) for pair in zip(found, known, strict=True)]], found)
    )

    print_tables(rows)
    if args.picture:
        wanted = args.picture_selectors or list(kept)
        draw(found[args.picture_window], {name: kept[name] for name in wanted}, args.picture)
    if args.output:
        args.output.write_text(json.dumps({"command": command, "share": share, "rows": rows}, indent=2))
    return rows


if __name__ == "__main__":
    disable_progress_bar()
    set_verbosity_error()  # a report about the head of every checkpoint
    main()
