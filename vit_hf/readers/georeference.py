"""Where an image lies on the map: the affine transform and coordinate reference system of its file.

Read from the tags of GeoTIFF (OGC 19-008r4) by tifffile, or from a world file beside any image.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .base import REVERSED, FileSource, ImageSource, import_extra
from .tiff import TiffSource


# a, b, c, d, e, f of x = a * column + b * row + c and y = d * column + e * row + f; columns and rows count
# from the upper left corner of the image.
Affine = tuple[float, float, float, float, float, float]

MODEL_PIXEL_SCALE, MODEL_TIEPOINT, MODEL_TRANSFORMATION = 33550, 33922, 34264
GEO_KEYS, GEO_DOUBLES, GEO_TEXTS = 34735, 34736, 34737
# Keys of the directory: how pixels lie, and the EPSG codes of the two kinds of reference systems.
RASTER_TYPE, GEOGRAPHIC, PROJECTED = 1025, 2048, 3072
PIXEL_IS_POINT, USER_DEFINED = 2, 32767
TIFF_DOUBLE = 12


@dataclass(frozen=True)
class Georeference:
    """The place of an image on the map.

    Attributes:
        transform: from columns and rows to map coordinates; see `Affine`.
        crs: such as "EPSG:32633"; None if the file does not say it by a code.
        tags: `(code, type, count, value)` of the TIFF tags that say so in a file.
    """

    transform: Affine
    crs: str | None = None
    tags: tuple[tuple[int, int, int, Any], ...] = ()

    def to_map(self, points: np.ndarray) -> np.ndarray:
        """`(N, 2)` float64 x and y on the map of `(N, 2)` columns and rows."""
        a, b, c, d, e, f = self.transform
        points = np.asarray(points, np.float64)
        return points @ np.array([[a, d], [b, e]]) + np.array([c, f])


def read_georeference(source: ImageSource) -> Georeference | None:
    """The place of an image on the map; None where neither its file nor a world file says it.

    Raises:
        ValueError: for a world file that is none, or a transform that maps the image to a line or a point.
    """
    if not isinstance(source, FileSource):
        return None
    found = _of_tiff(source.path) if isinstance(source, TiffSource) else None
    found = found or _of_world_file(source.path)
    if found is None:
        return None
    a, b, _, d, e, _ = found.transform
    if not np.isfinite(found.transform).all() or a * e - b * d == 0:
        raise ValueError(
            f"The affine transform {found.transform} of {source.name} maps the image to a line or a point: "
            "mend its georeference, or remove it."
        )
    return found if source.orientation == 1 else _turned(found, source)


def tags_of(transform: Affine) -> tuple[tuple[int, int, int, Any], ...]:
    """TIFF tags that say where pixels, which are areas, lie on the map."""
    a, b, c, d, e, f = transform
    if b == d == 0 and a > 0 > e:
        scale, tie = (a, -e, 0.0), (0.0, 0.0, 0.0, c, f, 0.0)
        return (
            (MODEL_PIXEL_SCALE, TIFF_DOUBLE, 3, scale),
            (MODEL_TIEPOINT, TIFF_DOUBLE, 6, tie),
        )
    matrix = (a, b, 0.0, c, d, e, 0.0, f, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0)
    return ((MODEL_TRANSFORMATION, TIFF_DOUBLE, 16, matrix),)


def _of_tiff(path: str) -> Georeference | None:
    tifffile = import_extra("tifffile", "tifffile", f"Reading the georeference of {path!r}")
    with tifffile.TiffFile(path) as file:
        tags = file.pages.first.tags
        values = {tag.code: tag.value for tag in tags}
        kept = [(tag.code, int(tag.dtype), tag.count, tag.value) for tag in tags if tag.code in _KEPT]
    keys = _geo_keys(values.get(GEO_KEYS, ()))
    if MODEL_TRANSFORMATION in values:
        matrix = values[MODEL_TRANSFORMATION]
        transform = (matrix[0], matrix[1], matrix[3], matrix[4], matrix[5], matrix[7])
    elif MODEL_PIXEL_SCALE in values and MODEL_TIEPOINT in values:
        (wide, high), tie = values[MODEL_PIXEL_SCALE][:2], values[MODEL_TIEPOINT]
        transform = (wide, 0.0, tie[3] - tie[0] * wide, 0.0, -high, tie[4] + tie[1] * high)
    else:
        return None
    if keys.get(RASTER_TYPE) == PIXEL_IS_POINT:
        transform = _shifted(transform, -0.5)
    code = keys.get(PROJECTED) or keys.get(GEOGRAPHIC)
    crs = f"EPSG:{code}" if code and code != USER_DEFINED else None
    return Georeference(tuple(map(float, transform)), crs, tuple(kept))


_KEPT = (MODEL_PIXEL_SCALE, MODEL_TIEPOINT, MODEL_TRANSFORMATION, GEO_KEYS, GEO_DOUBLES, GEO_TEXTS)


def _geo_keys(directory: Sequence[int]) -> dict[int, int]:
    """The keys whose values are short numbers in the directory itself."""
    entries = [directory[start : start + 4] for start in range(4, len(directory) - 3, 4)]
    return {key: value for key, location, _, value in entries if location == 0}


def _shifted(transform: Sequence[float], pixels: float) -> Affine:
    """The transform of pixels whose places are counted from elsewhere, as many pixels right and down."""
    a, b, c, d, e, f = transform
    return (a, b, c + pixels * (a + b), d, e, f + pixels * (d + e))


def _of_world_file(path: str) -> Georeference | None:
    """Reads six lines a, d, b, e, c, f; c and f are the place of the center of the first pixel."""
    stem, suffix = os.path.splitext(path)
    suffixes = [".wld", f"{suffix}w"]
    if len(suffix) >= 4:
        suffixes.append(f"{suffix[:2]}{suffix[-1]}w")  # .tfw, .jgw, .pgw
    name = next((stem + end for end in suffixes if os.path.isfile(stem + end)), None)
    if name is None:
        return None
    try:
        with open(name, encoding="ascii") as file:
            a, d, b, e, c, f = map(float, file.read().split())
    except ValueError as error:
        raise ValueError(
            f"Cannot read {name!r}: it must have six numbers, as a world file has. Mend or remove it."
        ) from error
    transform = _shifted((a, b, c, d, e, f), -0.5)
    return Georeference(transform, None, tags_of(transform))


def _turned(found: Georeference, source: FileSource) -> Georeference:
    """The georeference of an image that is shown turned, as its EXIF orientation says."""
    flip_rows, flip_columns = REVERSED[source.orientation]
    # Stored places are steps and offsets of upright (column, row).
    column, row = np.array([1.0, 0.0, 0.0]), np.array([0.0, 1.0, 0.0])
    if flip_rows:
        row = np.array([0.0, -1.0, source.height])
    if flip_columns:
        column = np.array([-1.0, 0.0, source.width])
    if source.orientation >= 5:
        column, row = row, column
    a, b, c, d, e, f = found.transform
    first, second = a * column + b * row, d * column + e * row
    transform = tuple(map(float, (*first[:2], first[2] + c, *second[:2], second[2] + f)))
    keys = [tag for tag in found.tags if tag[0] in (GEO_KEYS, GEO_DOUBLES, GEO_TEXTS)]
    is_point = any(
        tag[0] == GEO_KEYS and _geo_keys(tag[3]).get(RASTER_TYPE) == PIXEL_IS_POINT for tag in keys
    )
    written = _shifted(transform, 0.5) if is_point else transform
    return Georeference(transform, found.crs, (*tags_of(written), *keys))
