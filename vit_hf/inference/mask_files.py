"""Files of maps that are written a band of rows at a time: `.npy`, zarr, tiled TIFF.

Rows go to `NAME.partial`, an array in NumPy's format, and the number of them that are complete to
`NAME.partial.json`. At the end the file is made of it, and only then has its name; what was interrupted goes
on with the first row that is missing.
"""

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..readers.base import import_extra
from ..readers.georeference import Georeference


MASK_SUFFIXES = (".npy", ".zarr", ".tif", ".tiff")
# Pixels a side of the tiles and chunks of files.
FILE_TILE = 256
# Classic TIFF has offsets of 32 bits.
BIG_TIFF = 2**31
GDAL_NODATA, TIFF_ASCII = 42113, 2


def check_map_file(name: str, path: str | os.PathLike | None) -> Path | None:
    """
    Raises:
        ValueError: for a format that is not written, or a folder that does not exist.
        ImportError: if the package that writes it is missing.
    """
    if path is None:
        return None
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in MASK_SUFFIXES:
        raise ValueError(f"{name}={str(path)!r} must end in one of {', '.join(MASK_SUFFIXES)}.")
    if not path.parent.is_dir():
        raise ValueError(f"{name}={str(path)!r}: there is no folder {str(path.parent)!r}. Make it first.")
    if suffix != ".npy":
        package = "zarr" if suffix == ".zarr" else "tifffile"
        import_extra(package, package, f"Writing {path}")
    return path


class MapWriter:
    """A map `(H, W)` or `(H, W, C)` that is given from top to bottom.

    Args:
        path: of the file; checked by `check_map_file`.
        shape: H, W and perhaps C.
        dtype: of the values.
        settings: of what they are computed; an interrupted file of other settings is begun anew.
        resume: whether an interrupted file is taken up.

    Attributes:
        rows: how many are complete.
    """

    def __init__(
        self, path: Path, shape: Sequence[int], dtype: np.dtype, settings: dict[str, Any], resume: bool = True
    ):
        self.path, self.shape, self.dtype = path, tuple(shape), np.dtype(dtype)
        self.partial = path.with_name(f"{path.name}.partial")
        self._journal = path.with_name(f"{path.name}.partial.json")
        self._settings = {"shape": list(self.shape), "dtype": self.dtype.str, **settings}
        # As JSON has them.
        self._settings = json.loads(json.dumps(self._settings))
        self.rows = self._rows_done() if resume else 0
        if self.rows == 0:
            self._journal.unlink(missing_ok=True)
            np.lib.format.open_memmap(self.partial, "w+", self.dtype, self.shape)
        with open(self.partial, "rb") as file:
            version = np.lib.format.read_magic(file)
            read = (
                np.lib.format.read_array_header_1_0
                if version == (1, 0)
                else np.lib.format.read_array_header_2_0
            )
            read(file)
            self._start = file.tell()
        self._row_bytes = int(np.prod(self.shape[1:])) * self.dtype.itemsize

    def write(self, rows: np.ndarray) -> None:
        """The next rows `(n, W)` or `(n, W, C)`."""
        # Not by a memory map, whose pages would count as this process's memory.
        with open(self.partial, "r+b") as file:
            file.seek(self._start + self.rows * self._row_bytes)
            file.write(np.ascontiguousarray(rows, self.dtype).tobytes())
        self.rows += len(rows)

    def commit(self) -> None:
        """Notes the rows that are there, so that an interrupted run goes on below them."""
        text = json.dumps({"rows": self.rows, "settings": self._settings})
        temporary = self._journal.with_name(f"{self._journal.name}.new")
        temporary.write_text(text)
        os.replace(temporary, self._journal)

    def finish(
        self,
        colors: np.ndarray | None = None,
        fill: int | None = None,
        georeference: Georeference | None = None,
    ) -> None:
        """Gives the file its name.

        Args:
            colors: `(256, 3)` uint8 of the classes, for TIFF.
            fill: value without a class, noted in TIFF as GDAL's nodata.
            georeference: noted in TIFF.
        """
        suffix = self.path.suffix.lower()
        if suffix == ".npy":
            os.replace(self.partial, self.path)
        else:
            writing = self.path.with_name(f"{self.path.name}.writing")
            _remove(writing)
            if suffix == ".zarr":
                self._to_zarr(writing)
            else:
                self._to_tiff(writing, colors, fill, georeference)
            if self.path.is_dir():
                _remove(self.path)
            os.replace(writing, self.path)
            self.partial.unlink()
        self._journal.unlink(missing_ok=True)

    def abandon(self) -> None:
        """Removes an interrupted file of which no row is complete."""
        if not self._journal.exists():
            self.partial.unlink(missing_ok=True)

    def read_rows(self, first: int, last: int) -> np.ndarray:
        """Rows that were written."""
        count = (last - first) * int(np.prod(self.shape[1:]))
        values = np.fromfile(self.partial, self.dtype, count, offset=self._start + first * self._row_bytes)
        return values.reshape(last - first, *self.shape[1:])

    def _rows_done(self) -> int:
        try:
            journal = json.loads(self._journal.read_text())
        except (OSError, ValueError):
            return 0
        if not self.partial.is_file() or journal.get("settings") != self._settings:
            return 0
        return int(journal["rows"])

    def _bands(self, rows: int) -> Iterator[tuple[int, np.ndarray]]:
        for first in range(0, self.shape[0], rows):
            yield first, self.read_rows(first, min(self.shape[0], first + rows))

    def _to_zarr(self, path: Path) -> None:
        zarr = import_extra("zarr", "zarr", f"Writing {path}")
        chunks = (FILE_TILE, FILE_TILE, *self.shape[2:])
        array = zarr.create_array(
            str(path), shape=self.shape, dtype=self.dtype, chunks=tuple(map(min, chunks, self.shape))
        )
        for first, band in self._bands(FILE_TILE):
            array[first : first + len(band)] = band

    def _to_tiff(
        self, path: Path, colors: np.ndarray | None, fill: int | None, georeference: Georeference | None
    ) -> None:
        tifffile = import_extra("tifffile", "tifffile", f"Writing {path}")
        tags = [] if georeference is None else [(*tag, True) for tag in georeference.tags]
        if fill is not None:
            tags.append((GDAL_NODATA, TIFF_ASCII, 0, str(fill), True))
        options: dict[str, Any] = {"photometric": "minisblack"}
        if colors is not None and self.dtype == np.uint8:
            # 16 bits a color.
            options = {"photometric": "palette", "colormap": (colors.T.astype(np.uint16) * 257)}
        elif len(self.shape) == 3:
            options |= {"planarconfig": "contig", "extrasamples": [0] * (self.shape[2] - 1)}
        size = int(np.prod(self.shape)) * self.dtype.itemsize
        with tifffile.TiffWriter(path, bigtiff=size > BIG_TIFF) as file:
            file.write(
                self._tiles(),
                shape=self.shape,
                dtype=self.dtype,
                tile=(FILE_TILE, FILE_TILE),
                compression="zlib",
                metadata=None,
                software=False,
                extratags=tags,
                **options,
            )

    def _tiles(self) -> Iterator[np.ndarray]:
        for _, band in self._bands(FILE_TILE):
            for left in range(0, self.shape[1], FILE_TILE):
                tile = np.zeros((FILE_TILE, FILE_TILE, *self.shape[2:]), self.dtype)
                part = band[:, left : left + FILE_TILE]
                tile[: part.shape[0], : part.shape[1]] = part
                yield tile


