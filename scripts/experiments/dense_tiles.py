"""Measures tiled masks and boxes: memory by the size of an image, merging of boxes, and tiles that are
skipped.

    python scripts/experiments/dense_tiles.py                       # 1024 to 16384 pixels a side; 15 minutes
    python scripts/experiments/dense_tiles.py --sides 1024 4096 --scenes 100

The model of the masks sees single pixels, and the detectors know the objects or find as many in each tile, so
that the figures are those of the tiling. Peak memory is the most that a process of its own had resident, with
Python, torch and the model, after it had done the same with a picture of 1024 pixels. Pictures are generated
once (0.8 GB on disk).
"""

import argparse
import gc
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, ViTImageProcessor
from transformers.modeling_outputs import SemanticSegmenterOutput
from transformers.models.detr.modeling_detr import DetrObjectDetectionOutput

from vit_hf import detect_tiled, segment_tiled
from vit_hf.data.measurement_images import write_tiff
from vit_hf.inference.box_merging import BOX_MERGERS, Candidates, areas, check_merging, intersection_sides
from vit_hf.inference.dense_tiles import cover_windows, windows_in_order
from vit_hf.inference.vector_output import coco_annotations, write_json
from vit_hf.measure import in_fresh_process, peak_resident, resident_growth


TILE, OVERLAP, NUM_LABELS, BOXES_PER_TILE = 512, 0.25, 8, 20


class StubConfig(PreTrainedConfig):
    model_type = "stub"


class PixelSegmenter(PreTrainedModel):
    """Classes by color."""

    config_class = StubConfig

    def __init__(self):
        super().__init__(StubConfig(num_labels=NUM_LABELS))
        self.classifier = nn.Conv2d(3, NUM_LABELS, kernel_size=1)

    def forward(self, pixel_values: torch.Tensor) -> SemanticSegmenterOutput:
        return SemanticSegmenterOutput(logits=self.classifier(pixel_values))


class SteadyDetector(PreTrainedModel):
    """As many objects in every tile."""

    config_class = StubConfig

    def __init__(self):
        super().__init__(StubConfig(num_labels=2))
        generator = torch.Generator().manual_seed(0)
        centers = torch.rand(BOXES_PER_TILE, 2, generator=generator)
        self.boxes = nn.Parameter(torch.cat((centers, torch.full_like(centers, 0.03)), dim=1))

    def forward(self, pixel_values: torch.Tensor) -> DetrObjectDetectionOutput:
        boxes = self.boxes.expand(len(pixel_values), -1, -1)
        return DetrObjectDetectionOutput(pred_boxes=boxes)


class SteadyProcessor(ViTImageProcessor):
    def post_process_object_detection(self, outputs, threshold, target_sizes):
        results = []
        for boxes, (height, width) in zip(outputs.pred_boxes, target_sizes.tolist(), strict=True):
            corners = torch.cat((boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2), dim=1)
            scale = torch.tensor([width, height, width, height])
            number = len(boxes)
            results.append(
                {"boxes": corners * scale, "scores": torch.ones(number), "labels": torch.arange(number) % 2}
            )
        return results


PROCESSOR = SteadyProcessor(do_resize=False)


def measure(kind: str, path: str, warmup: str, output: str) -> tuple[float, float, int, int]:
    """Peak MiB, seconds, tiles, and tiles computed or boxes found.

    Works on a small picture first: what libraries and the allocator need once is then there.
    """
    work = {"masks": segment, "selected": segment_selected, "boxes": detect}[kind]
    work(warmup, output)
    gc.collect()
    start = time.perf_counter()
    results = []
    resident_growth(lambda: results.append(work(path, output)))
    return peak_resident(), time.perf_counter() - start, *results[0]


def segment(path: str, output: str, **selection: object) -> tuple[int, int]:
    torch.manual_seed(0)
    options = {"tile": TILE, "overlap": OVERLAP, "output": f"{output}/mask.tif", "resume": False, **selection}
    result = segment_tiled(PixelSegmenter(), path, PROCESSOR, **options)
    return result.num_tiles, result.num_computed


def segment_selected(path: str, output: str) -> tuple[int, int]:
    return segment(path, output, tile_selector="variance", num_selected_tiles=0.25)


