"""TIFF files in tiles or strips, read by tifffile a tile at a time."""

import re
import struct
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Jpeg2KImagePlugin, PngImagePlugin, WebPImagePlugin

from ..model.image_loading import UnsupportedImageError, samples_to_bytes, unknown_bands, warn_of_extra_bands
from .base import TiledSource, TileLayout, import_extra
from .colors import from_mode, premultiplied_to_rgb, to_rgb


# Photometric interpretations (TIFF 6.0, section 8 and following).
MIN_IS_WHITE, MIN_IS_BLACK, RGB, PALETTE, SEPARATED, YCBCR, CIELAB = 0, 1, 2, 3, 5, 6, 8
CHANNELS = {MIN_IS_WHITE: 1, MIN_IS_BLACK: 1, RGB: 3, PALETTE: 1, SEPARATED: 4, YCBCR: 3, CIELAB: 3}
# JPEG decoders already return RGB.
JPEG_COMPRESSIONS = {6, 7, 33007, 34892}
# Aperio's JPEG 2000 in YCbCr, regardless of the page's tags.
JPEG2000_YCBCR = 33003
# Values of ExtraSamples.
PREMULTIPLIED, ALPHA = 1, 2


def tiff_to_rgb(page: Any, values: np.ndarray) -> np.ndarray:
    """Converts decoded samples `(H, W, C)` of a tifffile page to uint8 RGB `(H, W, 3)`.

    Raises:
        ValueError: if the page's colors are of another kind, or values beyond their range.
    """
    photometric = int(page.photometric)
    if photometric not in CHANNELS:
        raise ValueError(
            f"its colors are {getattr(page.photometric, 'name', photometric)}: save it as gray, RGB, "
            "palette, CMYK or YCbCr"
        )
    channels, samples = CHANNELS[photometric], values.shape[2]
    extra = tuple(page.extrasamples or ())
    if photometric == RGB and samples == 4 and not extra:
        extra = (ALPHA,)  # as Pillow and libtiff take it
    if samples < channels:
        raise ValueError(f"it has {samples} samples per pixel, and its colors need {channels}")
    alpha = next((place for place, kind in enumerate(extra) if kind in (PREMULTIPLIED, ALPHA)), None)
    has_alpha = alpha is not None and samples > channels + alpha
    gray = photometric in (MIN_IS_WHITE, MIN_IS_BLACK)
    if samples > channels and (not extra or (gray and samples != 1 + has_alpha)):
        raise unknown_bands(samples, str(values.dtype), photometric)
    if photometric == CIELAB and values.dtype != np.uint8:
        raise ValueError(f"it has CIELAB colors of {values.dtype}: save it as RGB, or with 8 bits")
    if photometric == PALETTE:
        colors = _looked_up(page, values[..., 0])
    else:
        colors = _full_range(values[..., :channels], page.bitspersample)
        if photometric == MIN_IS_WHITE:
            colors = 255 - colors
        elif photometric == CIELAB:
            colors = from_mode(colors, "LAB")
        elif photometric == SEPARATED:
            colors = from_mode(colors, "CMYK")
        elif page.compression == JPEG2000_YCBCR or (
            photometric == YCBCR and page.compression not in JPEG_COMPRESSIONS
        ):
            colors = from_mode(colors, "YCbCr")
    if not has_alpha:
        return to_rgb(colors)
    place = channels + alpha
    opacity = _full_range(values[..., place : place + 1], page.bitspersample)
    with_alpha = np.concatenate([colors, opacity], axis=2)
    return premultiplied_to_rgb(with_alpha) if extra[alpha] == PREMULTIPLIED else to_rgb(with_alpha)


def num_unspecified(page: Any) -> int:
    """Counts the bands of a page that are not colors or alpha, and are not shown."""
    return sum(kind not in (PREMULTIPLIED, ALPHA) for kind in page.extrasamples or ())


