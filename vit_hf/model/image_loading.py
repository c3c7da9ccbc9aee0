"""Pictures as people have them (files, Pillow images, arrays of any kind) to the pixels they show.

transformers reads 16-bit images by clipping them to white, leaves Pillow images lying on the side their camera lay
on, and fails on a damaged file without saying which. Here every picture becomes one `(C, H, W)` tensor or an error
that names it. Both backends start from this tensor, so they see the same pixels.
"""

import base64
import os
from io import BytesIO
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
from transformers.image_utils import ChannelDimension, infer_channel_dimension_format
from transformers.image_utils import load_image as load_url


# The EXIF tag that says how the camera was held; 2 to 8 need turning or mirroring.
ORIENTATION_TAG = 0x0112


def read_image(source: str | os.PathLike) -> PIL.Image.Image:
    """Reads an image from a path, a URL, a data URL or base64 text, completely.

    URLs go through transformers' loader, which returns RGB and drops transparency.

    Raises:
        ValueError: if there is no such file, or it is a directory, empty, damaged or no image; names `source`.
    """
    try:
        image = _open(source)
        try:
            image.load()
        except Exception:
            image.close()
            raise
    # Decoders meet damaged files with whatever error they trip over, SyntaxError and struct.error included.
    except Exception as error:
        name = repr(str(source))
        name = name if len(name) <= 200 else f"{name[:200]}..."
        raise ValueError(
            f"Cannot read the image {name}: {str(error) or type(error).__name__}. It must be an undamaged image file that Pillow knows, or a "
            "URL of one: replace it, or leave it out."
        ) from error
    return image


def _open(source: str | os.PathLike) -> PIL.Image.Image:
    if str(source).startswith(("http://", "https://")):
        return load_url(str(source))
    if os.path.isdir(source):
        raise ValueError("it is a directory")
    if os.path.isfile(source):
        if os.path.getsize(source) == 0:
            raise ValueError("the file is empty (0 bytes)")
        return PIL.Image.open(source)
    try:
        content = base64.b64decode("".join(str(source).split("base64,")[-1].split()), validate=True)
        return PIL.Image.open(BytesIO(content))
    # A mistyped path may happen to be base64 text, so what decoding says about it would mislead.
    except (ValueError, PIL.UnidentifiedImageError):
        raise ValueError("there is no such file, and it is no URL or base64 text of an image") from None


def flatten_images(images: Any) -> list[Any]:
    """All images of nested lists and `(B, ...)` arrays, in order."""
    if isinstance(images, list | tuple):
        return [image for item in images for image in flatten_images(item)]
    if isinstance(images, np.ndarray | torch.Tensor) and images.ndim == 4:
        return list(images)
    return [images]


def to_pixels(
    image: PIL.Image.Image | np.ndarray | torch.Tensor,
    do_convert_rgb: bool,
    input_data_format: str | ChannelDimension | None = None,
) -> torch.Tensor:
    """The pixels of one image as `(C, H, W)`: uint8 in 0..255, or float32 unchanged if it was an array of floats.

    16-bit values (Pillow's I;16 and I, uint16 arrays) are divided by 257, so that white stays white. Pillow images
    are turned upright as their EXIF orientation says and their palettes are looked up.

    Args:
        image: a Pillow image of any mode; or an array or tensor, `(H, W)`, `(C, H, W)` or `(H, W, C)`, of bools,
            integers in 0..255, uint16, or floats.
        do_convert_rgb: makes gray, palette, CMYK and other images RGB and puts transparent ones on white. If
            False, the image keeps its channels.
        input_data_format: where the channels of an array are; None finds out from its shape.

    Raises:
        ValueError: if the image has no pixels, a shape or dtype without a meaning, or NaN or infinite values.
    """
    if isinstance(image, PIL.Image.Image):
        if 0 in image.size:
            raise ValueError(f"it has no pixels, its size is {image.width}x{image.height}")
        array = np.array(_unpack(_upright(image), do_convert_rgb))
        pixels = torch.from_numpy(array)
        return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)
    if 0 in image.shape:
        raise ValueError(f"it has no pixels, its shape is {tuple(image.shape)}")
    pixels = _plain_values(_channels_first(_to_tensor(image), input_data_format))
    return _array_to_rgb(pixels) if do_convert_rgb else pixels


def _upright(image: PIL.Image.Image) -> PIL.Image.Image:
    """Turns the image as its EXIF orientation says (`exif_transpose` copies even when there is nothing to do)."""
    return PIL.ImageOps.exif_transpose(image) if image.getexif().get(ORIENTATION_TAG, 1) != 1 else image


