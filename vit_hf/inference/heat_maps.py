"""Figure of a heat map next to its image."""

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

# First: it says what to do where matplotlib is missing.
from ..figures import (
    COLOR_BAR_SPACE,
    FAINT_INK,
    INK,
    MARGIN,
    Cell,
    Sheet,
    format_size,
    house_style,
    shorten,
    wrap,
)
from ..overlays import pale


if TYPE_CHECKING:
    from .tiles import TiledPrediction


# Pixels of the longer side of what is drawn, and inches of it on the sheet.
PICTURE_SIZE = 1024
SIDE = 5.0
GAP, TITLE = 0.35, 0.32


def draw_heat_map(
    prediction: "TiledPrediction", picture: np.ndarray | None, heat_map: np.ndarray, label: str, name: str
) -> Figure:
    """
    Args:
        picture: `(h, w, 3)` uint8, a thumbnail of the image; None draws the heat map alone.
        heat_map: `(R, S)`.
        label: label of the heat map.
        name: name of the image.
    """
    is_regression = prediction.problem_type == "regression"
    height, width = prediction.grid.image_size
    scale = SIDE / max(height, width)
    # Not too narrow for a title, whatever the image.
    cell_width, cell_height = max(width * scale, 0.4), max(height * scale, 0.4)
    column = max(cell_width, 2.6)
    is_stacked = cell_width > 1.6 * cell_height
    second = (
        (MARGIN, MARGIN + 2 * TITLE + cell_height) if is_stacked else (MARGIN + column + GAP, MARGIN + TITLE)
    )
    picture_cell = Cell(MARGIN, MARGIN + TITLE, cell_width, cell_height)
    if picture is None:
        second = picture_cell.x, picture_cell.y
    map_cell = Cell(*second, cell_width, cell_height)
    sheet_width = map_cell.x + column + COLOR_BAR_SPACE + MARGIN
    low, high = float(heat_map.min()), float(heat_map.max())
    limits = (low, max(high, low + 1e-6)) if is_regression else (0.0, max(high, 1e-6))
    what = label if is_regression else f"Probability of {label}"
    text = f"{_caption(prediction, name)} {_scale(what, limits, is_regression)}"
    caption = wrap(text, sheet_width - 2 * MARGIN, size=8)
    caption_top = map_cell.y + cell_height + 0.1
    with house_style():
        sheet = Sheet(sheet_width, caption_top + 0.15 * len(caption) + MARGIN)
        if picture is None:
            background, title = np.full((1, 1, 3), 255, np.uint8), f"{name}: {what}"
        else:
            _panel(sheet, picture_cell, picture, shorten(name, column, size=10.5), (height, width))
            background, title = pale(picture), what
        axes = _panel(sheet, map_cell, background, shorten(title, column, size=10.5), (height, width))
        image = axes.imshow(
            heat_map,
            cmap="plasma",
            norm=Normalize(*limits),
            alpha=None if picture is None else 0.7,
            extent=(0, width, height, 0),
            aspect="auto",
            interpolation="nearest",
        )
        sheet.color_bar(image, map_cell)
        sheet.write("\n".join(caption), MARGIN, caption_top, size=8, color=FAINT_INK)
    return sheet.figure


def _panel(sheet: Sheet, cell: Cell, background: np.ndarray, title: str, size: tuple[int, int]) -> Axes:
    """Axes in pixels of the image, of height and width `size`."""
    height, width = size
    axes = sheet.axes(cell)
    axes.imshow(background, extent=(0, width, height, 0), aspect="auto", interpolation="auto")
    axes.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
    axes.set_title(title, color=INK)
    return axes


def _caption(prediction: "TiledPrediction", name: str) -> str:
    height, width = prediction.grid.image_size
    tile_height, tile_width = prediction.grid.tile_size
    number = len(prediction.grid)
    return (
        f"{name}: {format_size(width, height)} pixels in {number} tile{'s' * (number > 1)} of "
        f"{format_size(tile_width, tile_height)}. Predictions are blended where tiles overlap; the map shows "
        "nothing finer than a tile."
    )


def _scale(what: str, limits: tuple[float, float], is_regression: bool) -> str:
    low, high = limits
    if is_regression:
        return f"Colors: {what} from {low:.4g} to {high:.4g}, the least and the most in this image."
    return f"Colors: probability from 0 to {high:.4g}, the most in this image."
