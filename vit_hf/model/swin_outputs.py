"""What Swin's models return. Shape legend: `swin_windows.py`."""

from dataclasses import dataclass

import torch
from transformers.modeling_outputs import (
    BackboneOutput,
    BaseModelOutputWithPooling,
    ImageClassifierOutput,
    MaskedImageModelingOutput,
)


@dataclass
class AdaptiveSwinModelOutput(BaseModelOutputWithPooling):
    """Hidden states, and what was selected and why.

    Attributes:
        last_hidden_state: `(B, N, D)` of the last stage's grid, in raster order.
        pooler_output: `(B, D)` their mean.
        hidden_states: what enters the first stage and what each stage gives to the next, `(B, N, D)` of their grids.
        reshaped_hidden_states: the same as `(B, D, R, S)`.
        attentions: of each stage the last block's, `(B * K, heads, L, L)`, windows of one image after another.
        selected_patches: `(B, K * L)` int64 raster indices of the patches in the windows that the first block computed
            on, -1 for padding; all patches in raster order where it computed on all.
        selected_windows: for each stage, `(B, K)` int64 raster indices of the windows that blocks without shift computed
            on; None without a selector.
        selected_shifted_windows: the same for blocks with shift, of windows of the rolled grid.
        patch_scores: `(B, N)` the selector's scores of all patches; None without a selector.
        spatial_shapes: `(B, 2)` int64 rows and columns of the grid of patches.
        selection_loss: what training a selector adds to the loss, if anything.
    """

    reshaped_hidden_states: tuple[torch.FloatTensor, ...] | None = None
    selected_patches: torch.LongTensor | None = None
    selected_windows: tuple[torch.LongTensor, ...] | None = None
    selected_shifted_windows: tuple[torch.LongTensor, ...] | None = None
    patch_scores: torch.FloatTensor | None = None
    spatial_shapes: torch.LongTensor | None = None
    selection_loss: torch.FloatTensor | None = None


@dataclass
class AdaptiveSwinImageClassifierOutput(ImageClassifierOutput):
    """Logits `(B, num_labels)`, and what was selected: see `AdaptiveSwinModelOutput`."""

    reshaped_hidden_states: tuple[torch.FloatTensor, ...] | None = None
    selected_patches: torch.LongTensor | None = None
    selected_windows: tuple[torch.LongTensor, ...] | None = None
    selected_shifted_windows: tuple[torch.LongTensor, ...] | None = None
    patch_scores: torch.FloatTensor | None = None
    spatial_shapes: torch.LongTensor | None = None
    selection_loss: torch.FloatTensor | None = None


@dataclass
class AdaptiveSwinMaskedImageModelingOutput(MaskedImageModelingOutput):
    """Reconstruction `(B, C, H, W)` in pixels, and what `AdaptiveSwinModelOutput` has."""

    reshaped_hidden_states: tuple[torch.FloatTensor, ...] | None = None
    spatial_shapes: torch.LongTensor | None = None


@dataclass
class AdaptiveSwinBackboneOutput(BackboneOutput):
    """Feature maps, and of `AdaptiveSwinModelOutput` what was selected."""

    selected_patches: torch.LongTensor | None = None
    selection_loss: torch.FloatTensor | None = None
