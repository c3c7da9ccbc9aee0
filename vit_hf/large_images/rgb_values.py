"""Stored values of any kind to uint8 RGB, by rules that look at no more than one value.

What a value means must not depend on the region it is read in, so nothing is scaled by the largest value around:
what fits no rule is an error. The rules are those of `vit_hf.model.image_loading`, but floats always mean 0..1.

Shapes: H rows, W columns, C channels.
"""

import numpy as np
import PIL.Image

from ..model.image_loading import to_pixels


def to_bytes(values: np.ndarray) -> np.ndarray:
    """Values of any shape as uint8.

    bool is 0 or 255, uint16 is divided by 257, other integers are in 0..255, floats in 0..1.

    Raises:
        ValueError: for values beyond these, NaN and infinite ones, and other dtypes.
    """
    kind = values.dtype.kind
    if values.dtype == np.uint8:
        return values
    if kind == "b":
        return values.astype(np.uint8) * np.uint8(255)
    if values.dtype.newbyteorder("=") == np.uint16:
        return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if kind not in "iuf":
        raise ValueError(
            f"its dtype is {values.dtype}: it must be bool, uint8, uint16, floats in 0..1 or integers in 0..255"
        )
    low, high, top = values.min(), values.max(), 1 if kind == "f" else 255
    # Written so that NaN fails, too.
    if not (low >= 0 and high <= top):
        raise ValueError(
            f"its {values.dtype} values reach from {low} to {high}: scale them to 0..{top}, or save it as uint8 or uint16"
        )
    return (
        np.round(values.astype(np.float32) * 255).astype(np.uint8) if kind == "f" else values.astype(np.uint8)
    )


def to_rgb(values: np.ndarray) -> np.ndarray:
    """uint8 `(H, W)` or `(H, W, C)` as `(H, W, 3)`: grey repeated, transparency on white.

    Raises:
        ValueError: for other channels than 1 (grey), 2 (and alpha), 3 (RGB) and 4 (RGBA).
    """
    values = values[..., None] if values.ndim == 2 else values
    channels = values.shape[2]
    if channels == 1:
        return np.repeat(values, 3, axis=2)
    if channels == 3:
        return values
    if channels not in (2, 4):
        raise ValueError(
            f"it has {channels} channels: it must have 1 (grey), 2 (with alpha), 3 (RGB) or 4 (RGBA)"
        )
    return from_mode(values, "LA" if channels == 2 else "RGBA")


def from_mode(values: np.ndarray, mode: str) -> np.ndarray:
    """uint8 `(H, W, C)` in one of Pillow's modes (CMYK, YCbCr, ...) as Pillow shows it, `(H, W, 3)`."""
    height, width = values.shape[:2]
    image = PIL.Image.frombytes(mode, (width, height), np.ascontiguousarray(values).tobytes())
    return to_pixels(image, do_convert_rgb=True).permute(1, 2, 0).numpy()


def premultiplied_to_rgb(values: np.ndarray) -> np.ndarray:
    """uint8 `(H, W, 2 or 4)` whose colours were multiplied by their alpha, on white, `(H, W, 3)`."""
    shine = 255 - values[..., -1:].astype(np.uint16)
    return to_rgb(np.minimum(values[..., :-1] + shine, 255).astype(np.uint8))
