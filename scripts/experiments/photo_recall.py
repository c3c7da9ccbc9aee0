"""Measures how many of the annotated trees in aerial photos each selector finds, compared with chance.

    pip install --no-deps deepforest==2.1.0    # four annotated photos, up to 2299x2472 pixels
    python scripts/experiments/photo_recall.py --picture trees.png
    python scripts/experiments/photo_recall.py --checkpoint google/vit-base-patch16-224 --data my_photos/

Photos are cut into windows of --crop pixels without overlap; what remains at the edges, and photos that are
smaller, count if at least a quarter of that wide and high. Every window keeps the same fraction of its
patches: 196 of 4096. A tree belongs to the window that its center lies in, its box ends at the border. Over
the trees of all windows:

- hit: a kept patch covers the center of the tree's box;
- touched: a kept patch lies on the tree: its center is in the box, or the center of the box is in the patch;
- covered: fraction of the area of the box that kept patches cover, mean over trees;
- on trees: fraction of the kept patches that lie on some tree.

"random, expected" is exact; "boxes known" takes centers first, then other patches on trees: the most that is
possible for hit. A checkpoint whose patches have another size sees the window resized so that they cover the
same pixels.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import harness
import numpy as np
import PIL.Image
import torch

from vit_hf import PATCH_SELECTORS, AdaptiveViTModel
from vit_hf.data.measurement_images import annotated_photos, deepforest_folder, photo_processor, windows
from vit_hf.model.image_loading import read_image
from vit_hf.model.options import type_of
from vit_hf.model.pixel_scorers import PIXEL_SCORERS
from vit_hf.model.sizes import to_pair


MEASURES = ("hit", "touched", "covered", "on trees")

# Values of each tree, or of each kept patch, of one window.
Values = dict[str, np.ndarray]


@dataclass
class Window:
    """Part of a photo, made of whole patches.

    Attributes:
        boxes: `(T, 4)` left, top, right, bottom in patches, which need not be whole.
        grid: R rows and S columns of patches.
    """

    photo: str
    image: PIL.Image.Image
    boxes: np.ndarray
    grid: tuple[int, int]

    def centers(self) -> np.ndarray:
        """Returns the patch that the center of each box lies in, `(T, 2)` as row and column."""
        center = (self.boxes[:, :2] + self.boxes[:, 2:]) / 2
        return np.floor(center[:, ::-1]).astype(int)

    def on_trees(self) -> np.ndarray:
        """Tells which patches lie on which trees, `(T, R, S)`: the center of either is in the other."""
        left, top, right, bottom = self.boxes.T[..., None]
        rows, columns = (np.arange(length) + 0.5 for length in self.grid)
        on = ((rows >= top) & (rows < bottom))[:, :, None] & ((columns >= left) & (columns < right))[:, None]
        on[np.arange(len(on)), *self.centers().T] = True
        return on

    def overlap(self) -> np.ndarray:
        """Returns the fraction of each box that lies in each patch, `(T, R, S)`."""
        left, top, right, bottom = self.boxes.T[..., None]
        rows, columns = (np.arange(length) for length in self.grid)
        height = (np.minimum(bottom, rows + 1) - np.maximum(top, rows)).clip(0)
        width = (np.minimum(right, columns + 1) - np.maximum(left, columns)).clip(0)
        return (height / height.sum(1, keepdims=True))[:, :, None] * (width / width.sum(1, keepdims=True))[
            :, None
        ]


# From a window to a mask of the patches that are kept, (R, S).
Method = Callable[[Window], np.ndarray]


def cut_windows(folder: Path, side: int, patch_size: int) -> list[Window]:
    found = []
    for path, boxes in annotated_photos(folder):
        image = read_image(path).convert("RGB")
        for left, top, right, bottom in windows(*image.size, side, side // 4):
            rows, columns = (bottom - top) // patch_size, (right - left) // patch_size
            area = (left, top, left + columns * patch_size, top + rows * patch_size)
            center = (boxes[:, :2] + boxes[:, 2:]) / 2
            here = ((center >= area[:2]) & (center < area[2:])).all(1)
            clipped = np.clip(boxes[here], [*area[:2]] * 2, [*area[2:]] * 2)
            if here.any():
                in_patches = (clipped - [left, top, left, top]) / patch_size
                found.append(Window(path.name, image.crop(area), in_patches, (rows, columns)))
    return found


def measure(window: Window, kept: np.ndarray) -> Values:
    on = window.on_trees()
    return {
        "hit": kept[tuple(window.centers().T)],
        "touched": (on & kept).any((1, 2)),
        "covered": (window.overlap() * kept).sum((1, 2)),
        "on trees": on.any(0)[kept],
    }


def expect(window: Window, num_selected: int) -> Values:
    """Returns the mean of `measure` over all choices of `num_selected` patches."""
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
    """Keeps patches with the most centers of trees, then others on trees."""
    scores = 0.5 * window.on_trees().any(0)
    np.add.at(scores, tuple(window.centers().T), 1)
    return as_mask(window, np.argsort(-scores, axis=None, kind="stable")[:num_selected])


def as_mask(window: Window, indices: np.ndarray) -> np.ndarray:
    """Returns raster indices as a mask, `(R, S)`."""
    kept = np.zeros(window.grid, dtype=bool)
    kept.flat[indices] = True
    return kept


def by_pixels(name: str, fraction: float, patch_size: int, seed: int = 0) -> Method:
    processor = photo_processor()
    selector = {"type": "random", "seed": seed} if name == "random" else name
    options = {"patch_selector": selector, "num_selected_patches": fraction}

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


def methods(args: argparse.Namespace, fraction: float) -> Iterator[tuple[str, list[Method]]]:
    """Yields names and functions that keep patches; several functions are seeds of a random choice."""
    for name in PIXEL_SCORERS:
        seeds = range(args.seeds) if name == "random" else [0]
        yield name, [by_pixels(name, fraction, args.patch_size, seed) for seed in seeds]
    for path in args.models:
        model = AdaptiveViTModel.from_pretrained(path, add_pooling_layer=False).to(args.device).eval()
        if model.selector is None:
            sys.exit(f"photo_recall.py: {path} has no patch_selector. Give such a model as --checkpoint.")
        model.config.num_selected_patches = fraction
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
                num_selected_patches=fraction,
                add_pooling_layer=False,
                output_loading_info=True,
            )
            if any("selector." in key for key in info["missing_keys"]):
                print(f"Left out: {name}, for which {args.checkpoint} has no weights.")
            else:
                yield title, [by_model(model.to(args.device).eval(), args.checkpoint)]


def variants(name: str, args: argparse.Namespace) -> list[tuple[str, str | dict]]:
    """Returns the titles of the rows of a selector, and the selector with its options."""
    if name != "attention":
        return [(name, name)]
    return harness.attention_selectors(args.probe_num_layers, args.probe_reduction, args.probe_image_size)


def pool(per_window: list[Values]) -> dict[str, float]:
    return {name: float(np.concatenate([values[name] for values in per_window]).mean()) for name in MEASURES}


def summarize(name: str, runs: list[list[Values]], found: list[Window]) -> dict:
    """Returns a row: means over the seeds and, where there are several, their standard deviation."""
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
    table = []
    for row in rows:
        sds = row.get("sd", {})
        cells = [
            f"{row[name]:.1%}" + (f" ± {100 * sds[name]:.1f}" if name in sds else "") for name in MEASURES
        ]
        table.append([row["selector"], *cells])
    print(f"\n{harness.markdown_table(['selector', *MEASURES], table)}")
    table = []
    for row in rows:
        cells = [f"{values['on trees']:.1%} / {values['hit']:.1%}" for values in row["photos"].values()]
        table.append([row["selector"], *cells])
    print(f"\n{harness.markdown_table(['on trees / hit, by photo', *rows[0]['photos']], table)}")


def draw(window: Window, kept: dict[str, np.ndarray], path: Path) -> None:
    """Draws the patches that each selector keeps of a window, side by side, with the boxes of trees."""
    from vit_hf.explanations.drawing import draw_boxes, outline, panel_axes
    from vit_hf.explanations.explanation import kept_picture
    from vit_hf.figures import MARGIN, Cell, Sheet, house_style

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
    parser = harness.make_parser(
        __doc__,
        device=harness.DEVICE,
        seeds=10,
        crop=(1024, "pixels a side of the windows"),
        patch_size=(16, "pixels a side of a patch"),
        num_selected_patches=(196, "kept of a whole window"),
        probe_num_layers=([3], "blocks whose attention is tried"),
        probe_reduction=(["mean"], "of attention: mean, max, min or rollout"),
        picture_window=(0, "index of the window, from 0"),
    )
    parser.add_argument(
        "--data", type=Path, help="folder of images with Pascal VOC files; None: the photos of deepforest"
    )
    parser.add_argument("--checkpoint", help="ViT for the selectors that look through a model, untrained")
    parser.add_argument("--probe-image-size", type=int, help="pixels of thumbnails; None: as in --checkpoint")
    parser.add_argument("--models", nargs="+", default=[], help="saved models, for their own selectors")
    parser.add_argument("--picture", type=Path, help="draw the kept patches of one window into this file")
    parser.add_argument("--picture-selectors", nargs="+", help="rows to draw; None: all")
    parser.add_argument("--output", type=Path, help="write the rows as JSON as well")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> list[dict]:
    args = parse_arguments(argv)
    command = harness.command_line(__file__, argv)
    per_side = args.crop // args.patch_size
    fraction = args.num_selected_patches / per_side**2
    if not 0 < fraction <= 1:
        sys.exit(
            f"photo_recall.py: --num-selected-patches must lie in 1..{per_side**2}, the patches of a window."
        )
    with harness.errors_as_messages(__file__):
        found = cut_windows(args.data or deepforest_folder(), args.crop, args.patch_size)
    numbers = [max(1, round(fraction * window.grid[0] * window.grid[1])) for window in found]
    print(f"{command}\n{harness.machine_line(args.device)}")
    print(
        f"{sum(len(window.boxes) for window in found)} trees in {len(found)} windows of "
        f"{len({window.photo for window in found})} photos; {sum(numbers)} patches of "
        f"{sum(window.grid[0] * window.grid[1] for window in found)} kept ({fraction:.1%})",
        flush=True,
    )

    chance = [expect(window, number) for window, number in zip(found, numbers, strict=True)]
    rows, kept = [summarize("random, expected", [chance], found)], {}
    with harness.errors_as_messages(__file__):
        for name, seeds in methods(args, fraction):
            masks = [[keep(window) for window in found] for keep in seeds]
            runs = [[measure(*pair) for pair in zip(found, chosen, strict=True)] for chosen in masks]
            rows.append(summarize(name, runs, found))
            kept[name] = masks[0][args.picture_window]
    known = [keep_known(*pair) for pair in zip(found, numbers, strict=True)]
    rows.append(
        summarize("boxes known", [[measure(*pair) for pair in zip(found, known, strict=True)]], found)
    )

    print_tables(rows)
    if args.picture:
        wanted = args.picture_selectors or list(kept)
        draw(found[args.picture_window], {name: kept[name] for name in wanted}, args.picture)
    if args.output:
        harness.write_json(args.output, {"command": command, "share": fraction, "rows": rows})
    return rows


if __name__ == "__main__":
    harness.hide_reports()
    main()
