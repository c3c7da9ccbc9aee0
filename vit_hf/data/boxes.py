"""Images with boxes: box arithmetic, columns of data sets, whole images or crops."""

import math
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple

import datasets
import numpy as np
import PIL.Image
import torch
from torch.utils.data import Dataset

from ..model.image_loading import as_picture
from .augmentation import seeded
from .images import decode_image


Window = tuple[int, int, int, int]


def crop_boxes(boxes: np.ndarray, window: Window, min_area_fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """Clips boxes to a window, and drops those of which too little remains.

    Args:
        boxes: `(T, 4)`.
        window: left, top, right, bottom.
        min_area_fraction: fraction of a box's area that must be inside to keep it; boxes entirely outside
            are always dropped.

    Returns:
        Those that stay `(S, 4)`, in pixels of the window, and which they are `(S,)` int64.
    """
    left, top, right, bottom = window
    cut = boxes.clip([left, top, left, top], [right, bottom, right, bottom])
    inside = area(cut)
    stays = (inside > 0) & (inside >= min_area_fraction * area(boxes) * (1 - 1e-9))
    return cut[stays] - [left, top, left, top], np.flatnonzero(stays)


def flip_boxes(boxes: np.ndarray, size: int, axis: int) -> np.ndarray:
    """Mirrors boxes with their image.

    Args:
        boxes: `(T, 4)`.
        size: size of the image along `axis`, in pixels.
        axis: 0 swaps left and right, 1 top and bottom.
    """
    flipped = boxes.copy()
    flipped[:, axis], flipped[:, axis + 2] = size - boxes[:, axis + 2], size - boxes[:, axis]
    return flipped


def area(boxes: np.ndarray) -> np.ndarray:
    """`(T,)`, in square pixels."""
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def count_tiles(width: int, height: int, side: int) -> tuple[int, int]:
    """Columns and rows of tiles that cover an image."""
    return math.ceil(width / side), math.ceil(height / side)


def tile(index: int, width: int, height: int, side: int) -> Window:
    """Returns one of the tiles that cover an image, in reading order, evenly spaced with the least overlap.

    Only where an image is smaller than a tile does a tile reach beyond it.
    """
    columns, rows = count_tiles(width, height, side)
    row, column = divmod(index, columns)
    left = column * max(0, width - side) // max(1, columns - 1)
    top = row * max(0, height - side) // max(1, rows - 1)
    return left, top, left + side, top + side


def to_coco(boxes: np.ndarray) -> np.ndarray:
    """`(T, 4)`: left, top, width, height."""
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)


def from_coco(boxes: np.ndarray) -> np.ndarray:
    """The inverse of `to_coco`."""
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)


BOX_KEYS = ("bbox", "bboxes", "boxes")
CLASS_KEYS = ("category", "categories", "category_id", "label", "labels", "class")
OBJECT_COLUMNS = ("objects", "annotations", "object")


class FoundBoxes(NamedTuple):
    """Boxes of all images of a split.

    Attributes:
        boxes: for each image `(T, 4)` float64: left, top, right, bottom in pixels.
        names: for each image, the classes of its boxes.
        classes: all names in their order, where the data set knows it.
    """

    boxes: list[np.ndarray]
    names: list[list[str]]
    classes: list[str] | None


def find_object_column(rows: datasets.Dataset, column_name: str | None) -> str:
    """Finds the column of boxes: the one named, or one of `OBJECT_COLUMNS`.

    Raises:
        ValueError: if there is none.
    """
    found = (
        [column_name] if column_name is not None else [n for n in OBJECT_COLUMNS if n in rows.column_names]
    )
    if not found or found[0] not in rows.column_names:
        raise ValueError(
            f"there is no column of boxes{f' {column_name!r}' if column_name else ''}; the data have "
            f"{', '.join(rows.column_names)}. Name it with label_column: it holds, for each image, "
            "{bbox: [[left, top, width, height], ...], category: [...]}; or put a Pascal VOC "
            "file (.xml) next to each image"
        )
    return found[0]


def read_objects(rows: datasets.Dataset, column: str, row_names: list[str] | None = None) -> FoundBoxes:
    """Reads `{bbox, category}` of lists, or a list of `{bbox, category}`; boxes in COCO form.

    Args:
        rows: rows of one split.
        column: the column of boxes.
        row_names: names of the rows in errors; by default "image" and its number.

    Raises:
        ValueError: if the column is neither, an image has not as many categories as boxes, or a category is
            missing or not among the classes of the column.
    """
    feature = rows.features[column]
    inner = feature if isinstance(feature, dict) else getattr(feature, "feature", None)
    if not isinstance(inner, dict):
        raise ValueError(
            f"the column {column} must hold, for each image, bbox and category of its objects, not {feature}"
        )
    keys = [next((key for key in keys if key in inner), None) for keys in (BOX_KEYS, CLASS_KEYS)]
    if None in keys:
        raise ValueError(
            f"the objects of the column {column} must have one of {', '.join(BOX_KEYS)} and one of "
            f"{', '.join(CLASS_KEYS)}; they have {', '.join(inner)}"
        )
    leaf = inner[keys[1]]
    leaf = getattr(leaf, "feature", leaf) if inner is feature else leaf
    classes = leaf.names if isinstance(leaf, datasets.ClassLabel) else None
    boxes, names = [], []
    for index, objects in enumerate(rows.select_columns(column)[:][column]):
        place = row_names[index] if row_names else f"image {index}"
        found, categories = _lists(objects, *keys)
        if len(found) != len(categories):
            raise ValueError(
                f"{place} has {len(found)} boxes and {len(categories)} categories in the column {column}"
            )
        try:
            array = np.array(found, np.float64).reshape(-1, 4)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{place}: a box is [left, top, width, height] in pixels, and the column {column} has {found}"
            ) from error
        boxes.append(from_coco(array))
        names.append([_name(category, classes, place, column) for category in categories])
    return FoundBoxes(boxes, names, classes)


