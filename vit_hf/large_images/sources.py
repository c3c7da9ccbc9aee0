"""Large images, read a region at a time."""

import os
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import PIL.Image
import torch

from ..model.image_loading import read_image, to_pixels


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


class ArraySource(ImageSource):
    """An image in memory."""

    def __init__(self, image: PIL.Image.Image | np.ndarray | torch.Tensor, name: str):
        self.pixels = to_pixels(image, do_convert_rgb=True).permute(1, 2, 0).numpy()
        self.name = name
        self.height, self.width = self.pixels.shape[:2]

    def _read(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        return self.pixels[top : top + height, left : left + width]

    def thumbnail(self, height: int, width: int) -> np.ndarray:
        image = PIL.Image.fromarray(np.ascontiguousarray(self.pixels))
        return np.asarray(image.resize((width, height), PIL.Image.Resampling.BILINEAR, reducing_gap=3))


def open_image(
    source: ImageSource | str | os.PathLike | PIL.Image.Image | np.ndarray | torch.Tensor,
) -> ImageSource:
    """An image that can be read a region at a time; use it in a `with` statement.

    Raises:
        ValueError: if it is no image, or a damaged one.
    """
    if isinstance(source, ImageSource):
        return source
    if isinstance(source, str | os.PathLike):
        return ArraySource(read_image(source), str(source))
    return ArraySource(source, f"a {type(source).__name__}")
