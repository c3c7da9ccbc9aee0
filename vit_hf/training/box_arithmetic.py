"""Boxes when images are cut and mirrored.

Boxes are `(T, 4)` float: left, top, right, bottom in pixels, right and bottom exclusive. Windows are the same of whole
pixels, and may reach beyond the image.
"""

import math

import numpy as np


Window = tuple[int, int, int, int]


def crop_boxes(boxes: np.ndarray, window: Window, least_share: float) -> tuple[np.ndarray, np.ndarray]:
    """Boxes as they are in a window: cut at its border, and without those of which too little is left.

    Args:
        boxes: `(T, 4)`.
        window: what is cut out.
        least_share: of a box's area that must be inside for it to stay; a box that is all outside never stays.

    Returns:
        Those that stay `(S, 4)`, in pixels of the window, and which they are `(S,)` int64.
    """
    left, top, right, bottom = window
    cut = boxes.clip([left, top, left, top], [right, bottom, right, bottom])
    inside = area(cut)
    stays = (inside > 0) & (inside >= least_share * area(boxes) * (1 - 1e-9))
    return cut[stays] - [left, top, left, top], np.flatnonzero(stays)


def flip_boxes(boxes: np.ndarray, size: int, axis: int) -> np.ndarray:
    """Boxes in an image that was mirrored.

    Args:
        boxes: `(T, 4)`.
        size: of the image along `axis`, in pixels.
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
    """One of the tiles that cover an image, in reading order: evenly spaced, with the overlap that this takes.

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
