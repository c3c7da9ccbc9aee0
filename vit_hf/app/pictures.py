"""Images as they are dropped on the page, and what is drawn of them.

Shapes: h, w pixels of a picture; R, S rows and columns of the grid of patches.
"""

import os
from pathlib import Path

import numpy as np
import PIL.Image
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg

from ..explanations.drawing import outline, outline_width, panel_axes
from ..explanations.explanation import Explanation, kept_picture
from ..figures import Cell, Sheet
from ..model.image_loading import read_image, to_pixels
from ..overlays import enlarge, pale, spread, upper_limit


# Of an image that is read at all: 150 MB of bytes, and four times as much when it is prepared for the model.
MAX_PIXELS = 50_000_000

# Of what is drawn: inches of the longer side, and pixels an inch.
LONGER_SIDE, DPI = 8.0, 128


def read_picture(path: str | os.PathLike, num_channels: int) -> PIL.Image.Image:
    """An image file of any kind as an upright picture: RGB for three channels, gray for one.

    Raises:
        ValueError: naming the file, if it is missing, damaged, no image, or has more than `MAX_PIXELS`.
    """
    path = Path(path)
    try:
        with PIL.Image.open(path) as image:
            width, height = image.size
    except PIL.Image.DecompressionBombError:
        raise ValueError(_too_large(path.name, "far")) from None
    except Exception:
        width = height = 0  # read_image says it better
    if width * height > MAX_PIXELS:
        raise ValueError(_too_large(path.name, f"{width} x {height} pixels,"))
    try:
        image = read_image(path)
        pixels = to_pixels(image, do_convert_rgb=True)
    except ValueError as error:
        # The page's visitors know the file, not where the server keeps it.
        raise ValueError(str(error).replace(str(path), path.name)) from error
    picture = PIL.Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    return picture.convert("L") if num_channels == 1 else picture


def _too_large(name: str, size: str) -> str:
    return (
        f"{name} has {size} more than the {MAX_PIXELS // 1_000_000} million that this page takes. "
        "Give a part of it, or "
        "use vit_hf.predict_streaming or scripts/predict.py --tile, which read images larger than memory."
    )


def shrink_to(picture: PIL.Image.Image, longest_edge: int) -> PIL.Image.Image:
    """The picture with no side above `longest_edge` pixels; smaller ones stay as they are."""
    picture = picture.copy()
    picture.thumbnail((longest_edge, longest_edge))
    return picture


def draw_kept(explanation: Explanation) -> np.ndarray:
    """`(h, w, 3)` uint8: the image, pale where patches were dropped, and an outline around those that were
    kept."""
    height, width = explanation.picture_size
    scale = LONGER_SIDE / max(height, width)
    cell = Cell(0, 0, max(width * scale, 1 / DPI), max(height * scale, 1 / DPI))
    sheet = Sheet(cell.width, cell.height)
    axes = panel_axes(explanation, sheet, cell, "", kept_picture(explanation))
    axes.set_axis_off()
    if not explanation.kept.all():
        outline(axes, explanation.kept, outline_width(explanation, cell))
    sheet.figure.set_dpi(DPI)
    canvas = FigureCanvasAgg(sheet.figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def draw_map(explanation: Explanation, values: np.ndarray) -> np.ndarray:
    """`(h, w, 3)` uint8: the image in gray, colored by `values` `(R, S)` from dark blue (low) to yellow
    (high).

    What has no value, NaN, stays gray.
    """
    picture = enlarge(explanation.picture)
    low, high = float(np.nanmin(values)), upper_limit(values)
    shares = (
        (np.nan_to_num(values, nan=low) - low) / (high - low) if high > low else np.full(values.shape, 0.5)
    )
    colors = colormaps["viridis"](shares.clip(0, 1), bytes=True)[..., :3]  # (R, S, 3)
    size, span = picture.shape[:2], explanation.patch_span
    cover = np.stack([spread(colors[..., channel], size, span) for channel in range(3)], axis=-1)
    known = spread(np.isfinite(values), size, span)[..., None]
    gray = pale(picture, contrast=1.0)
    return np.where(known, 0.7 * cover + 0.3 * gray, gray).astype(np.uint8)
