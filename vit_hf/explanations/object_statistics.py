"""Statistics of how well the kept patches cover the objects of an image.

Boxes are [x0, y0, x1, y1]: left, top, right and bottom edge in pixels. K patches kept; J objects.
"""

import csv
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np


if TYPE_CHECKING:
    from .explanation import Explanation


# A patch is on an object if they overlap by this fraction of the greatest overlap that boxes of their sizes
# can have: of the patch's area for larger objects, of the object's area for smaller ones, which one patch
# always reaches.
LEAST_OVERLAP = 0.25

Boxes = Sequence[Sequence[float]]


def image_statistics(explanation: "Explanation") -> dict[str, int | float | None]:
    """Computes the statistics of one image.

    Returns:
        num_patches: patches of the whole grid.
        num_kept: patches that entered the encoder.
        tokens_after_block_<n>: tokens left by each reduction, if there is a token reducer.
        If boxes were given, even an empty list (then the last three are None):
        num_objects: number of boxes.
        kept_on_object: fraction of the kept patches that lie on an object (see `LEAST_OVERLAP`).
        object_covered: fraction of the boxes' area that kept patches cover; overlaps of boxes count for each.
        centers_hit: fraction of the boxes whose center lies in a kept patch.
    """
    rows, columns = explanation.grid
    numbers: dict[str, int | float | None] = {
        "num_patches": rows * columns,
        "num_kept": len(explanation.kept_patches),
    }
    for stage in explanation.stages:
        numbers[f"tokens_after_block_{stage.block}"] = stage.num_tokens
    boxes = explanation.boxes
    if boxes is None:
        return numbers
    numbers["num_objects"] = len(boxes)
    if len(boxes) == 0:
        return numbers | dict.fromkeys(("kept_on_object", "object_covered", "centers_hit"))
    patches = explanation.kept_boxes
    overlap = _overlap(patches, boxes)  # (K, J)
    on_object = overlap >= LEAST_OVERLAP * _greatest_overlap(patches, boxes) * (1 - 1e-9)
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    inside = (patches[:, None, :2] <= centers) & (centers < patches[:, None, 2:])  # (K, J, 2)
    return numbers | {
        "kept_on_object": float(on_object.any(axis=1).mean()),
        "object_covered": float(overlap.sum() / _sides(boxes).prod(axis=1).sum()),
        "centers_hit": float(inside.all(axis=2).any(axis=0).mean()),
    }


def write_statistics(explanations: Iterable["Explanation"], path: str | os.PathLike) -> Path:
    """Writes predictions and `Explanation.statistics`, one row for each image, as CSV or JSON by suffix.

    Args:
        explanations: may be a generator; one explanation at a time is held.
        path: file to write. In CSV, missing numbers are empty cells.

    Returns:
        The path.

    Raises:
        ValueError: for another suffix.
    """
    path = Path(path)
    if path.suffix not in (".csv", ".json"):
        raise ValueError(f"Statistics are written as .csv or .json: {path.name!r} ends in neither.")
    rows: list[dict[str, Any]] = []
    for explanation in explanations:
        prediction = explanation.prediction
        answers = prediction.answers
        if prediction.probabilities is None:
            answers = [f"{value:.6g}" for value in prediction.logits]
        answer = {"image": explanation.name, "answer": ", ".join(answers), "correct": prediction.correct}
        rows.append(answer | explanation.statistics)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=2), encoding="utf-8")
        return path
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    return path


def check_boxes(boxes: Sequence[Boxes | None] | None, num_images: int) -> list[np.ndarray | None]:
    """Returns the boxes of each image as `(J, 4)` float64; None where they are unknown.

    Raises:
        ValueError: if there is not one list for each image, or a box is invalid.
    """
    if boxes is None:
        return [None] * num_images
    if len(boxes) != num_images:
        raise ValueError(
            f"There are boxes for {len(boxes)} images, but {num_images} images: give one list of "
            "boxes for each, or None where they are unknown."
        )
    return [None if found is None else _to_array(found, index) for index, found in enumerate(boxes)]


def _to_array(boxes: Boxes, index: int) -> np.ndarray:
    try:
        array = np.asarray(boxes, dtype=np.float64)
    except (TypeError, ValueError):
        array = np.empty(1)
    if array.size == 0:
        return np.zeros((0, 4))
    if array.ndim != 2 or array.shape[1] != 4:
        raise ValueError(f"boxes[{index}] must be a list of [x0, y0, x1, y1] in pixels, not {boxes!r}.")
    for box in array:
        if not np.isfinite(box).all() or not (box[:2] < box[2:]).all():
            raise ValueError(
                f"boxes[{index}] holds {box.tolist()}; a box is [x0, y0, x1, y1] with x0 < x1 and y0 < y1."
            )
    return array


def _sides(boxes: np.ndarray) -> np.ndarray:
    return boxes[:, 2:] - boxes[:, :2]


def _overlap(patches: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Computes the areas `(K, J)` that boxes `(K, 4)` and `(J, 4)` have in common."""
    low = np.maximum(patches[:, None, :2], boxes[:, :2])
    high = np.minimum(patches[:, None, 2:], boxes[:, 2:])
    return (high - low).clip(min=0).prod(axis=2)


def _greatest_overlap(patches: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Computes the areas `(K, J)` that they would have in common in the best position."""
    return np.minimum(_sides(patches)[:, None], _sides(boxes)).prod(axis=2)