def _lists(objects: Any, box_key: str, class_key: str) -> tuple[list, list]:
    """Boxes and categories of one image."""
    if isinstance(objects, list):
        return [one[box_key] for one in objects], [one[class_key] for one in objects]
    objects = objects or {}
    return objects.get(box_key) or [], objects.get(class_key) or []


def _name(category: int | str | None, classes: list[str] | None, place: str, column: str) -> str:
    if category is None or (classes is not None and not 0 <= category < len(classes)):
        legal = "" if classes is None else f"; there are {len(classes)}, from 0"
        raise ValueError(f"{place} has the category {category} in the column {column}{legal}")
    return str(category) if classes is None else classes[category]


@dataclass
class BoxedImages:
    """One split: images, decoded on access, with their boxes.

    Attributes:
        rows: the rows that hold the images.
        image_column: the column of `rows` that holds them.
        boxes: for each image `(T, 4)` float64: left, top, right, bottom in pixels of the upright image.
        classes: for each image `(T,)` int64.
        sizes: for each image (width, height).
    """

    rows: datasets.Dataset
    image_column: str
    boxes: list[np.ndarray]
    classes: list[np.ndarray]
    sizes: list[tuple[int, int]]

    def __len__(self) -> int:
        return len(self.boxes)

    def read(self, index: int) -> PIL.Image.Image:
        """Decodes one image, upright.

        Raises:
            ValueError: naming the file, if it is damaged.
        """
        image = decode_image(self.rows[index][self.image_column])
        # A palette's first color need not be black, which is what pieces are filled with.
        try:
            return as_picture(image)
        except ValueError as error:
            raise ValueError(
                f"Cannot use the image {getattr(image, 'filename', '') or index}: {error}"
            ) from error

    def select(self, indices: np.ndarray) -> "BoxedImages":
        """The images with these indices."""
        parts = ([values[i] for i in indices] for values in (self.boxes, self.classes, self.sizes))
        return BoxedImages(self.rows.select(indices), self.image_column, *parts)

    @property
    def num_boxes(self) -> int:
        return sum(map(len, self.boxes))


class BoxExamples(Dataset):
    """Images for a `Trainer`: `image` (a PIL image), `boxes` `(T, 4)`, `classes` `(T,)` and `image_id`.

    With `crop_size`, an image gives as many pieces as tiles of that size cover it; an image that is smaller
    is filled up with black on the right and at the bottom, so that all pieces have one size.

    Args:
        images: the images to crop.
        crop_size: pixels a side of pieces; None for whole images.
        min_area_fraction: fraction of a box's area that a crop must contain to keep the box.
        random: whether pieces are anywhere in their image, a function of seed, epoch and index; otherwise
            they are the tiles of it, which may overlap.
        horizontal_flip, vertical_flip: probabilities of mirroring.
        seed: seed of crops and mirroring.
    """

    def __init__(
        self,
        images: BoxedImages,
        crop_size: int | None = None,
        min_area_fraction: float = 0.25,
        random: bool = False,
        horizontal_flip: float = 0.0,
        vertical_flip: float = 0.0,
        seed: int = 0,
    ):
        self.images = images
        self.crop_size = crop_size
        self.min_area_fraction = min_area_fraction
        self.random = random
        self.flips = (horizontal_flip, vertical_flip)
        self.seed = seed
        counts = [1] * len(images)
        if crop_size is not None:
            counts = [int(np.prod(count_tiles(*size, crop_size))) for size in images.sizes]
        self.ends = np.array(list(accumulate(counts)))
        # In shared memory, because workers that outlive an epoch hold a copy of everything else.
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch that draws depend on; see `ReproducibleTraining`."""
        self._epoch[0] = epoch

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = int(np.searchsorted(self.ends, index, side="right"))
        piece = index - int(self.ends[number - 1] if number else 0)
        image, boxes, classes = (
            self.images.read(number),
            self.images.boxes[number],
            self.images.classes[number],
        )
        with seeded(self.seed, int(self._epoch), index):
            if self.crop_size is not None:
                window = self._window(image.size, piece)
                image = image.crop(window)
                boxes, stay = crop_boxes(boxes, window, self.min_area_fraction)
                classes = classes[stay]
            for axis, turn in enumerate(
                (PIL.Image.Transpose.FLIP_LEFT_RIGHT, PIL.Image.Transpose.FLIP_TOP_BOTTOM)
            ):
                if self.flips[axis] and torch.rand(()) < self.flips[axis]:
                    image, boxes = image.transpose(turn), flip_boxes(boxes, image.size[axis], axis)
        return {"image": image, "boxes": boxes, "classes": classes, "image_id": number}

    def _window(self, size: tuple[int, int], piece: int) -> Window:
        side = self.crop_size
        if not self.random:
            return tile(piece, *size, side)
        left, top = (int(torch.randint(max(0, length - side) + 1, ())) for length in size)
        return left, top, left + side, top + side
