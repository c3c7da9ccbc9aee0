"""What every large image offers: regions of itself, and itself made small."""

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from typing import Any

import numpy as np


class ImageSource(AbstractContextManager, ABC):
    """An image that gives regions of itself, as uint8 RGB `(height, width, 3)`.

    Attributes:
        name: what errors call it: its file, or what it was made of.
        height, width: in pixels at full resolution.
    """

    name: str
    height: int
    width: int

    def read(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        """The region `(height, width, 3)` uint8 at full resolution.

        Raises:
            ValueError: if it reaches beyond the image, or the file is damaged there; names file and place.
        """
        if not (0 <= top < top + height <= self.height and 0 <= left < left + width <= self.width):
            raise ValueError(
                f"The region of {height}x{width} pixels at row {top}, column {left} reaches beyond {self.name}, which has "
                f"{self.height}x{self.width}."
            )
        return self._read(top, left, height, width)

    @abstractmethod
    def _read(self, top: int, left: int, height: int, width: int) -> np.ndarray: ...

    @abstractmethod
    def thumbnail(self, height: int, width: int) -> np.ndarray:
        """The whole image at another size, `(height, width, 3)` uint8."""

    def close(self) -> None:
        """Gives the file back."""

    def __exit__(self, *error: Any) -> None:
        self.close()


def check_thumbnail_size(name: str, height: int, width: int) -> None:
    if height < 1 or width < 1:
        raise ValueError(f"A thumbnail of {name} of {height}x{width} has no pixels: give 1x1 or more.")
