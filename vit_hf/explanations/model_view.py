"""Conversion of an input image to the model's input, and back to a picture to draw on."""

from contextlib import suppress
from typing import Any

import numpy as np
import PIL.Image
import torch
from transformers.image_processing_utils import BaseImageProcessor

from ..model.image_loading import read_image, to_pixels, upright


def load_upright(image: Any, as_rgb: bool) -> PIL.Image.Image | np.ndarray | torch.Tensor:
    """Reads a path or URL, and applies the EXIF orientation, which not every image processor does.

    Args:
        image: path, URL, Pillow image, array or tensor.
        as_rgb: converts Pillow images to RGB, for models with three channels.

    Raises:
        ValueError: if the image cannot be read.
        TypeError: if `image` is none of these.
    """
    if isinstance(image, np.ndarray | torch.Tensor):
        return image
    if not isinstance(image, PIL.Image.Image):
        image = read_image(image)
    if as_rgb:
        return PIL.Image.fromarray(to_pixels(image, do_convert_rgb=True).permute(1, 2, 0).numpy())
    return upright(image)


def process(
    image_processor: BaseImageProcessor, image: PIL.Image.Image | np.ndarray | torch.Tensor
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Returns the model's inputs, one image without padding, and the whole processed image `(C, H, W)`."""
    inputs = dict(image_processor(images=image, return_tensors="pt"))
    if inputs["pixel_values"].ndim == 4:
        return inputs, inputs["pixel_values"][0]
    # The image processor cut patches, and may have selected. Only another pass tells the size of the image.
    uncut = {"return_patches": False, "patch_selector": None, "num_selected_patches": None}
    whole = image_processor(images=image, **uncut, return_tensors="pt")["pixel_values"][0]
    if "pixel_attention_mask" in inputs:
        present = inputs["pixel_attention_mask"].bool()
        # The mask itself stays: with one, an image may have fewer patches than the budget.
        for name in ("pixel_values", "patch_coordinates", "pixel_attention_mask"):
            inputs[name] = inputs[name][present][None]
    return inputs, whole


def to_picture(
    image: PIL.Image.Image | np.ndarray | torch.Tensor,
    processed: torch.Tensor,
    image_processor: BaseImageProcessor,
) -> PIL.Image.Image:
    """Returns an RGB picture on which the model's grid of patches lies.

    If the processor only resizes, the grid covers the input image in proportion, and the picture is that
    image, which shows more detail. After a crop or padding, or for channels that are not colors, it is the
    processed image `(C, H, W)` with the normalization undone.
    """
    if not _moves_pixels(image_processor):
        with suppress(ValueError):
            return _to_rgb(to_pixels(image, do_convert_rgb=True))
    return _to_rgb(_undo_normalization(processed, image_processor))


def to_picture_boxes(
    boxes: np.ndarray,
    image: PIL.Image.Image | np.ndarray | torch.Tensor,
    processed: torch.Tensor,
    image_processor: BaseImageProcessor,
    picture_size: tuple[int, int],
) -> np.ndarray:
    """Maps `boxes` `(J, 4)` [x0, y0, x1, y1] from pixels of the input image to those of `to_picture`.

    Boxes may lie beyond the picture where the image processor cropped.

    Args:
        image: upright, see `load_upright`.
        processed: `(C, H, W)`.
        picture_size: (H, W).

    Raises:
        ValueError: if a box lies beyond the image, or if the image processor does more than resize, crop the
            center, and pad on the right and at the bottom.
    """
    input_data_format = getattr(image_processor, "input_data_format", None)
    height, width = to_pixels(image, False, input_data_format).shape[-2:]
    clipped = boxes.clip(0, [width, height, width, height])
    for box, visible in zip(boxes, clipped, strict=True):
        if not (visible[:2] < visible[2:]).all():
            raise ValueError(
                f"The box {box.tolist()} lies beyond the image of {width}x{height} pixels: boxes "
                "are [x0, y0, x1, y1] in pixels of the upright input image."
            )
    size, offset = picture_size, (0, 0)
    if _moves_pixels(image_processor):
        size, offset = _before_crop(image, processed, image_processor)
    scale = np.array([size[1] / width, size[0] / height] * 2)
    return clipped * scale - [offset[1], offset[0]] * 2


def _moves_pixels(image_processor: BaseImageProcessor) -> bool:
    return any(getattr(image_processor, option, None) for option in ("do_center_crop", "do_pad", "crop_pct"))


def _before_crop(
    image: PIL.Image.Image | np.ndarray | torch.Tensor,
    processed: torch.Tensor,
    image_processor: BaseImageProcessor,
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Returns (H, W) of the resized image, and (top, left) of the processed image on it."""
    steps = ("do_center_crop", "do_pad", "return_patches")
    options = [name for name in steps if getattr(image_processor, name, None)]
    whole = image_processor(images=image, return_tensors="pt", **dict.fromkeys(options, False))[
        "pixel_values"
    ]
    resized, expected, offset = tuple(whole.shape[-2:]), tuple(whole.shape[-2:]), (0, 0)
    if "do_center_crop" in options:
        crop = image_processor.crop_size
        expected = (crop["height"], crop["width"])
        # Negative where the image is smaller and gets a border.
        offset = tuple(int((old - new) / 2) for old, new in zip(resized, expected, strict=True))
    padded = "do_pad" in options
    fits = [
        new >= old if padded else new == old for new, old in zip(processed.shape[-2:], expected, strict=True)
    ]
    if getattr(image_processor, "crop_pct", None) or not all(fits):
        raise ValueError(
            f"Boxes cannot be mapped through {type(image_processor).__name__}: its output of "
            f"{tuple(processed.shape[-2:])} (height, width) takes more than resizing, cropping the center "
            "and padding. Leave the boxes out, or give images that are already cropped."
        )
    return resized, offset


def shrink(picture: PIL.Image.Image, longest_side: int) -> np.ndarray:
    """Converts a picture to `(h, w, 3)` uint8, with no side above `longest_side`."""
    if max(picture.size) > longest_side:
        picture = picture.copy()
        picture.thumbnail((longest_side, longest_side))
    return np.asarray(picture)


def _undo_normalization(pixels: torch.Tensor, image_processor: BaseImageProcessor) -> torch.Tensor:
    pixels = pixels.float()
    if getattr(image_processor, "do_normalize", False):
        mean, std = (
            torch.as_tensor(values, dtype=torch.float32).reshape(-1, 1, 1)
            for values in (image_processor.image_mean, image_processor.image_std)
        )
        pixels = pixels * std + mean
    if pixels.shape[0] not in (1, 3):
        pixels = pixels.mean(dim=0, keepdim=True)
    return pixels.expand(3, -1, -1)


def _to_rgb(pixels: torch.Tensor) -> PIL.Image.Image:
    """Converts pixels `(3, H, W)`, uint8 or float; floats range to 1 if all are below 2, else to 255."""
    if pixels.is_floating_point():
        # Interpolation and rounding overshoot a little.
        pixels = pixels * 255 if pixels.max() < 2 else pixels
        pixels = pixels.round().clamp(0, 255).to(torch.uint8)
    return PIL.Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
