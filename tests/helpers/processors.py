"""Both backends of the image processor."""

import numpy as np
from transformers import ViTImageProcessor
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from vit_hf.model.image_processing_adaptive_vit import AdaptiveViTImageProcessor, AdaptiveViTImageProcessorPil


BACKENDS = {
    "torchvision": (AdaptiveViTImageProcessor, ViTImageProcessor),
    "pil": (AdaptiveViTImageProcessorPil, ViTImageProcessorPil),
}


def picture(height=48, width=64, seed=0):
    """Random blocks of color under a little noise: patches differ in how busy they are."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 240, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    pixels = blocks.repeat(8, 0).repeat(8, 1)[:height, :width]
    return pixels + rng.integers(0, 16, pixels.shape, dtype=np.uint8)
