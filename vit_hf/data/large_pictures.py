"""Pictures of any size for measurements, made and written a band at a time.

A smooth background with fine grain, as photographs have, which no compression makes trivial, and a few sharp discs, so
that there is something to select.
"""

import math
import os
from collections.abc import Iterator

import numpy as np
import PIL.Image

from ..large_images.sources_file import import_extra


# Side of a tile of the TIFF, and height of a band.
TILE = 256
# Pixels between the points that the background is interpolated from.
COARSENESS = 64
# Of the grain: how many levels up and down, and after how many columns it repeats.
GRAIN, GRAIN_WIDTH = 6, 1024
NUM_DISCS, RADIUS = 8, 50


def picture_bands(side: int, seed: int = 0) -> Iterator[np.ndarray]:
    """Bands `(256 or less, side, 3)` uint8 of a square picture, from top to bottom."""
    rng = np.random.default_rng(seed)
    points = math.ceil(side / COARSENESS)
    background = PIL.Image.fromarray(rng.integers(60, 190, (points, points, 3), dtype=np.uint8))
    grain = rng.integers(-GRAIN, GRAIN + 1, (TILE, GRAIN_WIDTH, 3), dtype=np.int16)
    discs = [_disc(*place) for place in rng.integers(0, side - 2 * RADIUS, (NUM_DISCS, 2))]
    for top in range(0, side, TILE):
        bottom = min(top + TILE, side)
        box = (0, top * points / side, points, bottom * points / side)
        smooth = background.resize((side, bottom - top), PIL.Image.Resampling.BILINEAR, box=box)
        columns = (np.arange(side) + rng.integers(GRAIN_WIDTH)) % GRAIN_WIDTH
        band = (np.asarray(smooth) + grain[: bottom - top, columns]).clip(0, 255).astype(np.uint8)
        for rows, columns, values in discs:
            here = (top <= rows) & (rows < bottom)
            band[rows[here] - top, columns[here]] = values[here]
        yield band


def _disc(top: int, left: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows and columns of the pixels of a checkered disc, and `(n, 1)` values."""
    rows, columns = np.indices((2 * RADIUS, 2 * RADIUS)) - RADIUS
    inside = np.hypot(rows, columns) < RADIUS
    rows, columns = rows[inside], columns[inside]
    checkered = 255 * ((rows // 4 + columns // 4) % 2)
    return rows + RADIUS + top, columns + RADIUS + left, checkered[:, None]


def write_tiff(path: str | os.PathLike, side: int, seed: int = 0) -> None:
    """Writes it as a BigTIFF in tiles of 256x256 pixels, compressed without loss (deflate)."""
    tifffile = import_extra("tifffile", "tifffile", "Writing a TIFF")

    def tiles() -> Iterator[np.ndarray]:
        for band in picture_bands(side, seed):
            for left in range(0, side, TILE):
                yield band[:, left : left + TILE]

    tifffile.imwrite(
        path,
        tiles(),
        shape=(side, side, 3),
        dtype=np.uint8,
        tile=(TILE, TILE),
        photometric="rgb",
        compression="deflate",
        bigtiff=True,
        maxworkers=1,
    )


def write_jpeg(path: str | os.PathLike, tiff: str | os.PathLike, quality: int = 90) -> None:
    """Writes what is in a TIFF as a baseline JPEG, 4:2:0, a row of tiles in memory at a time."""
    pyvips = import_extra("pyvips", "pyvips[binary]", "Writing a large JPEG")
    image = pyvips.Image.new_from_file(os.fspath(tiff), access="sequential")
    image.jpegsave(os.fspath(path), Q=quality, subsample_mode="on")
