"""Axes that show an image, in units of patches."""

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
