"""Small video models and clips."""

import pytest
import torch

from tests.helpers.models import tiny_config
from vit_hf import POSITION_ENCODINGS, AdaptiveViTConfig
from vit_hf.model.positions import VOLUME_ENCODINGS


ENCODINGS = [*(name for name in POSITION_ENCODINGS if name != "sinusoidal_2d"), *VOLUME_ENCODINGS]


every_encoding = pytest.mark.parametrize("encoding", ENCODINGS)


def video_config(**fields) -> AdaptiveViTConfig:
    """Natively three patches of two frames of 4x4 patches."""
    return tiny_config(**{"num_frames": 6, **fields})


def clips(batch: int = 2, frames: int = 6, height: int = 32, width: int = 32) -> torch.Tensor:
    return torch.randn(batch, frames, 3, height, width)
