"""What the numbers in a TIFF mean as colours."""

from typing import Any

import numpy as np

from ..model.image_loading import samples_to_bytes, unknown_bands
from .rgb_values import from_mode, premultiplied_to_rgb, to_rgb


# Photometric interpretations (TIFF 6.0, section 8 and following).
MIN_IS_WHITE, MIN_IS_BLACK, RGB, PALETTE, SEPARATED, YCBCR, CIELAB = 0, 1, 2, 3, 5, 6, 8
CHANNELS = {MIN_IS_WHITE: 1, MIN_IS_BLACK: 1, RGB: 3, PALETTE: 1, SEPARATED: 4, YCBCR: 3, CIELAB: 3}
# JPEG decoders already return RGB.
JPEG_COMPRESSIONS = {6, 7, 33007, 34892}
# Aperio's JPEG 2000 in YCbCr, whatever the page says.
JPEG2000_YCBCR = 33003
# Values of ExtraSamples.
PREMULTIPLIED, ALPHA = 1, 2


def tiff_to_rgb(page: Any, values: np.ndarray) -> np.ndarray:
    """Decoded samples `(H, W, C)` of a page of tifffile as uint8 RGB `(H, W, 3)`.

    Raises:
        ValueError: if the page's colours are of another kind, or values beyond their range.
    """
    photometric = int(page.photometric)
    if photometric not in CHANNELS:
        raise ValueError(
            f"its colours are {getattr(page.photometric, 'name', photometric)}: save it as grey, RGB, palette, CMYK or YCbCr"
        )
    channels, samples = CHANNELS[photometric], values.shape[2]
    extra = tuple(page.extrasamples or ())
    if photometric == RGB and samples == 4 and not extra:
        extra = (ALPHA,)  # as Pillow and libtiff take it
    if samples < channels:
        raise ValueError(f"it has {samples} samples per pixel, and its colors need {channels}")
    alpha = next((place for place, kind in enumerate(extra) if kind in (PREMULTIPLIED, ALPHA)), None)
    has_alpha = alpha is not None and samples > channels + alpha
    gray = photometric in (MIN_IS_WHITE, MIN_IS_BLACK)
    if samples > channels and (not extra or (gray and samples != 1 + has_alpha)):
        raise unknown_bands(samples, str(values.dtype), photometric)
    if photometric == CIELAB and values.dtype != np.uint8:
        raise ValueError(f"it has CIELAB colors of {values.dtype}: save it as RGB, or with 8 bits")
    if photometric == PALETTE:
        colours = _looked_up(page, values[..., 0])
    else:
        colours = _full_range(values[..., :channels], page.bitspersample)
        if photometric == MIN_IS_WHITE:
            colours = 255 - colours
        elif photometric == CIELAB:
            colours = from_mode(colours, "LAB")
        elif photometric == SEPARATED:
            colours = from_mode(colours, "CMYK")
        elif page.compression == JPEG2000_YCBCR or (
            photometric == YCBCR and page.compression not in JPEG_COMPRESSIONS
        ):
            colours = from_mode(colours, "YCbCr")
    if not has_alpha:
        return to_rgb(colours)
    place = channels + alpha
    opacity = _full_range(values[..., place : place + 1], page.bitspersample)
    with_alpha = np.concatenate([colours, opacity], axis=2)
    return premultiplied_to_rgb(with_alpha) if extra[alpha] == PREMULTIPLIED else to_rgb(with_alpha)


def num_unspecified(page: Any) -> int:
    """How many bands of a page are no part of its colors, and are not shown."""
    return sum(kind not in (PREMULTIPLIED, ALPHA) for kind in page.extrasamples or ())


def _full_range(values: np.ndarray, bits: int | tuple[int, ...]) -> np.ndarray:
    """uint8, where the largest number that `bits` can hold is 255."""
    bits = bits if isinstance(bits, int) else max(bits)
    if values.dtype.kind != "u" or bits in (8, 16) or bits > 16:
        return samples_to_bytes(values)
    top = 2**bits - 1
    return ((values.astype(np.uint32) * 255 + top // 2) // top).astype(np.uint8)


def _looked_up(page: Any, indices: np.ndarray) -> np.ndarray:
    """Palette indices `(H, W)` as colours `(H, W, 3)`."""
    table = page.colormap
    if table is None or indices.dtype.kind not in "bu":
        raise ValueError("its colours are a palette's, and it has no palette or no indices")
    if indices.size and int(indices.max()) >= table.shape[1]:
        raise ValueError(f"the index {int(indices.max())} is beyond its palette of {table.shape[1]} colours")
    # 16 bits by TIFF 6.0; some writers store 8. As Pillow does: the high byte.
    table = table // 256 if table.max() > 255 else table
    return table.T.astype(np.uint8)[indices.astype(np.intp)]
