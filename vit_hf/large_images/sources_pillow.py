"""Files that can only be decoded whole."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import PIL.Image

from ..model.image_loading import read_image, to_pixels, upright_size
from .sources_file import FileSource


_limit_lock = threading.Lock()
# Another thread of the parent may hold it at the fork.
os.register_at_fork(after_in_child=lambda: globals().update(_limit_lock=threading.Lock()))


class PillowSource(FileSource):
    """Any file that Pillow knows, decoded whole when it is first read: 3 bytes per pixel, and as much to decode it."""

    # What would read this format in parts, for the error of an image too large to decode whole.
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
    """Lifts Pillow's limit of pixels, which is one variable for the whole process; ours has been asked before."""
    with _limit_lock:
        limit = PIL.Image.MAX_IMAGE_PIXELS
        PIL.Image.MAX_IMAGE_PIXELS = None
        try:
            yield
        finally:
            PIL.Image.MAX_IMAGE_PIXELS = limit
