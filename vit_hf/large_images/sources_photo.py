"""JPEG and PNG files, decoded in rows by libvips."""

import shutil
import tempfile
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from .rgb_values import from_mode, to_bytes, to_rgb
from .row_stream import CACHE_BYTES, RowStream
from .sources_file import FileSource, import_extra


# libvips keeps several strips of its own, so they are low.
STRIP_ROWS = 32
# libjpeg decodes to these fractions of the size for less than the whole costs.
JPEG_SHRINKS = (2, 4, 8)
# Orientations in which upright rows are stored rows, from top to bottom.
ROWS_IN_ORDER = (1, 2)


class PhotoSource(FileSource):
    """A JPEG or PNG file of any size.

    Regions read from top to bottom decode it once; a step back above the last 64 MiB of rows decodes it again from
    the top (`RowStream`). An image beyond 64 MiB that its EXIF orientation turns or mirrors upside down is
    decoded once per process into an unnamed file in the temporary folder, 3 bytes per pixel. Progressive JPEG and interlaced PNG files are decoded
    whole by their libraries.

    What libjpeg only warns of (data missing in the middle, as of a file that was cut and closed) is an error here.
    """

    def _open(self) -> list[tuple[int, int]]:
        self._streams: dict[int, RowStream] = {}
        self._scratch: np.ndarray | None = None
        image = self._start()
        if image.get_typeof("orientation"):
            self.orientation = image.get("orientation")
        if image.get_typeof("interlaced") or image.get_typeof("jpeg-multiscan"):
            self._check_whole(image.height, image.width, "being progressive", "save it without")
        self._options: list[dict[str, Any]] = [{}]
        if image.get("vips-loader") == "jpegload":
            self._options += [
                {"shrink": shrink} for shrink in JPEG_SHRINKS if min(image.height, image.width) >= shrink
            ]
        images = [self._start(**options) for options in self._options]
        return [(image.height, image.width) for image in images]

    def _close(self) -> None:
        self._streams = {}
        self._scratch = None

    def _start(self, **options: int) -> Any:
        pyvips = import_extra("pyvips", "pyvips[binary]", f"Reading {self.name} in parts")
        # Sequential images are not in libvips' cache of operations, so no other process has their file open.
        return pyvips.Image.new_from_file(self.path, access="sequential", fail_on="warning", **options)

    def _read_level(self, level: int, top: int, left: int, height: int, width: int) -> np.ndarray:
        if level == 0 and self._needs_disk():
            if self._scratch is None:
                self._scratch = self._decoded_to_disk()
            return self._scratch[top : top + height, left : left + width]
        stream = self._streams.setdefault(level, RowStream(partial(self._strips, level)))
        region = stream.read(top, left, height, width)
        if level and (top + height, left + width) == self.levels[level]:
            # The thumbnail is complete.
            del self._streams[level]
        return region

    def _needs_disk(self) -> bool:
        height, width = self.levels[0]
        return self.orientation not in ROWS_IN_ORDER and height * width * 3 > CACHE_BYTES

    def _strips(self, level: int) -> Iterator[np.ndarray]:
        """Strips `(rows, width, 3)` uint8."""
        import pyvips

        image = self._start(**self._options[level])
        region = pyvips.Region.new(image)
        dtype = {"uchar": np.uint8, "ushort": np.uint16}[image.format]
        for top in range(0, image.height, STRIP_ROWS):
            rows = min(STRIP_ROWS, image.height - top)
            # Not a sink of libvips: its threads do not survive a fork.
            content = region.fetch(0, top, image.width, rows)
            values = to_bytes(np.frombuffer(content, dtype).reshape(rows, image.width, image.bands))
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
