"""Image processor that resizes with Pillow, for where torchvision is missing."""

from transformers.image_processing_backends import PilBackend

from .image_preparation import ImagePreparation


class AdaptiveViTImageProcessorPil(ImagePreparation, PilBackend):
    """Prepares images with Pillow and NumPy.

    Options, inputs and outputs: `ImagePreparation`. Pillow resizes 8 bits a channel: arrays of floats must lie in
    0..1, or hold whole numbers in 0..255.
    """


__all__ = ["AdaptiveViTImageProcessorPil"]
