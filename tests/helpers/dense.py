"""Segmentation models and detectors whose answers are known, and small ones of transformers."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from transformers import (
    DetrConfig,
    DetrForObjectDetection,
    DetrImageProcessor,
    EomtConfig,
    EomtForUniversalSegmentation,
    EomtImageProcessor,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Mask2FormerImageProcessor,
    PreTrainedConfig,
    PreTrainedModel,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SegformerImageProcessor,
    SwinConfig,
    ViTImageProcessor,
)
from transformers.modeling_outputs import SemanticSegmenterOutput
from transformers.utils import ModelOutput

from tests.helpers.models import tiny_config
from vit_hf import (
    AdaptiveViTBackbone,
    AdaptiveViTForSemanticSegmentation,
    AdaptiveViTImageProcessor,
)


# Pixels as they are, in 0..255.
PLAIN = ViTImageProcessor(do_resize=False, do_rescale=False, do_normalize=False)


class DenseConfig(PreTrainedConfig):
    model_type = "dense_stub"
    num_channels = 3


class PixelSegmenter(PreTrainedModel):
    """Logits of each pixel from its color, or from all within `radius` pixels."""

    config_class = DenseConfig

    def __init__(self, config: DenseConfig, radius: int = 0):
        super().__init__(config)
        self.radius = radius
        self.weight = nn.Parameter(torch.randn(config.num_labels, 3))
        size = 2 * radius + 1
        self.spread = nn.Parameter(torch.rand(size, size))

    def forward(self, pixel_values: torch.Tensor) -> SemanticSegmenterOutput:
        values = pixel_values / 255
        if self.radius:
            kernel = self.spread.expand(3, 1, -1, -1)
            values = nn.functional.conv2d(values, kernel, padding=self.radius, groups=3)
        # One operation at a time, each of which gives every pixel the same wherever it is in a tile.
        logits = [sum(values[:, index] * row[index] for index in range(3)) for row in self.weight]
        return SemanticSegmenterOutput(logits=torch.stack(logits, dim=1))


def pixel_segmenter(num_labels: int = 4, radius: int = 0, **fields) -> PixelSegmenter:
    return PixelSegmenter(DenseConfig(num_labels=num_labels, **fields), radius).eval()


@dataclass
class FoundOutput(ModelOutput):
    pred_boxes: torch.Tensor | None = None
    labels: torch.Tensor | None = None


def places(height: int, width: int) -> np.ndarray:
    """An image `(H, W, 3)` uint8 whose pixels say where they are."""
    number = np.arange(height * width).reshape(height, width)
    return np.stack((number >> 16, number >> 8 & 255, number & 255), axis=-1).astype(np.uint8)


class KnowingDetector(PreTrainedModel):
    """Finds the objects of an image of `places`, clipped to what it sees.

    Attributes:
        calls: windows that were seen.
    """

    config_class = DenseConfig

    def __init__(self, width: int, boxes: np.ndarray, labels: np.ndarray):
        super().__init__(DenseConfig(num_labels=int(max(labels, default=0)) + 1))
        self.width, self.truth, self.labels = width, np.asarray(boxes, np.float64).reshape(-1, 4), labels
        self.unused = nn.Parameter(torch.zeros(1))
        self.calls = []

    def forward(self, pixel_values: torch.Tensor) -> FoundOutput:
        height, width = pixel_values.shape[-2:]
        found = []
        for first in pixel_values[:, :, 0, 0].long().tolist():
            top, left = divmod((first[0] << 16) + (first[1] << 8) + first[2], self.width)
            self.calls.append((top, left, height, width))
            low = np.maximum(self.truth[:, :2], (left, top))
            high = np.minimum(self.truth[:, 2:], (left + width, top + height))
            boxes = np.concatenate((low, high), axis=1) - (left, top) * 2
            found.append(np.where((high > low).all(axis=1)[:, None], boxes, -1))
        labels = torch.from_numpy(np.asarray(self.labels, np.int64))
        return FoundOutput(torch.from_numpy(np.array(found)), labels)


class KnowingProcessor(ViTImageProcessor):
    """Goes with `KnowingDetector`."""

    def post_process_object_detection(self, outputs, threshold, target_sizes):
        results = []
        for boxes in outputs.pred_boxes:
            there = boxes[:, 0] >= 0
            results.append(
                {
                    "boxes": boxes[there],
                    "scores": torch.ones(int(there.sum())),
                    "labels": outputs.labels[there],
                }
            )
        return results


KNOWING = KnowingProcessor(do_resize=False, do_rescale=False, do_normalize=False)


def segformer(num_labels: int = 4):
    config = SegformerConfig(
        num_labels=num_labels,
        depths=[1, 1, 1, 1],
        hidden_sizes=[8, 8, 8, 8],
        num_attention_heads=[1, 1, 1, 1],
        decoder_hidden_size=8,
    )
    processor = SegformerImageProcessor(size={"height": 64, "width": 64})
    return SegformerForSemanticSegmentation(config).eval(), processor


def ours(**fields):
    """An AdaptiveViT that segments."""
    model = AdaptiveViTForSemanticSegmentation(tiny_config(**{"num_labels": 4, **fields})).eval()
    return model, AdaptiveViTImageProcessor(size={"height": 32, "width": 32})


def ours_native():
    model, _ = ours()
    return model, AdaptiveViTImageProcessor(do_resize=False)


def mask2former(num_labels: int = 4):
    backbone = SwinConfig(
        image_size=64,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 1, 1],
        window_size=2,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = Mask2FormerConfig(
        backbone_config=backbone,
        num_labels=num_labels,
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=16,
        dim_feedforward=16,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        num_queries=6,
    )
    processor = Mask2FormerImageProcessor(size={"shortest_edge": 64, "longest_edge": 64})
    return Mask2FormerForUniversalSegmentation(config).eval(), processor


def eomt(num_labels: int = 4):
    config = EomtConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        mlp_ratio=2,
        image_size=64,
        patch_size=16,
        num_blocks=1,
        num_queries=6,
        num_upscale_blocks=1,
        num_register_tokens=1,
        num_labels=num_labels,
    )
    processor = EomtImageProcessor(size={"shortest_edge": 64, "longest_edge": 64}, do_split_image=True)
    return EomtForUniversalSegmentation(config).eval(), processor


def detr(num_labels: int = 3, **fields):
    """A DETR over an AdaptiveViT, which may select."""
    backbone = tiny_config(image_size=64, **fields)
    config = DetrConfig(
        backbone_config=AdaptiveViTBackbone(backbone).config,
        num_labels=num_labels,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        num_queries=5,
    )
    processor = DetrImageProcessor(size={"height": 64, "width": 64})
    return DetrForObjectDetection(config).eval(), processor
