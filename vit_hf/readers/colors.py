"""Conversion of uint8 values with any channels to RGB; `vit_hf.model.image_loading` interprets values.

Shapes: H rows, W columns, C channels.
"""

import numpy as np
import PIL.Image

from ..model.image_loading import to_pixels


def to_rgb(values: np.ndarray) -> np.ndarray:
    """Converts uint8 `(H, W)` or `(H, W, C)` to `(H, W, 3)`: repeats gray, puts transparency on white.

    Raises:
        ValueError: for other channels than 1 (gray), 2 (and alpha), 3 (RGB) and 4 (RGBA).
    """
    values = values[..., None] if values.ndim == 2 else values
    channels = values.shape[2]
    if channels == 1:
        return np.repeat(values, 3, axis=2)
    if channels == 3:
        return values
    if channels not in (2, 4):
        raise ValueError(
            f"it has {channels} channels: it must have 1 (gray), 2 (with alpha), 3 (RGB) or 4 (RGBA)"
        )
    return from_mode(values, "LA" if channels == 2 else "RGBA")


def from_mode(values: np.ndarray, mode: str) -> np.ndarray:
    """Converts uint8 `(H, W, C)` in a Pillow mode (CMYK, YCbCr, ...) to RGB `(H, W, 3)`, as Pillow does."""
    height, width = values.shape[:2]
    image = PIL.Image.frombytes(mode, (width, height), np.ascontiguousarray(values).tobytes())
    return to_pixels(image, do_convert_rgb=True).permute(1, 2, 0).numpy()


def premultiplied_to_rgb(values: np.ndarray) -> np.ndarray:
    """Puts uint8 `(H, W, 2 or 4)` with colors premultiplied by alpha on white, `(H, W, 3)`."""
    shine = 255 - values[..., -1:].astype(np.uint16)
    return to_rgb(np.minimum(values[..., :-1] + shine, 255).astype(np.uint8))
