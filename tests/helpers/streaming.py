"""Models and images for streaming."""

import numpy as np
import pytest
import torch

from tests.helpers.models import tiny_config
from vit_hf import AdaptiveViTForImageClassification, AdaptiveViTImageProcessor
from vit_hf.inference import streamed_patches


PROCESSOR = AdaptiveViTImageProcessor(patch_size=8, do_resize=False)


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Noise whose contrast grows from left to right, so that patches differ in every way."""
    noise = np.random.default_rng(seed).random((height, width, 3))
    return (noise * np.linspace(20, 255, width)[None, :, None]).astype(np.uint8)


def classifier(name: str, **fields) -> AdaptiveViTForImageClassification:
    torch.manual_seed(0)
    return AdaptiveViTForImageClassification(tiny_config(patch_selector=name, **fields)).eval()


@pytest.fixture(autouse=True)
def narrow_bands(monkeypatch):
    """A row of patches at a time."""
    monkeypatch.setattr(streamed_patches, "BAND_PIXELS", 1)
