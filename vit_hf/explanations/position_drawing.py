"""Drawing of `PositionSimilarity`."""

from typing import TYPE_CHECKING

import numpy as np

# First: its error says how to install matplotlib.
from ..figures import (
    COLOR_BAR_SPACE,
    FAINT_INK,
    INK,
    MARGIN,
    SIDE,
    Cell,
    Figure,
    Sheet,
    format_size,
    house_style,
    shorten,
    wrap,
)


if TYPE_CHECKING:
    from .position_maps import PositionSimilarity


def draw_positions(positions: "PositionSimilarity") -> Figure:
    """Draws a mosaic whose tile at (row, column) shows the similarity of that position to every other."""
    with house_style():
        title = f"Similarity of positions: {positions.encoding}"
        if positions.similarity is None:
            sheet = Sheet(SIDE + 2 * MARGIN, 0.9 + 2 * MARGIN)
            sheet.write(title, MARGIN, MARGIN, size=12, weight="bold")
            text = f"The encoding {positions.encoding!r} does not distinguish positions."
            sheet.write("\n".join(wrap(text, SIDE, size=9)), MARGIN, MARGIN + 0.35, size=9, color=FAINT_INK)
            return sheet.figure
        return _mosaic(positions, title)


def _mosaic(positions: "PositionSimilarity", title: str) -> Figure:
    tiles_down, tiles_across, rows, columns = positions.similarity.shape
    gap = max(1, round(max(rows, columns) / 10))
    mosaic = np.full((tiles_down * (rows + gap) - gap, tiles_across * (columns + gap) - gap), np.nan)
    for i, j in np.ndindex(tiles_down, tiles_across):
        top, left = i * (rows + gap), j * (columns + gap)
        mosaic[top : top + rows, left : left + columns] = positions.similarity[i, j]

    aspect = mosaic.shape[0] / mosaic.shape[1]
    height = SIDE * min(1, aspect)
    cell = Cell(MARGIN + 0.45, MARGIN + 0.75, height / aspect, height)
    sheet_width = max(cell.x + cell.width + COLOR_BAR_SPACE + 0.25 + MARGIN, SIDE)
    sheet = Sheet(sheet_width, cell.y + height + 0.5 + MARGIN)
    sheet.write(title, MARGIN, MARGIN, size=12, weight="bold")
    text = (
        f"Each tile compares one patch with all others; the native grid is "
        f"{format_size(rows, columns)} (rows by columns)."
    )
    sheet.write(
        shorten(text, sheet_width - 2 * MARGIN, size=9), MARGIN, MARGIN + 0.3, size=9, color=FAINT_INK
    )

    axes = sheet.axes(cell)
    lowest = min(float(positions.similarity.min()), 0.999)
    image = axes.imshow(mosaic, cmap="viridis", vmin=lowest, vmax=1, aspect="auto", interpolation="nearest")
    axes.set_xticks(np.arange(tiles_across) * (columns + gap) + (columns - 1) / 2, positions.columns)
    axes.set_yticks(np.arange(tiles_down) * (rows + gap) + (rows - 1) / 2, positions.rows)
    axes.set_xlabel("Column of the patch", color=INK)
    axes.set_ylabel("Row of the patch", color=INK)
    axes.tick_params(labelsize=8, length=0, colors=FAINT_INK)
    for spine in axes.spines.values():
        spine.set_visible(False)
    bar = sheet.color_bar(image, cell)
    bar.set_ylabel(positions.measure, color=INK)
    return sheet.figure
