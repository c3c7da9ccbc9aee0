"""Region-by-region reading of images of any size: the interface, and what file readers share."""

import importlib
import math
import os
import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import PIL.Image

from ..model.image_loading import UnsupportedImageError


class ImageSource(AbstractContextManager, ABC):
    """An image that is read region by region, as uint8 RGB `(height, width, 3)`.

    Attributes:
        name: name in errors: the file, or the type of the object.
        height, width: in pixels at full resolution.
    """

    name: str
    height: int
    width: int

    def read(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        """Reads a region `(height, width, 3)` uint8 at full resolution.

        Raises:
            ValueError: if it reaches beyond the image, or the file is damaged there; names file and place.
        """
        if not (0 <= top < top + height <= self.height and 0 <= left < left + width <= self.width):
            raise ValueError(
                f"The region of {height}x{width} pixels at row {top}, column {left} reaches beyond "
                f"{self.name}, which has {self.height}x{self.width}."
            )
        return self._read(top, left, height, width)

    @abstractmethod
    def _read(self, top: int, left: int, height: int, width: int) -> np.ndarray: ...

    @abstractmethod
    def thumbnail(self, height: int, width: int) -> np.ndarray:
        """Resizes the whole image, `(height, width, 3)` uint8."""

    def close(self) -> None:
        """Releases the file."""

    def __exit__(self, *error: Any) -> None:
        self.close()


def check_thumbnail_size(name: str, height: int, width: int) -> None:
    if height < 1 or width < 1:
        raise ValueError(f"A thumbnail of {name} of {height}x{width} has no pixels: give 1x1 or more.")


# Pillow first averages whole pixels until the image is this many times too large, then interpolates.
REDUCING_GAP = 3


# 92,681 x 92,681 pixels, as in large slides.
MAX_PIXELS = 2**33
# Limit of files that must be decoded whole: 1.5 GiB.
MAX_WHOLE_PIXELS = 2**29
# Pixels of a block that is reduced at once: 12 MiB.
BLOCK_PIXELS = 2**22
# EXIF orientation -> whether the upright image has (rows, columns) reversed; from 5 on, after transposing it.
REVERSED = {
    1: (False, False),
    2: (False, True),
    3: (True, True),
    4: (True, False),
    5: (False, False),
    6: (False, True),
    7: (True, True),
    8: (True, False),
}


def import_extra(module: str, package: str, purpose: str) -> ModuleType:
    """Imports an optional package, or says how to install it."""
    try:
        return importlib.import_module(module)
    # pyvips and openslide raise OSError where their C library is missing.
    except (ImportError, OSError) as error:
        raise ImportError(f"{purpose} needs {package}: pip install vit_hf[large] ({error}).") from error


class FileSource(ImageSource):
    """An image in a file, optionally with smaller copies.

    It may be pickled and used in forked processes, each of which opens the file for itself, and by several
    threads, which take turns.

    Below, "stored" means before EXIF orientation is applied.

    Args:
        path: the file or folder.
        max_pixels: the most pixels it may declare to have; None for no limit.

    Raises:
        ValueError: if it is damaged, no image, or larger than `max_pixels`; names the file.
        ImportError: if the package is missing that reads this format.
    """

    # EXIF orientation of the stored image.
    orientation: int = 1
    # The stored (height, width) of the image, then of its smaller copies.
    levels: list[tuple[int, int]]

    def __init__(self, path: str | os.PathLike, max_pixels: int | None = MAX_PIXELS):
        self.path = os.fspath(path)
        self.name = repr(self.path)
        self.max_pixels = max_pixels
        self._open_here()

    @abstractmethod
    def _open(self) -> list[tuple[int, int]]:
        """Opens the file without decoding it; returns `levels`, and sets `orientation` if it is not 1."""

    @abstractmethod
    def _close(self) -> None:
        """Closes the file, also after `_open` failed midway."""

    @abstractmethod
    def _read_level(self, level: int, top: int, left: int, height: int, width: int) -> np.ndarray:
        """Reads a stored region of one level, `(height, width, 3)` uint8."""

    def _read(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        flip_rows, flip_columns = REVERSED[self.orientation]
        if flip_rows:
            top = self.height - top - height
        if flip_columns:
            left = self.width - left - width
        if self.orientation >= 5:
            top, left, height, width = left, top, width, height
        return self._upright(self._region(0, top, left, height, width))

    def thumbnail(self, height: int, width: int) -> np.ndarray:
        """Resizes the whole image like Pillow's bilinear resize, `(height, width, 3)` uint8.

        Starts from the smallest copy in the file that is at least twice as large, otherwise decodes the image
        once.
        """
        check_thumbnail_size(self.name, height, width)
        if self.orientation >= 5:
            height, width = width, height
        small = [index for index, (h, w) in enumerate(self.levels) if h >= 2 * height and w >= 2 * width]
        return self._upright(self._resized(max(small, default=0), height, width))

    def _resized(self, level: int, height: int, width: int) -> np.ndarray:
        """Equals `image.resize((width, height), BILINEAR, reducing_gap=3)`, without the whole image in
        memory."""
        full_height, full_width = self.levels[level]
        by_rows = int(full_height / height / REDUCING_GAP) or 1
        by_columns = int(full_width / width / REDUCING_GAP) or 1
        reduced = np.empty(
            (math.ceil(full_height / by_rows), math.ceil(full_width / by_columns), 3), np.uint8
        )
        # Whole rows for as long as they fit: formats that decode rows then decode them once.
        columns = max(1, min(BLOCK_PIXELS // by_rows, full_width + by_columns - 1) // by_columns)
        rows = max(1, BLOCK_PIXELS // (columns * by_columns) // by_rows)
        for row in range(0, reduced.shape[0], rows):
            for column in range(0, reduced.shape[1], columns):
                top, left = row * by_rows, column * by_columns
                block = self._region(
                    level,
                    top,
                    left,
                    min(rows * by_rows, full_height - top),
                    min(columns * by_columns, full_width - left),
                )
                block = PIL.Image.fromarray(np.ascontiguousarray(block)).reduce((by_columns, by_rows))
                reduced[row : row + rows, column : column + columns] = block
        image = PIL.Image.fromarray(reduced)
        box = (0, 0, full_width / by_columns, full_height / by_rows)
        return np.asarray(image.resize((width, height), PIL.Image.Resampling.BILINEAR, box=box))

    def _upright(self, pixels: np.ndarray) -> np.ndarray:
        flip_rows, flip_columns = REVERSED[self.orientation]
        if self.orientation >= 5:
            pixels = pixels.swapaxes(0, 1)
        return pixels[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1]

    def _region(self, level: int, top: int, left: int, height: int, width: int) -> np.ndarray:
        """Calls `_read_level` on a file open in this process, with errors that locate the damage."""
        if self._process is None:
            raise ValueError(f"{self.name} was closed: open it again to read from it.")
        if self._process != os.getpid():
            self._open_here()
        with self._lock:
            try:
                return self._read_level(level, top, left, height, width)
            except ImportError:
                raise
            # Decoders raise arbitrary errors on damaged files.
            except Exception as error:
                of = f" of its copy of {self.levels[level][0]}x{self.levels[level][1]}" if level else ""
                raise ValueError(
                    f"Cannot read {self.name} in the region of {height}x{width} pixels at row {top}, column "
                    f"{left}{of}: {_one_line(error)}. Replace the file, or leave it out."
                ) from error

    def _open_here(self) -> None:
        self._lock = threading.RLock()
        self._process = os.getpid()
        try:
            self.levels = self._open()
            self._check_size()
        except (ImportError, _TooLargeError):
            self.close()
            raise
        except UnsupportedImageError as error:
            self.close()
            raise ValueError(f"Cannot open the image {self.name}: {error}.") from error
        except Exception as error:
            self.close()
            raise ValueError(
                f"Cannot open the image {self.name}: {_one_line(error)}. It must be an undamaged image file: "
                "replace it, or leave it out."
            ) from error
        height, width = self.levels[0]
        self.height, self.width = (width, height) if self.orientation >= 5 else (height, width)

    def _check_size(self) -> None:
        for height, width in self.levels:
            if height < 1 or width < 1:
                raise ValueError(f"it has no pixels, its size is {height}x{width}")
        height, width = self.levels[0]
        if self.max_pixels is not None and height * width > self.max_pixels:
            raise _TooLargeError(
                f"{self.name} declares {height}x{width} pixels, {height * width} in all, more than "
                f"max_pixels={self.max_pixels}. If the file is to be trusted, give a larger max_pixels (None "
                "for no limit)."
            )

    def _check_whole(self, height: int, width: int, reason: str, remedy: str) -> None:
        """Refuses to decode an image at once that would fill the memory (`max_pixels=None` allows it)."""
        if self.max_pixels is not None and height * width > MAX_WHOLE_PIXELS:
            raise _TooLargeError(
                f"{self.name} must be decoded whole, {reason}, and has {height}x{width} pixels, more than "
                f"{MAX_WHOLE_PIXELS}: {remedy}, or give max_pixels=None and have the memory."
            )

    def close(self) -> None:
        """Closes the file; reading from it afterwards is an error."""
        self._close()
        self._process = None

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "max_pixels": self.max_pixels, "closed": self._process is None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if state["closed"]:
            raise ValueError(f"{state['path']!r} was closed before it was pickled: pickle it open.")
        self.__init__(state["path"], state["max_pixels"])


class _TooLargeError(ValueError):
    """A complete error, which is not wrapped in another."""


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()).rstrip(".")
    return f"{text[:300]}..." if len(text) > 300 else text or type(error).__name__


# Decoded tiles that are cached for neighboring regions; 16 MiB.
CACHE_BYTES = 2**24
# A tile that takes more than this to decode is refused; 1 GiB.
MAX_TILE_BYTES = 2**30


@dataclass(frozen=True)
class TileLayout:
    """Sizes of an image and its tiles in pixels; the image's edge may cut off the last tiles."""

    height: int
    width: int
    tile_height: int
    tile_width: int

    def check(self, bytes_per_pixel: int) -> None:
        if self.tile_height < 1 or self.tile_width < 1:
            raise ValueError(f"its tiles have no pixels, their size is {self.tile_height}x{self.tile_width}")
        size = self.tile_height * self.tile_width * bytes_per_pixel
        if size > MAX_TILE_BYTES:
            raise ValueError(
                f"its tiles or strips of {self.tile_height}x{self.tile_width} pixels take {size} bytes each, "
                f"more than {MAX_TILE_BYTES}: save it with smaller tiles"
            )

    def inside(self, row: int, column: int) -> tuple[int, int]:
        """Height and width of the part of a tile that lies in the image."""
        return (
            min(self.tile_height, self.height - row * self.tile_height),
            min(self.tile_width, self.width - column * self.tile_width),
        )


class TiledSource(FileSource):
    """An image whose file is divided into tiles or strips.

    Decoded tiles are kept, up to 16 MiB of them. Tiles much larger than a region (strips that cross the whole
    image) are kept until the next region, however many bytes they are, so that its neighbors need not decode
    them again.
    """

    # One for each of `levels`.
    grids: list[TileLayout]

    @abstractmethod
    def _tile(self, level: int, row: int, column: int) -> np.ndarray:
        """Decodes one tile, `(h, w, 3)` uint8, the part in the image or more."""

    def _read_level(self, level: int, top: int, left: int, height: int, width: int) -> np.ndarray:
        grid = self.grids[level]
        rows = range(top // grid.tile_height, -(-(top + height) // grid.tile_height))
        columns = range(left // grid.tile_width, -(-(left + width) // grid.tile_width))
        touched = len(rows) * len(columns) * grid.tile_height * grid.tile_width * 3
        keep = max(CACHE_BYTES, touched) if touched > 2 * height * width * 3 else CACHE_BYTES
        region = np.empty((height, width, 3), np.uint8)
        for row in rows:
            for column in columns:
                tile_top, tile_left = row * grid.tile_height, column * grid.tile_width
                start, stop = max(top, tile_top), min(top + height, tile_top + grid.tile_height)
                first, last = max(left, tile_left), min(left + width, tile_left + grid.tile_width)
                tile = self._kept_tile(level, row, column, keep)
                region[start - top : stop - top, first - left : last - left] = tile[
                    start - tile_top : stop - tile_top, first - tile_left : last - tile_left
                ]
        return region

    def _kept_tile(self, level: int, row: int, column: int, keep: int) -> np.ndarray:
        key = (level, row, column)
        if key in self._tiles:
            self._tiles.move_to_end(key)
            return self._tiles[key]
        height, width = self.grids[level].inside(row, column)
        try:
            tile = self._tile(level, row, column)
            if tile.shape[0] < height or tile.shape[1] < width:
                raise ValueError(f"it has {tile.shape[0]}x{tile.shape[1]} pixels of {height}x{width}")
        except ImportError:
            raise
        except Exception as error:
            raise ValueError(
                f"the tile in row {row}, column {column} of tiles is damaged: {error}"
            ) from error
        # A copy, so that what is cut off is not kept.
        tile = np.ascontiguousarray(tile[:height, :width])
        while self._tiles and self._kept_bytes + tile.nbytes > keep:
            self._kept_bytes -= self._tiles.popitem(last=False)[1].nbytes
        self._tiles[key] = tile
        self._kept_bytes += tile.nbytes
        return tile

    def _forget_tiles(self) -> None:
        """Empties the cache; `_open` and `_close` call it."""
        self._tiles: OrderedDict[tuple[int, int, int], np.ndarray] = OrderedDict()
        self._kept_bytes = 0