class MemoryMap:
    """A map in memory, with the interface of `MapWriter`."""

    path = None

    def __init__(self, shape: Sequence[int], dtype: np.dtype):
        self.shape = tuple(shape)
        self.values = np.zeros(self.shape, dtype)
        self.rows = 0

    def write(self, rows: np.ndarray) -> None:
        self.values[self.rows : self.rows + len(rows)] = rows
        self.rows += len(rows)

    def commit(self) -> None:
        """Needs nothing."""

    def finish(self, **options: Any) -> None:
        """Needs nothing."""

    def abandon(self) -> None:
        """Needs nothing."""


def read_bands(source: np.ndarray | Path, rows: int = FILE_TILE) -> Iterator[tuple[int, np.ndarray]]:
    """The first row of each band, and its values `(n, W)` or `(n, W, C)`, of a map in memory or in a file
    that `MapWriter` wrote.

    Raises:
        ValueError: if the file has another format.
    """
    if isinstance(source, np.ndarray):
        for first in range(0, source.shape[0], rows):
            yield first, source[first : first + rows]
        return
    suffix = source.suffix.lower()
    if suffix == ".npy":
        yield from read_bands(np.load(source, mmap_mode="r"), rows)
    elif suffix == ".zarr":
        array = import_extra("zarr", "zarr", f"Reading {source}").open(str(source), mode="r")
        for first in range(0, array.shape[0], FILE_TILE):
            yield first, np.asarray(array[first : first + FILE_TILE])
    elif suffix in (".tif", ".tiff"):
        yield from _tiff_bands(source)
    else:
        raise ValueError(f"{str(source)!r} must end in one of {', '.join(MASK_SUFFIXES)}.")


def _tiff_bands(path: Path) -> Iterator[tuple[int, np.ndarray]]:
    tifffile = import_extra("tifffile", "tifffile", f"Reading {path}")
    with tifffile.TiffFile(path) as file:
        page = file.pages.first
        height, width = page.imagelength, page.imagewidth
        band, first = None, -1
        for values, (_, _, top, left, _), shape in page.segments():
            if top != first:
                if band is not None:
                    yield first, band
                rows = min(page.tilelength, height - top)
                band, first = np.zeros((rows, width, *page.shape[2:]), page.dtype), top
            tile = values[0, : shape[1], : shape[2]]
            tile = tile[: band.shape[0], : width - left]
            band[:, left : left + tile.shape[1]] = tile if band.ndim == 3 else tile[..., 0]
        if band is not None:
            yield first, band


def read_map(source: np.ndarray | Path) -> np.ndarray:
    """The whole map; of a `.npy` file a memory map."""
    if isinstance(source, np.ndarray):
        return source
    if source.suffix.lower() == ".npy":
        return np.load(source, mmap_mode="r")
    return np.concatenate([band for _, band in read_bands(source)])


def write_text(path: Path, text: str) -> None:
    """A file that is there whole or not at all."""
    temporary = path.with_name(f"{path.name}.writing")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
