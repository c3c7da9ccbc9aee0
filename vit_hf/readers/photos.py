"""Photos: JPEG and PNG decoded row by row by libvips, all other files whole by Pillow."""

import os
import shutil
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import PIL.Image

from ..model.image_loading import (
    SpanFile,
    orientation_in,
    pixel_spans,
    read_image,
    samples_to_bytes,
    to_pixels,
    upright_size,
)
from .base import FileSource, import_extra
from .colors import from_mode, to_rgb


# Rows that are kept after they were read; 4 MiB.
CACHE_BYTES = 2**22


class RowStream:
    """Reads any rows of an image that is decoded in strips from top to bottom.

    The rows last decoded are kept, up to `cache_bytes` of them and at least those of one region. So reading
    regions from top to bottom, in any order within a band, decodes the image once; each step back above what
    is kept decodes it again from the top.

    Args:
        strips: starts decoding; gives strips `(rows, width, 3)` uint8, whose heights add up to the image's.
        cache_bytes: size of the cache of rows.

    Attributes:
        passes: number of times that decoding was started.
    """

    def __init__(self, strips: Callable[[], Iterator[np.ndarray]], cache_bytes: int = CACHE_BYTES):
        self._strips, self._cache_bytes = strips, cache_bytes
        self.passes = 0
        self.close()

    def read(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        """Reads a region `(height, width, 3)` uint8."""
        if self._decoding is None or top < self._first:
            self.close()
            self._decoding = self._strips()
            self.passes += 1
        try:
            while self._next < top + height:
                self._keep(next(self._decoding), top)
        except StopIteration:
            rows = self._next
            self.close()
            raise ValueError(f"it ends after row {rows}") from None
        except Exception:
            self.close()
            raise
        return self._cut(top, left, height, width)

    def _keep(self, strip: np.ndarray, top: int) -> None:
        self._kept.append(strip)
        self._kept_bytes += strip.nbytes
        self._next += strip.shape[0]
        while self._kept_bytes > self._cache_bytes and self._first + self._kept[0].shape[0] <= top:
            gone = self._kept.popleft()
            self._kept_bytes -= gone.nbytes
            self._first += gone.shape[0]

    def _cut(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        region = np.empty((height, width, 3), np.uint8)
        row = self._first
        for strip in self._kept:
            start, stop = max(top, row), min(top + height, row + strip.shape[0])
            if start < stop:
                region[start - top : stop - top] = strip[start - row : stop - row, left : left + width]
            row += strip.shape[0]
        return region

    def close(self) -> None:
        """Drops all rows; the next `read` starts from the top."""
        self._decoding: Iterator[np.ndarray] | None = None
        self._kept: deque[np.ndarray] = deque()
        self._kept_bytes = 0
        # The first cached row, and the row after the last.
        self._first = 0
        self._next = 0


_limit_lock = threading.Lock()
# Another thread of the parent may hold it at the fork.
os.register_at_fork(after_in_child=lambda: globals().update(_limit_lock=threading.Lock()))


class PillowSource(FileSource):
    """Any file that Pillow reads, decoded whole at first access: 3 bytes per pixel, and as many to decode
    it."""

    # The remedy in the error for an image too large to decode whole.
    remedy = "save it as a tiled TIFF"

    def _open(self) -> list[tuple[int, int]]:
        self._pixels = None
        with no_bomb_limit():
            try:
                with PIL.Image.open(self.path) as image:
                    width, height = upright_size(image)
            # Its metadata may be all that is damaged.
            except Exception:
                with read_image(self.path) as image:
                    width, height = upright_size(image)
        self._check_whole(height, width, "as its format is", self.remedy)
        return [(height, width)]

    def _close(self) -> None:
        self._pixels = None

    def _read_level(self, level: int, top: int, left: int, height: int, width: int) -> np.ndarray:
        return self._decoded()[top : top + height, left : left + width]

    def _decoded(self) -> np.ndarray:
        if self._pixels is None:
            # Pillow leaves files of several images open.
            with no_bomb_limit(), read_image(self.path) as image:
                self._pixels = to_pixels(image, do_convert_rgb=True).permute(1, 2, 0).numpy()  # (H, W, 3)
        return self._pixels


class PillowPhotoSource(PillowSource):
    """A JPEG or PNG where pyvips is not installed."""

    remedy = "pip install vit_hf[large] to decode it in rows"


@contextmanager
def no_bomb_limit() -> Iterator[None]:
    """Lifts Pillow's pixel limit, a global of the process; `max_pixels` replaces it."""
    with _limit_lock:
        limit = PIL.Image.MAX_IMAGE_PIXELS
        PIL.Image.MAX_IMAGE_PIXELS = None
        try:
            yield
        finally:
            PIL.Image.MAX_IMAGE_PIXELS = limit


# Rows that are converted and kept together.
STRIP_ROWS = 32
# Bytes requested from libvips at once. For each request it aligns a buffer of that size, and glibc does not
# reuse the hole that this leaves (sourceware.org, bug 14581): large requests quadruple its memory.
FETCH_BYTES = 2**16
# libjpeg decodes to these fractions of the size for less than the whole costs.
JPEG_SHRINKS = (2, 4, 8)
# Orientations in which upright rows are stored rows, from top to bottom.
ROWS_IN_ORDER = (1, 2)
# Decoded images in other orientations are kept in memory up to this size: 64 MiB.
TURNED_BYTES = 2**26


class PhotoSource(FileSource):
    """A JPEG or PNG file of any size.

    Regions read from top to bottom decode it once; a step back above the last 4 MiB of rows decodes it again
    from the top (`RowStream`). An image that its EXIF orientation turns or mirrors upside down is decoded
    once per process: into memory up to 64 MiB, beyond that into an unnamed file in the temporary folder, 3
    bytes per pixel. Progressive JPEG and interlaced PNG files are decoded whole by their libraries.

    What libjpeg only warns of (data missing in the middle, as of a file that was cut and closed) is an error
    here.
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
                f"its EXIF orientation is {self.orientation}, for which it needs {size} bytes of scratch "
                f"space, and {folder} has {free}; set TMPDIR to a larger folder, or save the image upright"
            )
        with tempfile.TemporaryFile() as file:
            for strip in self._strips(0):
                file.write(strip.tobytes())
            file.flush()
            return np.memmap(file, np.uint8, "r", shape=(height, width, 3))