def detect(path: str, output: str) -> tuple[int, int]:
    result = detect_tiled(SteadyDetector(), path, PROCESSOR, tile=TILE, overlap=OVERLAP)
    write_json(f"{output}/boxes.json", coco_annotations(result, Path(path).name))
    return result.num_tiles, len(result)


def memory(folder: Path, sides: list[int]) -> None:
    print(
        "| pixels a side | tiles | masks: peak MiB | s | a quarter of the tiles: s | boxes: peak MiB | s | "
        "boxes |"
    )
    print("|---|---|---|---|---|---|---|---|")
    warmup = str(picture(folder, 1024))
    for side in sides:
        path = str(picture(folder, side))
        with tempfile.TemporaryDirectory(dir=folder) as out:
            masks, fewer, boxes = (
                in_fresh_process(measure, kind, path, warmup, out) for kind in ("masks", "selected", "boxes")
            )
        print(
            f"| {side} | {masks[2]} | {masks[0]:.0f} | {masks[1]:.1f} | {fewer[1]:.1f} ({fewer[3]} tiles) | "
            f"{boxes[0]:.0f} | {boxes[1]:.1f} | {boxes[3]} |",
            flush=True,
        )


def picture(folder: Path, side: int) -> Path:
    """A TIFF of a generated picture, which is made if it is not there."""
    path = folder / f"{side}.tif"
    if not path.is_file():
        write_tiff(folder / "part.tif", side)
        (folder / "part.tif").rename(path)
    return path


def merging(num_scenes: int) -> None:
    """Merges true boxes, clipped to the windows that see them, by each method."""
    generator = np.random.default_rng(0)
    print("| boxes | merging | found | lost, % | too many, % |\n|---|---|---|---|---|")
    for name, spacing in (("apart", 90), ("crowded", 22)):
        totals = {merger: [0, 0, 0] for merger in BOX_MERGERS}
        for _ in range(num_scenes):
            boxes, found, windows, grids = _scene(generator, spacing)
            for merger, merge in BOX_MERGERS.items():
                result = merge(found, windows, grids, check_merging(merger, None, True)).boxes
                exact = len({tuple(box) for box in boxes.tolist()} & {tuple(box) for box in result.tolist()})
                totals[merger][0] += len(boxes)
                totals[merger][1] += exact
                totals[merger][2] += len(result)
        for merger, (there, exact, given) in totals.items():
            lost, more = 100 * (1 - exact / there), 100 * (given - exact) / there
            print(f"| {name} | {merger} | {exact} of {there} | {lost:.1f} | {more:.1f} |")


def jittered_merging(num_scenes: int) -> None:
    """F1 of boxes at IoU 0.6 where each tile errs by pixels, and misses most of what it sees little of."""
    print("| boxes | error, pixels | unmerged | " + " | ".join(BOX_MERGERS) + " |")
    print("|---|---|---|" + "---|" * len(BOX_MERGERS))
    for name, spacing in (("apart", 90), ("crowded", 45)):
        for error in (1, 2, 4):
            generator = np.random.default_rng(0)
            scenes = [_jittered(generator, *_scene(generator, spacing), error) for _ in range(num_scenes)]
            scores = [_f1([(boxes, found.boxes) for boxes, found, _, _ in scenes])]
            for merger, merge in BOX_MERGERS.items():
                options = check_merging(merger, None, True)
                scores.append(
                    _f1(
                        [
                            (boxes, merge(found, windows, grids, options).boxes)
                            for boxes, found, windows, grids in scenes
                        ]
                    )
                )
            print(f"| {name} | {error} | " + " | ".join(f"{score:.3f}" for score in scores) + " |")


