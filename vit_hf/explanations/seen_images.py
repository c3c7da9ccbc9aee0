"""From an image as it was given to what the model gets, and back to a picture to draw on."""

from contextlib import suppress
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
from transformers.image_processing_utils import BaseImageProcessor

from ..model.image_loading import read_image, to_pixels


def load_upright(image: Any, as_rgb: bool) -> PIL.Image.Image | np.ndarray | torch.Tensor:
    """Reads a path or URL; turns Pillow images as their EXIF orientation says, which not every processor does.

    Args:
        image: path, URL, Pillow image, array or tensor.
        as_rgb: makes Pillow images RGB, as models with three channels want them.

    Raises:
        ValueError: if the image cannot be read.
        TypeError: if it is nothing of these.
    """
    if isinstance(image, np.ndarray | torch.Tensor):
        return image
    if not isinstance(image, PIL.Image.Image):
        image = read_image(image)
    if as_rgb:
        return PIL.Image.fromarray(to_pixels(image, do_convert_rgb=True).permute(1, 2, 0).numpy())
    return PIL.ImageOps.exif_transpose(image)


def process(
    image_processor: BaseImageProcessor, image: PIL.Image.Image | np.ndarray | torch.Tensor
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """The model's inputs, a batch of one without padding; and the whole processed image `(C, H, W)`."""
    inputs = dict(image_processor(images=image, return_tensors="pt"))
    if inputs["pixel_values"].ndim == 4:
        return inputs, inputs["pixel_values"][0]
    # The loader cut and perhaps selected. How large the image was before it did, only another pass can tell.
    whole = image_processor(images=image, return_patches=False, return_tensors="pt")["pixel_values"][0]
    present = inputs.pop("pixel_attention_mask", torch.ones(inputs["pixel_values"].shape[:2])).bool()
    for name in ("pixel_values", "patch_coordinates"):
        inputs[name] = inputs[name][present][None]
    return inputs, whole


def to_picture(
    image: PIL.Image.Image | np.ndarray | torch.Tensor,
    processed: torch.Tensor,
    image_processor: BaseImageProcessor,
) -> PIL.Image.Image:
    """An RGB picture that the model's grid of patches lies on.

    That is the image as it was given, which shows most, if the processor does no more than resize it: then the
    grid covers it in proportion. After a crop or padding, or for channels that are not colours, it is the processed
    image `(C, H, W)` with the normalisation undone.
    """
    moves_pixels = any(
        getattr(image_processor, option, None) for option in ("do_center_crop", "do_pad", "crop_pct")
    )
    if not moves_pixels:
        with suppress(ValueError):
            return _to_rgb(to_pixels(image, do_convert_rgb=True))
    return _to_rgb(_undo_normalisation(processed, image_processor))


def shrink(picture: PIL.Image.Image, longest_side: int) -> np.ndarray:
    """`(h, w, 3)` uint8, no larger than `longest_side`."""
    if max(picture.size) > longest_side:
        picture = picture.copy()
        picture.thumbnail((longest_side, longest_side))
    return np.asarray(picture)


def _undo_normalisation(pixels: torch.Tensor, image_processor: BaseImageProcessor) -> torch.Tensor:
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
    """Of pixels `(3, H, W)`: uint8, or floats that are taken to reach to 1 if none is far above, else to 255."""
    if pixels.is_floating_point():
        # Interpolation and rounding overshoot a little.
        pixels = pixels * 255 if pixels.max() < 2 else pixels
        pixels = pixels.round().clamp(0, 255).to(torch.uint8)
    return PIL.Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
