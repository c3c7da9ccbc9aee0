"""What every test needs: no network, and small models."""

import os


os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")

import pytest
import torch

from vit_hf import AdaptiveViTConfig


TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
    "num_labels": 5,
    "encoder_stride": 8,
    "scout_num_layers": 2,
    # Large enough that differences between inputs show in the logits.
    "initializer_range": 0.2,
}


def tiny_config(**fields) -> AdaptiveViTConfig:
    """A model that runs in milliseconds; `fields` override."""
    if fields.get("patch_selector") is not None:
        fields.setdefault("num_selected_patches", 6)
    return AdaptiveViTConfig(**{**TINY, **fields})


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