def _jittered(generator: np.random.Generator, boxes, found: Candidates, windows, grids, error: float):
    limits = np.array([(w.left, w.top, w.right, w.bottom) for w in windows], np.float64)[found.windows]
    places = found.boxes + generator.normal(0, error, found.boxes.shape)
    places[:, :2] = np.maximum(places[:, :2], limits[:, :2])
    places[:, 2:] = np.minimum(places[:, 2:], limits[:, 2:])
    common = np.maximum(intersection_sides(found.boxes, boxes), 0).prod(axis=2)
    # Visible part of the box.
    visible = np.where(common >= 0.999 * areas(found.boxes)[:, None], common / areas(boxes)[None], 0).max(
        axis=1
    )
    kept = (generator.random(len(places)) < 2.5 * visible) & (places[:, 2:] > places[:, :2]).all(axis=1)
    inner = np.concatenate(
        (
            np.where(limits[:, :2] > 0, limits[:, :2], -np.inf),
            np.where(limits[:, 2:] < 600, limits[:, 2:], np.inf),
        ),
        axis=1,
    )
    cut = (places[:, :2] <= inner[:, :2] + 4).any(axis=1) | (places[:, 2:] >= inner[:, 2:] - 4).any(axis=1)
    scores = (0.4 + 0.5 * visible + generator.normal(0, 0.08, len(places))).clip(0.05, 1)
    parts = (places, scores, found.labels, found.windows, cut)
    return boxes, Candidates(*(part[kept] for part in parts)), windows, grids


def _f1(pairs: list[tuple[np.ndarray, np.ndarray]]) -> float:
    right = number = 0
    for truth, found in pairs:
        common = np.maximum(intersection_sides(found, truth), 0).prod(axis=2)
        iou = common / (areas(found)[:, None] + areas(truth)[None] - common)
        # Each true box counts once.
        right += len(set(iou.argmax(axis=1)[iou.max(axis=1) >= 0.6].tolist()))
        number += len(truth) + len(found)
    return 2 * right / number


def _scene(generator: np.random.Generator, spacing: int):
    """Boxes of 20 to 60 pixels in an image of 600 x 600, as windows of 160 see them."""
    places = np.arange(spacing / 2, 600, spacing)
    centers = np.stack(np.meshgrid(places, places), -1).reshape(-1, 2)
    centers = centers + generator.uniform(-8, 8, centers.shape)
    sides = generator.uniform(10, 30, centers.shape)
    boxes = np.concatenate((centers - sides, centers + sides), axis=1).clip(0, 600)
    grids = cover_windows((600, 600), 160, OVERLAP)
    windows = list(windows_in_order(grids))
    parts, numbers, cut = [], [], []
    for number, window in enumerate(windows):
        low = np.maximum(boxes[:, :2], (window.left, window.top))
        high = np.minimum(boxes[:, 2:], (window.right, window.bottom))
        seen = (high > low).all(axis=1)
        clipped = np.concatenate((low, high), axis=1)
        parts.append(clipped[seen])
        cut.append((clipped != boxes).any(axis=1)[seen])
        numbers.append(np.full(seen.sum(), number))
    parts = np.concatenate(parts)
    scores = generator.uniform(0.5, 1, len(parts))
    labels = np.zeros(len(parts), np.int64)
    return (
        boxes,
        Candidates(parts, scores, labels, np.concatenate(numbers), np.concatenate(cut)),
        windows,
        grids,
    )


def exactness() -> None:
    """Largest difference of tiled logits from those of the whole image, by overlap."""
    torch.manual_seed(0)
    model = PixelSegmenter().eval()
    image = np.random.default_rng(0).integers(0, 256, (700, 900, 3), np.uint8)
    with torch.inference_mode():
        inputs = PROCESSOR(image, return_tensors="pt", input_data_format="channels_last")
        expected = model(**inputs).logits[0].permute(1, 2, 0).numpy()
    differences = [
        float(
            np.abs(
                segment_tiled(model, image, PROCESSOR, tile=256, overlap=overlap, keep_logits=True).logits
                - expected
            ).max()
        )
        for overlap in (0, 0.1, 0.25, 0.5, 0.75)
    ]
    print(f"a model of single pixels, overlaps 0 to 0.75: logits differ by at most {max(differences):.1g}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--sides", type=int, nargs="*", default=[1024, 4096, 16384])
    parser.add_argument("--scenes", type=int, default=50)
    parser.add_argument("--folder", type=Path, default=Path("runs/large_images"), help="for the pictures")
    arguments = parser.parse_args()
    exactness()
    merging(arguments.scenes)
    jittered_merging(arguments.scenes)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    memory(arguments.folder, arguments.sides)


if __name__ == "__main__":
    main()
