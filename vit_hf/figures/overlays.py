"""Images with patches marked: shading in NumPy, and axes in units of patches."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np


# First: it says what to do where matplotlib is missing.
from .layout import INK, Cell, Sheet  # isort: skip
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke


if TYPE_CHECKING:
    from ..explanations.explanation import Explanation

# Pictures with fewer pixels are enlarged first, so that the edges of patches fall between pixels.
MIN_PICTURE = 768


def enlarge(picture: np.ndarray) -> np.ndarray:
    """`(h, w, 3)`, each pixel repeated until the longer side has at least `MIN_PICTURE`."""
    factor = -(-MIN_PICTURE // max(picture.shape[:2]))
    return picture.repeat(factor, axis=0).repeat(factor, axis=1)


def pale(picture: np.ndarray, contrast: float = 0.35, level: float = 165.0) -> np.ndarray:
    """Grey, with little contrast, neither black nor white: both are common in images, and neither will
    hide it."""
    grey = picture.astype(np.float32) @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    faint = contrast * grey + (1 - contrast) * level
    return np.repeat(faint[..., None], 3, axis=-1).astype(np.uint8)


def upper_limit(values: np.ndarray) -> float:
    """Of the colours for `values`: a few outliers, which attention is known for, would leave the rest
    dark."""
    numbers = values[np.isfinite(values)]
    high = float(np.quantile(numbers, 0.99))
    return high if high > numbers.min() else float(numbers.max())


def spread(
    values: np.ndarray, size: tuple[int, int], patch_span: tuple[float, float], beyond: int = 0
) -> np.ndarray:
    """`values` `(R, S)` of the patch that each pixel of a picture of `size` (h, w) lies in.

    Pixels beyond whole patches get `beyond`.
    """
    row, column = (
        ((np.arange(length) + 0.5) / length * span).astype(int)
        for length, span in zip(size, patch_span, strict=True)
    )
    padded = np.pad(values, ((0, 1), (0, 1)), constant_values=beyond)
    return padded[np.minimum(row, values.shape[0])][:, np.minimum(column, values.shape[1])]


def dim_dropped(picture: np.ndarray, kept: np.ndarray, patch_span: tuple[float, float]) -> np.ndarray:
    """`picture` `(h, w, 3)`, in pale grey where `kept` `(R, S)` is False."""
    return np.where(spread(kept, picture.shape[:2], patch_span)[..., None], picture, pale(picture))


def merged(groups: np.ndarray) -> np.ndarray:
    """`(R, S)` bool, True where `groups` `(R, S)` holds a number of 0 or more that it holds elsewhere,
    too."""
    members = np.bincount(groups[groups >= 0], minlength=1)
    return np.append(members > 1, False)[groups]  # -1 finds the appended one


def colour_groups(picture: np.ndarray, groups: np.ndarray, patch_span: tuple[float, float]) -> np.ndarray:
    """`picture` `(h, w, 3)` in which patches of one group have the mean colour of all of them.

    A patch that is a group of its own keeps its pixels, and those of no group are pale.

    Args:
        groups: `(R, S)` int64, -1 for no group.
    """
    shown = dim_dropped(picture, groups >= 0, patch_span)
    inside = spread(merged(groups), picture.shape[:2], patch_span)
    group = spread(groups, picture.shape[:2], patch_span, beyond=-1)[inside]
    pixels = np.bincount(group, minlength=1)
    means = [
        np.bincount(group, weights=picture[..., channel][inside], minlength=1) / np.maximum(pixels, 1)
        for channel in range(3)
    ]
    shown[inside] = np.stack(means, axis=-1).round().astype(np.uint8)[group]
    return shown


# Neither is common in images.
OUTLINE, OBJECT = "#00d9ff", "#ff4fd8"


def panel_axes(
    explanation: "Explanation", sheet: Sheet, cell: Cell, title: str, background: np.ndarray
) -> Axes:
    """Axes in units of patches with a `background` that covers the whole picture."""
    rows, columns = explanation.patch_span
    axes = sheet.axes(cell)
    axes.imshow(background, extent=(0, columns, rows, 0), aspect="auto", interpolation="auto")
    axes.set(xlim=(0, columns), ylim=(rows, 0), xticks=[], yticks=[])
    axes.set_title(title, color=INK)
    return axes


def outline_width(explanation: "Explanation", cell: Cell) -> float:
    """Points, for lines around patches that are drawn in `cell`."""
    rows, columns = explanation.patch_span
    patch_points = 72 * min(cell.height / rows, cell.width / columns)
    return float(np.clip(0.12 * patch_points, 0.4, 1.5))


def outline(axes: Axes, values: np.ndarray, width: float, colour: str = OUTLINE, beyond: int = 0) -> None:
    """Draws the borders between cells of `values` `(R, S)` that differ; around all of them is `beyond`."""
    padded = np.pad(values, 1, constant_values=beyond)
    segments = []
    for row, column in np.argwhere(padded[1:, 1:-1] != padded[:-1, 1:-1]):
        segments.append(((column, row), (column + 1, row)))
    for row, column in np.argwhere(padded[1:-1, 1:] != padded[1:-1, :-1]):
        segments.append(((column, row), (column, row + 1)))
    axes.add_collection(LineCollection(segments, colors=colour, linewidths=width, capstyle="projecting"))


def draw_boxes(
    axes: Axes,
    explanation: "Explanation",
    boxes: Sequence[Sequence[float]],
    width: float,
    colour: str = OBJECT,
) -> None:
    """Outlines `boxes` [x0, y0, x1, y1], given in pixels of a picture of `picture_size`."""
    down, across = (
        span / size for span, size in zip(explanation.patch_span, explanation.picture_size, strict=True)
    )
    for x0, y0, x1, y1 in boxes:
        corner, size = (x0 * across, y0 * down), ((x1 - x0) * across, (y1 - y0) * down)
        axes.add_patch(
            Rectangle(
                corner,
                *size,
                fill=False,
                edgecolor=colour,
                linewidth=width,
                # Seen on bright pixels as well.
                path_effects=[withStroke(linewidth=width + 0.8, foreground="#00000060")],
            )
        )
