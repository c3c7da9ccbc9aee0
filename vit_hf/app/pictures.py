"""Reading of images dropped on the page, and drawing of their kept patches and maps.

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


# Most pixels of an image: 150 MB as bytes, and four times as much when preprocessed.
MAX_PIXELS = 50_000_000

# Longer side of a drawing in inches, and pixels an inch.
LONGER_SIDE, DPI = 8.0, 128


def read_picture(path: str | os.PathLike, num_channels: int) -> PIL.Image.Image:
    """Reads an image file as an upright picture: RGB for three channels, gray for one.

    Raises:
        ValueError: if the file is missing, damaged, not an image, or has more than `MAX_PIXELS`.
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
        # Visitors know the file's name, not its path on the server.
        raise ValueError(str(error).replace(str(path), path.name)) from error
    picture = PIL.Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    return picture.convert("L") if num_channels == 1 else picture


def _too_large(name: str, size: str) -> str:
    return (
        f"{name} has {size} more than the {MAX_PIXELS // 1_000_000} million that this page takes. Crop it, "
        "or use vit_hf.predict_streaming or vit-hf predict --tile, which read images larger than memory."
    )


def shrink_to(picture: PIL.Image.Image, longest_edge: int) -> PIL.Image.Image:
    """Shrinks a picture to no side above `longest_edge` pixels; smaller ones stay unchanged."""
    picture = picture.copy()
    picture.thumbnail((longest_edge, longest_edge))
    return picture


def draw_kept(explanation: Explanation) -> np.ndarray:
    """Draws the image `(h, w, 3)` uint8, pale where patches were dropped, with kept ones outlined."""
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
    """Draws the gray image `(h, w, 3)` uint8, colored by `values` `(R, S)`, NaN gray; yellow is high."""
    picture = enlarge(explanation.picture)
    low, high = float(np.nanmin(values)), upper_limit(values)
    fractions = (
        (np.nan_to_num(values, nan=low) - low) / (high - low) if high > low else np.full(values.shape, 0.5)
    )
    colors = colormaps["viridis"](fractions.clip(0, 1), bytes=True)[..., :3]  # (R, S, 3)
    size, span = picture.shape[:2], explanation.patch_span
    cover = np.stack([spread(colors[..., channel], size, span) for channel in range(3)], axis=-1)
    known = spread(np.isfinite(values), size, span)[..., None]
    gray = pale(picture, contrast=1.0)
    return np.where(known, 0.7 * cover + 0.3 * gray, gray).astype(np.uint8)
