"""Image processor that resizes with torchvision."""

from transformers.image_processing_backends import TorchvisionBackend
from transformers.processing_utils import Unpack
from transformers.utils import requires_backends

from .image_preparation import AdaptiveViTImageProcessorKwargs, ImagePreparation


class AdaptiveViTImageProcessor(ImagePreparation, TorchvisionBackend):
    """Prepares images with torchvision, on the CPU or, given `device`, on an accelerator.

    Options, inputs and outputs: `ImagePreparation`.

    Raises:
        ImportError: without torchvision; `AdaptiveViTImageProcessorPil` does the same without it.
    """

    def __init__(self, **kwargs: Unpack[AdaptiveViTImageProcessorKwargs]):
        # The class can be imported without torchvision, and would fail only at the first image.
        requires_backends(self, ["torchvision"])
        super().__init__(**kwargs)


__all__ = ["AdaptiveViTImageProcessor"]
