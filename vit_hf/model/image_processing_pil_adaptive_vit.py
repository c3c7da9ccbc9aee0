"""Image processor that resizes with Pillow, for where torchvision is missing."""

from typing import Any

import numpy as np
import PIL.Image
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import SizeDict
from transformers.processing_utils import Unpack

from .image_preparation import AdaptiveViTImageProcessorKwargs, ImagePreparation


class AdaptiveViTImageProcessorPil(ImagePreparation, PilBackend):
    """Prepares images with Pillow and NumPy.

    Options, inputs and outputs: `ImagePreparation`. Pillow resizes 8 bits a channel: arrays of floats must
    lie in 0..1, or hold whole numbers in 0..255. With `rescale_before_resize` it resizes floats, one channel
    at a time.
    """

    def __init__(self, **kwargs: Unpack[AdaptiveViTImageProcessorKwargs]):
        super().__init__(**kwargs)

    def resize(self, image: np.ndarray, size: SizeDict, in_floats: bool = False, **kwargs: Any) -> np.ndarray:
        """Resizes `(C, H, W)`, floats to a height and width as they are if `in_floats`."""
        if not in_floats or not np.issubdtype(image.dtype, np.floating):
            return super().resize(image=image, size=size, **kwargs)
        resample = kwargs.get("resample")
        # A number, or a member of Pillow's or torchvision's enumeration, whose names agree.
        name = PIL.Image.Resampling(resample).name if isinstance(resample, int) else resample.name
        channels = [PIL.Image.fromarray(channel.astype(np.float32)) for channel in image]
        return np.stack(
            [
                np.asarray(channel.resize((size.width, size.height), PIL.Image.Resampling[name]))
                for channel in channels
            ]
        )


__all__ = ["AdaptiveViTImageProcessorPil"]
