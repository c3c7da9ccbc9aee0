"""What the models return. Shape legend: `tokens.py`."""

from dataclasses import dataclass

import torch
from transformers.modeling_outputs import (
    BaseModelOutputWithPooling,
    ImageClassifierOutput,
    MaskedImageModelingOutput,
)
from transformers.utils import ModelOutput


@dataclass
class ScoutOutput(ModelOutput):
    """CLS attention over the patches of a thumbnail, `(B, N)`."""

    attention: torch.FloatTensor | None = None


@dataclass
class AdaptiveViTModelOutput(BaseModelOutputWithPooling):
    """Hidden states, and what was selected and why.

    Attributes:
        last_hidden_state: `(B, 1 + registers + K, D)`: CLS, registers, kept patches in raster order.
        pooler_output: `(B, pooler_output_size)`.
        selected_patches: `(B, K)` int64 raster indices of the patches computed on; -1 where an image had fewer.
        patch_scores: `(B, N)` the selector's scores of all patches, None without a selector.
        patch_coordinates: `(B, K, 2)` float row and column of the kept patches, in patches.
        spatial_shapes: `(B, 2)` int64 rows and columns of each image's full grid.
        patch_mask: `(B, K)` bool, False where an image had fewer patches than the batch is wide; None if all count.
        selection_loss: the loss of a trained selector, if any.
    """

    selected_patches: torch.LongTensor | None = None
    patch_scores: torch.FloatTensor | None = None
    patch_coordinates: torch.FloatTensor | None = None
    spatial_shapes: torch.LongTensor | None = None
    patch_mask: torch.BoolTensor | None = None
    selection_loss: torch.FloatTensor | None = None


@dataclass
class AdaptiveViTImageClassifierOutput(ImageClassifierOutput):
    """Logits `(B, num_labels)`, and what was selected: see `AdaptiveViTModelOutput`."""

    selected_patches: torch.LongTensor | None = None
    patch_scores: torch.FloatTensor | None = None
    patch_coordinates: torch.FloatTensor | None = None
    spatial_shapes: torch.LongTensor | None = None
    selection_loss: torch.FloatTensor | None = None


@dataclass
class AdaptiveViTMaskedImageModelingOutput(MaskedImageModelingOutput):
    """Reconstruction `(B, C, H, W)` in pixels, and the grid it was made on."""

    spatial_shapes: torch.LongTensor | None = None