def _unpack(image: PIL.Image.Image, do_convert_rgb: bool) -> PIL.Image.Image:
    """An image with 8-bit channels that mean brightness, in RGB if asked for."""
    if image.mode.startswith("I"):
        image = PIL.Image.fromarray(
            _sixteen_to_eight_bits(np.asarray(image).astype(np.int64)).astype(np.uint8)
        )
    elif image.mode == "F":
        image = PIL.Image.fromarray(_floats_to_eight_bits(np.asarray(image)))
    # As in transformers: what shines through is white.
    has_alpha = image.mode in ("LA", "PA", "RGBA", "RGBa") or image.info.get("transparency") is not None
    if do_convert_rgb and has_alpha:
        image = image.convert("RGBA")
        white = PIL.Image.new("RGBA", image.size, (255, 255, 255, 255))
        return PIL.Image.alpha_composite(white, image).convert("RGB")
    if do_convert_rgb:
        return image if image.mode == "RGB" else image.convert("RGB")
    # Palette indices are no brightness, and bits of mode 1 would arrive as bools.
    if image.mode in ("P", "PA"):
        return image.convert("RGBA" if has_alpha else "RGB")
    return image.convert("L") if image.mode == "1" else image


def _sixteen_to_eight_bits(values: Any) -> Any:
    """Round(x / 257) of 16-bit values in a wider integer array or tensor."""
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise ValueError(
            f"its values reach from {low} to {high}, beyond 16 bits (0..65535): scale it to 0..255"
        )
    return (values + 128) // 257


def _floats_to_eight_bits(values: np.ndarray) -> np.ndarray:
    """Values of a Pillow image of floats, which by custom are either 0..1 or 0..255."""
    low, high = float(values.min()), float(values.max())
    # Written so that NaN fails, too.
    if not (low >= 0 and high <= 255):
        raise ValueError(f"its float values reach from {low} to {high}: scale them to 0..1 or 0..255")
    return np.round(values * 255 if high <= 1 else values).astype(np.uint8)


def _to_tensor(array: np.ndarray | torch.Tensor) -> torch.Tensor:
    if isinstance(array, torch.Tensor):
        return array
    if array.dtype.kind not in "buif":
        raise ValueError(f"its dtype is {array.dtype}: give bools, integers or floats")
    # torch takes no foreign byte order or negative strides, and warns of read-only memory.
    return torch.from_numpy(np.require(array, array.dtype.newbyteorder("="), ["C_CONTIGUOUS", "WRITEABLE"]))


def _channels_first(array: torch.Tensor, input_data_format: str | ChannelDimension | None) -> torch.Tensor:
    if array.ndim == 2:
        return array[None]
    if array.ndim != 3:
        raise ValueError(f"its shape is {tuple(array.shape)}: give (H, W), (C, H, W) or (H, W, C)")
    if input_data_format is None:
        try:
            input_data_format = infer_channel_dimension_format(array, num_channels=(1, 3, 4))
        except ValueError:
            raise ValueError(
                f"its shape {tuple(array.shape)} has neither 1 (gray), 3 (RGB) nor 4 (RGBA) channels first or last; "
                "for other channels say input_data_format='channels_first' or 'channels_last'"
            ) from None
    return array.permute(2, 0, 1) if input_data_format == ChannelDimension.LAST else array


def _plain_values(array: torch.Tensor) -> torch.Tensor:
    """Bools and integers as uint8 in 0..255, floats as float32."""
    if array.dtype == torch.uint8:
        return array
    if array.is_floating_point():
        if not torch.isfinite(array).all():
            raise ValueError(f"{int((~torch.isfinite(array)).sum())} of its values are NaN or infinite")
        return array.float()
    if array.dtype == torch.bool:
        return array.to(torch.uint8) * 255
    if array.is_complex():
        raise ValueError(f"its dtype is {array.dtype}: give bools, integers or floats")
    values = array.to(torch.int64)
    if array.dtype == torch.uint16:
        return _sixteen_to_eight_bits(values).to(torch.uint8)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 255:
        raise ValueError(
            f"its {array.dtype} values reach from {low} to {high}: scale them to 0..255, or give 16-bit images as uint16"
        )
    return values.to(torch.uint8)


def _array_to_rgb(pixels: torch.Tensor) -> torch.Tensor:
    """Grey `(1, H, W)` or RGBA `(4, H, W)` to `(3, H, W)`, on white."""
    if pixels.shape[0] == 3:
        return pixels
    if pixels.shape[0] == 1:
        return pixels.expand(3, -1, -1)
    if pixels.shape[0] != 4:
        raise ValueError(
            f"its {pixels.shape[0]} channels cannot be made RGB: give 1, 3 or 4, or do_convert_rgb=False"
        )
    if pixels.is_floating_point() and not (pixels.min() >= 0 and pixels.max() <= 1):
        raise ValueError(
            "it is RGBA in floats beyond 0..1, so what is opaque is unknown: scale it, or give uint8"
        )
    white = 1.0 if pixels.is_floating_point() else 255.0
    alpha = pixels[3:] / white
    rgb = pixels[:3] * alpha + white * (1 - alpha)
    return rgb if pixels.is_floating_point() else rgb.round().to(torch.uint8)