def _full_range(values: np.ndarray, bits: int | tuple[int, ...]) -> np.ndarray:
    """Scales to uint8 so that the largest number of `bits` becomes 255."""
    bits = bits if isinstance(bits, int) else max(bits)
    if values.dtype.kind != "u" or bits in (8, 16) or bits > 16:
        return samples_to_bytes(values)
    top = 2**bits - 1
    return ((values.astype(np.uint32) * 255 + top // 2) // top).astype(np.uint8)


def _looked_up(page: Any, indices: np.ndarray) -> np.ndarray:
    """Maps palette indices `(H, W)` to colors `(H, W, 3)`."""
    table = page.colormap
    if table is None or indices.dtype.kind not in "bu":
        raise ValueError("its colors are a palette's, and it has no palette or no indices")
    if indices.size and int(indices.max()) >= table.shape[1]:
        raise ValueError(f"the index {int(indices.max())} is beyond its palette of {table.shape[1]} colors")
    # 16 bits by TIFF 6.0; some writers store 8. As Pillow does: the high byte.
    table = table // 256 if table.max() > 255 else table
    return table.T.astype(np.uint8)[indices.astype(np.intp)]


# Compressions whose data are a complete image, whose declared size may be wrong.
JPEG = 7
IMAGE_READERS = {
    **dict.fromkeys((33003, 33004, 33005, 34712), Jpeg2KImagePlugin.Jpeg2KImageFile),
    34933: PngImagePlugin.PngImageFile,
    50001: WebPImagePlugin.WebPImageFile,
}
# Markers in the range of JPEG's frame headers that start no frame.
NO_FRAME = (0xC4, 0xC8, 0xCC)
# Rows and columns of an uncompressed page that are converted at once.
MAPPED_TILE = (256, 1024)
# Pages searched for smaller copies of the first one.
MAX_PAGES = 64
# Series of pages that tifffile merely finds alike; the others are planes of one image.
UNRELATED_PAGES = ("generic", "uniform")


class TiffSource(TiledSource):
    """The first image of a TIFF, BigTIFF, OME-TIFF or similar file.

    Smaller copies make thumbnails: SubIFDs, pages marked as reduced, or what tifffile knows of a slide
    scanner's format. Gray, RGB, palette, CMYK and YCbCr, with or without alpha; 1 to 16 bits, wider integers
    in 0..255, or floats in 0..1; tiles, strips, or separate planes.
    """

    def _open(self) -> list[tuple[int, int]]:
        self._forget_tiles()
        self._file = None
        tifffile = import_extra("tifffile", "tifffile", f"Reading {self.name}")
        self._file = tifffile.TiffFile(self.path)
        self._pages = self._find_levels()
        first = self._pages[0]
        self.orientation = _orientation(first)
        self._maps = [self._map(page) for page in self._pages]
        self.grids = [
            _grid(page, mapped is not None) for page, mapped in zip(self._pages, self._maps, strict=True)
        ]
        if num_unspecified(first):
            warn_of_extra_bands(self.name, first.samplesperpixel, num_unspecified(first))
        return [(grid.height, grid.width) for grid in self.grids]

    def _close(self) -> None:
        self._forget_tiles()
        self._maps = []
        if self._file is not None:
            self._file.close()
        self._file = None

    def _find_levels(self) -> list[Any]:
        """Returns the image's page, then those of its smaller copies."""
        series = self._file.series[0]
        many = {
            axis: size
            for axis, size in zip(series.axes, series.shape, strict=True)
            if axis not in "YXS" and size > 1
        }
        if many and series.kind not in UNRELATED_PAGES:
            raise UnsupportedImageError(
                f"it is a stack with the axes {series.axes} of {series.shape} ({series.kind}): save the "
                "plane that you mean as an image of its own"
            )
        pages = [level.keyframe for level in series.levels]
        if len(pages) == 1:
            first = self._file.pages.first
            candidates = list(first.pages or ()) + list(self._file.pages[1:MAX_PAGES])
            pages = [first, *(page.aspage() for page in candidates if _is_copy(page.aspage(), first))]
        return sorted(pages, key=lambda page: -page.imagewidth)

    def _map(self, page: Any) -> np.ndarray | None:
        """Maps `(planes, H, W, C)` from the file if the page is one uncompressed block."""
        if not page.is_memmappable:
            return None
        planes, depth, height, width, samples = page.shaped
        if depth != 1:
            raise ValueError(f"it is a volume of depth {depth}")
        dtype = np.dtype(page.parent.byteorder + page._dtype.char)
        return np.memmap(self.path, dtype, "r", page.dataoffsets[0], (planes, height, width, samples))

    def _tile(self, level: int, row: int, column: int) -> np.ndarray:
        page, grid = self._pages[level], self.grids[level]
        if self._maps[level] is not None:
            top, left = row * grid.tile_height, column * grid.tile_width
            height, width = grid.inside(row, column)
            planes = self._maps[level][:, top : top + height, left : left + width]  # (planes, h, w, C)
        else:
            down, across = -(-grid.height // grid.tile_height), -(-grid.width // grid.tile_width)
            place, count = row * across + column, down * across
            # The last strip has no more rows than the image.
            rows = grid.tile_height if page.is_tiled else grid.inside(row, column)[0]
            shape = (rows, grid.tile_width, page.samplesperpixel // _planes(page))
            planes = np.stack(
                [self._segment(page, plane * count + place, shape) for plane in range(_planes(page))]
            )
        # One of planes and C is 1.
        values = np.moveaxis(planes, 0, 2).reshape(*planes.shape[1:3], -1)  # (h, w, C)
        return tiff_to_rgb(page, values)

    def _segment(self, page: Any, index: int, shape: tuple[int, int, int]) -> np.ndarray:
        """Decodes one tile or strip, of one plane if planes are separate, `(h, w, C)`."""
        if index >= len(page.dataoffsets):
            raise ValueError(f"the file lists only {len(page.dataoffsets)} tiles")
        offset, size = page.dataoffsets[index], page.databytecounts[index]
        if offset == 0 and size == 0:
            # Never written: a sparse file (GDAL's SPARSE_OK).
            return np.full(shape, _nodata(page), page.dtype)
        if offset == 0 or size == 0:
            raise ValueError(f"the file has no data for it (offset {offset}, {size} bytes)")
        handle = self._file.filehandle
        if offset + size > handle.size:
            raise ValueError(
                f"its {size} bytes at offset {offset} reach beyond the file, which has {handle.size}"
            )
        handle.seek(offset)
        content = handle.read(size)
        options = {}
        if page.compression in JPEG_COMPRESSIONS:
            options = {"jpegtables": page.jpegtables, "jpegheader": page.jpegheader}
        if page.compression in {*JPEG_COMPRESSIONS, *IMAGE_READERS} and page.jpegheader is None:
            _check_content(page, content)
        try:
            values, _, _ = page.decode(content, index, **options)
        except Exception as error:
            if "imagecodecs" in str(error) and "requires" in str(error):
                import_extra("imagecodecs", "imagecodecs", f"Reading {self.name} ({page.compression.name})")
            raise
        # tifffile's depth is 1.
        return values.reshape(values.shape[-3:])


def _orientation(page: Any) -> int:
    """Reads the orientation from its tag or XMP, as Pillow does; 1 without a valid one."""
    value = page.tags.valueof(274, default=None)
    if value is None:
        xmp = page.tags.valueof(700, default=b"")
        found = re.search(rb'tiff:Orientation(="|>)([0-9])', xmp) if isinstance(xmp, bytes) else None
        value = int(found[2]) if found else 1
    return int(value) if isinstance(value, int) and 1 <= value <= 8 else 1


def _nodata(page: Any) -> float:
    """Value of tiles that were never written: GDAL_NODATA, or 0."""
    text = str(page.tags.valueof(42113, default="0")).strip("\0 ")
    try:
        value = float(text)
    except ValueError:
        return 0
    if page.dtype.kind == "f":
        return value
    limits = (0, 1) if page.dtype.kind == "b" else (np.iinfo(page.dtype).min, np.iinfo(page.dtype).max)
    return int(value) if limits[0] <= value <= limits[1] else 0


def _planes(page: Any) -> int:
    return page.samplesperpixel if page.planarconfig == 2 else 1


def _grid(page: Any, is_mapped: bool) -> TileLayout:
    height, width = page.imagelength, page.imagewidth
    if page.imagedepth != 1 or page.tiledepth > 1:
        raise ValueError(f"it is a volume of depth {page.imagedepth}")
    if page.dtype is None:
        raise ValueError(
            f"its samples are of an unknown kind ({page.sampleformat}, {page.bitspersample} bits)"
        )
    if is_mapped:
        tile = (min(MAPPED_TILE[0], height), min(MAPPED_TILE[1], width))
    elif page.is_tiled:
        tile = (page.tilelength, page.tilewidth)
    else:
        tile = (min(page.rowsperstrip, height), width)
    grid = TileLayout(height, width, *tile)
    grid.check(page.samplesperpixel * page.dtype.itemsize)
    tiff_to_rgb(page, np.zeros((1, 1, page.samplesperpixel), page.dtype))
    if not is_mapped and height > 0 and width > 0:
        expected = -(-height // tile[0]) * -(-width // tile[1]) * _planes(page)
        for what, listed in (("offsets", page.dataoffsets), ("byte counts", page.databytecounts)):
            if len(listed) < expected:
                raise ValueError(
                    f"its size needs {expected} tiles or strips, and it lists {len(listed)} {what}"
                )
    return grid


def _is_copy(page: Any, first: Any) -> bool:
    """Checks if a page shows the first one at a smaller size."""
    smaller = page.imagewidth < first.imagewidth and page.imagelength < first.imagelength
    # Within a pixel of the same aspect: not a slide's label.
    skew = abs(page.imagewidth * first.imagelength - page.imagelength * first.imagewidth)
    same_aspect = skew <= max(first.imagewidth, first.imagelength)
    return page.is_reduced and not page.is_mask and smaller and same_aspect


def _check_content(page: Any, content: bytes) -> None:
    """Checks embedded images: decoders fill a truncated JPEG with gray, and allocate the size an image
    declares."""
    # Some writers pad; 0xFFD9 ends an image.
    if page.compression == JPEG and not content.rstrip(b"\0\xff").endswith(b"\xd9"):
        raise ValueError("its JPEG data are truncated")
    if page.compression in JPEG_COMPRESSIONS:
        height, width = _jpeg_size(content)
    else:
        # The classes themselves know no limit of pixels that would interfere.
        with IMAGE_READERS[page.compression](BytesIO(content)) as image:
            width, height = image.size
    most = (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, page.imagewidth)
    if height > most[0] or width > most[1]:
        raise ValueError(f"its data are an image of {height}x{width} where a tile has {most[0]}x{most[1]}")


def _jpeg_size(content: bytes) -> tuple[int, int]:
    """Height and width as a JPEG declares them (ITU-T T.81, B.2.2)."""
    place = 2
    while place + 9 <= len(content) and content[place] == 0xFF:
        marker = content[place + 1]
        if 0xC0 <= marker <= 0xCF and marker not in NO_FRAME:
            return struct.unpack_from(">HH", content, place + 5)
        # 0xFF may be repeated before a marker.
        place += 1 if marker == 0xFF else 2 + struct.unpack_from(">H", content, place + 2)[0]
    raise ValueError("its JPEG data have no header")
