"""Classifiers of every kind that run in milliseconds, and pictures for them."""

import numpy as np
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
    SwinConfig,
    SwinForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from tests.helpers.models import tiny_config
from vit_hf import AdaptiveViTForImageClassification


SIZE = {"height": 32, "width": 32}
TINY_VIT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 32,
    "patch_size": 8,
    "num_labels": 3,
    "initializer_range": 0.2,
}
PROCESSOR = ViTImageProcessor(size=SIZE)


def vit(**fields) -> ViTForImageClassification:
    return ViTForImageClassification(ViTConfig(**{**TINY_VIT, **fields})).eval()


def swin() -> SwinForImageClassification:
    return SwinForImageClassification(
        SwinConfig(
            image_size=32,
            patch_size=4,
            embed_dim=8,
            depths=[1, 1],
            num_heads=[1, 2],
            window_size=4,
            num_labels=3,
        )
    ).eval()


def resnet() -> ResNetForImageClassification:
    return ResNetForImageClassification(
        ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=3)
    ).eval()


def convnext() -> ConvNextForImageClassification:
    return ConvNextForImageClassification(
        ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, num_labels=3)
    ).eval()


def ours(**fields) -> AdaptiveViTForImageClassification:
    return AdaptiveViTForImageClassification(tiny_config(**fields)).eval()


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width, 3), dtype=np.uint8)
