"""JPEG and PNG files, decoded in rows by libvips."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from ..model.image_loading import SpanFile, orientation_in, pixel_spans, samples_to_bytes
from .rgb_values import from_mode, to_rgb
from .row_stream import CACHE_BYTES, RowStream
from .sources_file import FileSource, import_extra
from .sources_pillow import no_bomb_limit


# Rows that are converted and kept together.
STRIP_ROWS = 32
# What is asked of libvips at once. For each request it aligns a buffer of that size, and glibc does not use the hole
# again that this leaves (sourceware.org, bug 14581): large requests make it take four times the memory it works with.
FETCH_BYTES = 2**16
# libjpeg decodes to these fractions of the size for less than the whole costs.
JPEG_SHRINKS = (2, 4, 8)
# Orientations in which upright rows are stored rows, from top to bottom.
ROWS_IN_ORDER = (1, 2)
# Of images in other orientations, those up to this size are kept in memory when they were decoded: 64 MiB.
TURNED_BYTES = 2**26


class PhotoSource(FileSource):
    """A JPEG or PNG file of any size.

    Regions read from top to bottom decode it once; a step back above the last 4 MiB of rows decodes it again from
    the top (`RowStream`). An image that its EXIF orientation turns or mirrors upside down is decoded once per process:
    into memory up to 64 MiB, beyond that into an unnamed file in the temporary folder, 3 bytes per pixel. Progressive
    JPEG and interlaced PNG files are decoded whole by their libraries.

    What libjpeg only warns of (data missing in the middle, as of a file that was cut and closed) is an error here.
    """

    def _open(self) -> list[tuple[int, int]]:
        self._streams: dict[int, RowStream] = {}
        self._scratch: np.ndarray | None = None
        with open(self.path, "rb") as file, no_bomb_limit():
            self.orientation = orientation_in(file)
            self._spans = pixel_spans(file)
        with self._started() as image:
            if image.get_typeof("interlaced") or image.get_typeof("jpeg-multiscan"):
                self._check_whole(image.height, image.width, "being progressive", "save it without")
            self._options: list[dict[str, Any]] = [{}]
            if image.get("vips-loader").startswith("jpegload"):
                self._options += [
                    {"shrink": shrink} for shrink in JPEG_SHRINKS if min(image.height, image.width) >= shrink
                ]
        return [self._size(**options) for options in self._options]

    def _close(self) -> None:
        self._streams = {}
        self._scratch = None

    @contextmanager
    def _started(self, **options: int) -> Iterator[Any]:
        """A libvips image that has not been decoded yet."""
        pyvips = import_extra("pyvips", "pyvips[binary]", f"Reading {self.name} in parts")
        with open(self.path, "rb") as file:
            # Not by its name, for then libvips maps the file, and pages that were read stay in memory.
            content = pyvips.SourceCustom()
            # Without metadata, whose damage libvips counts as damage of the image.
            source = file if self._spans is None else SpanFile(file, self._spans)
            content.on_read(source.read)
            content.on_seek(source.seek)
            try:
                yield pyvips.Image.new_from_source(
                    content, "", access="sequential", fail_on="warning", **options
                )
            finally:
                # The rows that the decoder keeps for itself would stay in libvips' cache of operations.
                limit = pyvips.cache_get_max()
                pyvips.cache_set_max(0)
                pyvips.cache_set_max(limit)

    def _size(self, **options: int) -> tuple[int, int]:
        with self._started(**options) as image:
            return image.height, image.width

    def _read_level(self, level: int, top: int, left: int, height: int, width: int) -> np.ndarray:
        is_turned = level == 0 and self.orientation not in ROWS_IN_ORDER
        if is_turned and self.levels[0][0] * self.levels[0][1] * 3 > TURNED_BYTES:
            if self._scratch is None:
                self._scratch = self._decoded_to_disk()
            return self._scratch[top : top + height, left : left + width]
        cache_bytes = TURNED_BYTES if is_turned else CACHE_BYTES
        stream = self._streams.setdefault(level, RowStream(partial(self._strips, level), cache_bytes))
        region = stream.read(top, left, height, width)
        if level and (top + height, left + width) == self.levels[level]:
            # The thumbnail is complete.
            del self._streams[level]
        return region

    def _strips(self, level: int) -> Iterator[np.ndarray]:
        """Strips `(rows, width, 3)` uint8."""
        import pyvips

        with self._started(**self._options[level]) as image:
            region = pyvips.Region.new(image)
            dtype = {"uchar": np.uint8, "ushort": np.uint16}[image.format]
            for top in range(0, image.height, STRIP_ROWS):
                strip = np.empty((min(STRIP_ROWS, image.height - top), image.width, image.bands), dtype)
                step = max(1, FETCH_BYTES // strip[0].nbytes)
                for row in range(0, len(strip), step):
                    piece = strip[row : row + step]
                    # Not a sink of libvips: its threads do not survive a fork.
                    content = region.fetch(0, top + row, image.width, len(piece))
                    piece[:] = np.frombuffer(content, dtype).reshape(piece.shape)
                values = samples_to_bytes(strip)
                yield from_mode(values, "CMYK") if image.interpretation == "cmyk" else to_rgb(values)

    def _decoded_to_disk(self) -> np.ndarray:
        height, width = self.levels[0]
        folder, size = tempfile.gettempdir(), height * width * 3
        free = shutil.disk_usage(folder).free
        if size > free:
            raise ValueError(
                f"its EXIF orientation is {self.orientation}, for which it needs {size} bytes of scratch space, and "
                f"{folder} has {free}; set TMPDIR to a larger folder, or save the image upright"
            )
        with tempfile.TemporaryFile() as file:
            for strip in self._strips(0):
                file.write(strip.tobytes())
            file.flush()
            return np.memmap(file, np.uint8, "r", shape=(height, width, 3))
