"""Images for measurements: synthetic pictures of any size, and photos of trees with boxes."""

import importlib.util
import math
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import PIL.Image
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ..model.image_processing_adaptive_vit import AdaptiveViTImageProcessor
from ..readers.base import import_extra
from .box_sources import read_voc


# Side of a tile of the TIFF, and height of a band.
TILE = 256
# Pixels between the points that the background is interpolated from.
COARSENESS = 64
# Amplitude of the grain in levels, and its period in columns.
GRAIN, GRAIN_WIDTH = 6, 1024
NUM_DISCS, RADIUS = 8, 50


def picture_bands(side: int, seed: int = 0) -> Iterator[np.ndarray]:
    """Yields a square picture from top to bottom in bands `(256 or less, side, 3)` uint8."""
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
    """Rows, columns and values `(n, 1)` of the pixels of a checkered disc."""
    rows, columns = np.indices((2 * RADIUS, 2 * RADIUS)) - RADIUS
    inside = np.hypot(rows, columns) < RADIUS
    rows, columns = rows[inside], columns[inside]
    checkered = 255 * ((rows // 4 + columns // 4) % 2)
    return rows + RADIUS + top, columns + RADIUS + left, checkered[:, None]


def write_tiff(path: str | os.PathLike, side: int, seed: int = 0) -> None:
    """Writes the picture as a BigTIFF in tiles of 256x256 pixels with lossless compression (deflate)."""
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
    """Converts a TIFF to a baseline JPEG, 4:2:0, with one row of tiles in memory at a time."""
    pyvips = import_extra("pyvips", "pyvips[binary]", "Writing a large JPEG")
    image = pyvips.Image.new_from_file(os.fspath(tiff), access="sequential")
    image.jpegsave(os.fspath(path), Q=quality, subsample_mode="on")


def installed_folder(package: str, version: str) -> Path:
    """Folder of an installed package, which is not imported and may lack its dependencies.

    Raises:
        FileNotFoundError: if it is not installed.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(
            f"The files of the package {package} are not here. Install it without what its code needs, pip "
            f"install --no-deps {package.replace('_', '-')}=={version}, or give files of your own."
        )
    return Path(spec.submodule_search_locations[0])


def deepforest_folder() -> Path:
    """Photos of forests with boxes around trees, from the package deepforest (MIT; Weinstein et al.,
    2020)."""
    return installed_folder("deepforest", "2.1.0") / "data"


def photo_processor(path: str | None = None) -> AdaptiveViTImageProcessor:
    """Processor for whole photos, not resized, normalized as for the checkpoint at `path` or else
    ImageNet."""
    plain = {
        "do_resize": False,
        "return_patches": False,
        "patch_selector": None,
        "num_selected_patches": None,
    }
    if path is not None:
        try:
            return AdaptiveViTImageProcessor.from_pretrained(path, **plain)
        except OSError:
            pass  # models saved on their own have none
    return AdaptiveViTImageProcessor(
        **plain, image_mean=IMAGENET_DEFAULT_MEAN, image_std=IMAGENET_DEFAULT_STD
    )


def annotated_photos(folder: Path) -> list[tuple[Path, np.ndarray]]:
    """Images of `folder` with a Pascal VOC file, and their boxes `(T, 4)`: left, top, right, bottom in
    pixels.

    Raises:
        FileNotFoundError: if there is none, or an image that is named is missing.
        ValueError: for a file that is none; see `read_voc`.
    """
    found = [read_voc(path) for path in sorted(folder.glob("*.xml"))]
    photos = [(annotation.image, annotation.boxes) for annotation in found]
    if not photos:
        raise FileNotFoundError(f"There are no Pascal VOC files (*.xml next to the images) in {folder}.")
    return photos


def windows(width: int, height: int, side: int, smallest: int) -> list[tuple[int, int, int, int]]:
    """Splits an image into windows (left, top, right, bottom) of `side` pixels, without overlap, from the top
    left.

    What remains at the right and at the bottom, or an image below `side`, makes smaller ones, if at least
    `smallest` pixels wide and high.
    """
    cut = [
        (left, top, min(left + side, width), min(top + side, height))
        for top in range(0, height, side)
        for left in range(0, width, side)
    ]
    return [box for box in cut if min(box[2] - box[0], box[3] - box[1]) >= smallest]
