"""GeoTIFF files."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tifffile

from vit_hf.readers.georeference import GEO_KEYS, RASTER_TYPE, tags_of


SHORT = 3
# Version, revisions and number of keys; projected, pixels are areas, UTM zone 33 north on WGS 84.
KEYS = (1, 1, 0, 3, 1024, 0, 1, 1, 1025, 0, 1, 1, 3072, 0, 1, 32633)


def write_geotiff(
    path: Path,
    pixels: np.ndarray,
    transform: tuple[float, ...],
    is_point: bool = False,
    orientation: int = 1,
    keys: Sequence[int] = KEYS,
) -> Path:
    """An image in UTM zone 33 north; where `is_point`, the transform's places are the centers of pixels."""
    keys = list(keys)
    if is_point:
        keys[keys.index(RASTER_TYPE) + 3] = 2
    tags = [(*tag, True) for tag in tags_of(transform)]
    tags.append((GEO_KEYS, SHORT, len(keys), tuple(keys), True))
    if orientation != 1:
        tags.append((274, SHORT, 1, orientation, True))
    tifffile.imwrite(path, pixels, photometric="rgb", tile=(16, 16), extratags=tags, metadata=None)
    return path
