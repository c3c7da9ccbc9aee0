"""An image in tiles, of which a region decodes those that it touches."""

from abc import abstractmethod
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np

from .sources_file import FileSource


# Decoded tiles that are kept for the regions beside; 16 MiB.
CACHE_BYTES = 2**24
# A tile that takes more than this to decode is refused; 1 GiB.
MAX_TILE_BYTES = 2**30


@dataclass(frozen=True)
class TileGrid:
    """The size of an image and of its tiles, in pixels; the last tiles may be cut off by the image's edge."""

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
                f"its tiles or strips of {self.tile_height}x{self.tile_width} pixels take {size} bytes each, more than "
                f"{MAX_TILE_BYTES}: save it with smaller tiles"
            )

    def inside(self, row: int, column: int) -> tuple[int, int]:
        """The height and width of the part of a tile that lies in the image."""
        return (
            min(self.tile_height, self.height - row * self.tile_height),
            min(self.tile_width, self.width - column * self.tile_width),
        )


class TiledSource(FileSource):
    """An image whose file is divided into tiles or strips.

    Decoded tiles are kept, up to 16 MiB of them. Tiles much larger than a region (strips that cross the whole image)
    are kept until the next region, however many bytes they are, so that its neighbours need not decode them again.
    """

    # One for each of `levels`.
    grids: list[TileGrid]

    @abstractmethod
    def _tile(self, level: int, row: int, column: int) -> np.ndarray:
        """One decoded tile, `(h, w, 3)` uint8, the part in the image or more."""

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
        """To be called by `_open` and `_close`."""
        self._tiles: OrderedDict[tuple[int, int, int], np.ndarray] = OrderedDict()
        self._kept_bytes = 0
