"""Whole-slide images, by OpenSlide."""

import numpy as np

from .base import FileSource, TileLayout, import_extra
from .colors import from_mode


TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


class SlideSource(FileSource):
    """A whole-slide image (Aperio, Hamamatsu, MIRAX, ...). Areas that were not scanned are white."""

    def _open(self) -> list[tuple[int, int]]:
        self._slide = None
        openslide = import_extra(
            "openslide", "openslide-python and openslide-bin", f"Reading the slide {self.name}"
        )
        self._check_tiles()
        self._slide = openslide.OpenSlide(self.path)
        return [(height, width) for width, height in self._slide.level_dimensions]

    def _check_tiles(self) -> None:
        """Refuses absurd tile sizes: OpenSlide ends the process if it cannot allocate a tile."""
        with open(self.path, "rb") as file:
            if file.read(4) not in TIFF_SIGNATURES:
                return
        tifffile = import_extra("tifffile", "tifffile", f"Reading the slide {self.name}")
        with tifffile.TiffFile(self.path) as file:
            for page in file.pages:
                largest = max(page.databytecounts, default=0)
                if largest > file.filehandle.size:
                    raise ValueError(
                        f"a tile of it has {largest} bytes, more than the file, which has "
                        f"{file.filehandle.size}"
                    )
                if page.is_tiled:
                    TileLayout(page.imagelength, page.imagewidth, page.tilelength, page.tilewidth).check(4)

    def _close(self) -> None:
        if self._slide is not None:
            self._slide.close()
        self._slide = None

    def _read_level(self, level: int, top: int, left: int, height: int, width: int) -> np.ndarray:
        # OpenSlide wants the place at full resolution.
        (full_height, full_width), (level_height, level_width) = self.levels[0], self.levels[level]
        place = (round(left * full_width / level_width), round(top * full_height / level_height))
        try:
            image = self._slide.read_region(place, level, (width, height))
        except Exception:
            # After an error OpenSlide repeats the same error for every call.
            self._close()
            self._open()
            raise
        return from_mode(np.asarray(image), "RGBA")


def is_slide(path: str) -> bool:
    """Checks if OpenSlide is installed and knows more of this file than a TIFF reader does."""
    try:
        openslide = import_extra("openslide", "openslide-python", "")
    except ImportError:
        return False
    return openslide.OpenSlide.detect_format(path) not in (None, "generic-tiff")
