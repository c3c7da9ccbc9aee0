"""An image in memory."""

import numpy as np
import PIL.Image
import torch

from ..model.image_loading import to_bytes, to_pixels
from .sources_base import ImageSource, check_thumbnail_size


# Pillow first averages whole pixels until the image is this many times too large, then interpolates.
REDUCING_GAP = 3


class ArraySource(ImageSource):
    """An image in memory. Arrays of floats are in 0..1."""

    def __init__(self, image: PIL.Image.Image | np.ndarray | torch.Tensor, name: str):
        self.name = name
        try:
            pixels = to_pixels(image, do_convert_rgb=True).permute(1, 2, 0).numpy()  # (H, W, 3)
            self.pixels = to_bytes(pixels)
        except ValueError as error:
            raise ValueError(f"Cannot read {name}: {error}.") from error
        self.height, self.width = self.pixels.shape[:2]

    def _read(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        return self.pixels[top : top + height, left : left + width]

    def thumbnail(self, height: int, width: int) -> np.ndarray:
        check_thumbnail_size(self.name, height, width)
        image = PIL.Image.fromarray(np.ascontiguousarray(self.pixels))
        return np.asarray(
            image.resize((width, height), PIL.Image.Resampling.BILINEAR, reducing_gap=REDUCING_GAP)
        )
