"""The rows of an image that can only be decoded from its top to its bottom."""

from collections import deque
from collections.abc import Callable, Iterator

import numpy as np


# Rows that are kept after they were read; 4 MiB.
CACHE_BYTES = 2**22


class RowStream:
    """Gives any rows of an image that comes in strips from top to bottom.

    The rows last decoded are kept, up to `cache_bytes` of them and at least those of one region. So reading regions from
    top to bottom, in any order within a band, decodes the image once; each step back above what is kept decodes it
    anew from the top.

    Args:
        strips: starts decoding; gives strips `(rows, width, 3)` uint8, whose heights add up to the image's.
        cache_bytes: of rows that are kept.

    Attributes:
        passes: how often decoding was started.
    """

    def __init__(self, strips: Callable[[], Iterator[np.ndarray]], cache_bytes: int = CACHE_BYTES):
        self._strips, self._cache_bytes = strips, cache_bytes
        self.passes = 0
        self.close()

    def read(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        """The region `(height, width, 3)` uint8."""
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
        """Forgets all rows; the next `read` starts from the top."""
        self._decoding: Iterator[np.ndarray] | None = None
        self._kept: deque[np.ndarray] = deque()
        self._kept_bytes = 0
        # Of the rows that are kept; the row after them.
        self._first = 0
        self._next = 0
