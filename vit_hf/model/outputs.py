"""Outputs of the models."""

from dataclasses import dataclass, fields

import torch
from transformers.modeling_outputs import (
    BackboneOutput,
    BaseModelOutputWithPooling,
    ImageClassifierOutput,
    MaskedImageModelingOutput,
    SemanticSegmenterOutput,
)
from transformers.utils import ModelOutput


@dataclass
class SelectionOutput(ModelOutput):
    """Selected patches: the fields that all outputs share.

    Attributes:
        selected_patches: `(B, K)` int64 raster indices of the patches computed on; -1 where an image had fewer.
        patch_scores: `(B, N)` the selector's scores of all patches, None without a selector.
        spatial_shapes: `(B, A)` int64 rows and columns of each image's full grid.
        selection_loss: what training a selector or reducer adds to the loss, if anything.
    """

    selected_patches: torch.LongTensor | None = None
    patch_scores: torch.FloatTensor | None = None
    spatial_shapes: torch.LongTensor | None = None
    selection_loss: torch.FloatTensor | None = None

    @classmethod
    def from_outputs(cls, outputs: ModelOutput, **values):
        """Copies the fields that `outputs` has as well; `values` override them."""
        names = [field.name for field in fields(outputs) if hasattr(cls, field.name)]
        return cls(**{**{name: getattr(outputs, name) for name in names}, **values})


@dataclass
class TokenOutput(SelectionOutput):
    """Selected patches, and where the tokens are.

    Attributes:
        patch_coordinates: `(B, K, A)` float row and column of the kept patches, in patches; of videos (time, row,
            column).
        token_coordinates: `(B, M, A)` float, where the last tokens are; of a merged one, the mean.
        token_sizes: `(B, M)` float, how many patches each stands for, 0 for padding; None if all stand for one. With
            `"cross_attention"` a kept patch stands for more the more its query attends to it, for 1 on average.
        token_assignments: `(B, S, K)` int64, after each of the S reductions that had something to do: which token
            stands for each of the K that entered the encoder, -1 for dropped ones. None if nothing was reduced.
    """

    patch_coordinates: torch.FloatTensor | None = None
    token_coordinates: torch.FloatTensor | None = None
    token_sizes: torch.FloatTensor | None = None
    token_assignments: torch.LongTensor | None = None


@dataclass
class EncoderOutput(ModelOutput):
    """Output of the blocks; see `AdaptiveViTModelOutput`.

    Attributes:
        stages: a `Stage` for each number of blocks that was given, before the final norm.
        losses: of reducers, and of learning from the dense pass.
    """

    last_hidden_state: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    token_coordinates: torch.FloatTensor | None = None
    token_sizes: torch.FloatTensor | None = None
    token_assignments: torch.LongTensor | None = None
    dense_hidden_state: torch.FloatTensor | None = None
    stages: list | None = None
    losses: list | None = None


@dataclass
class AdaptiveViTModelOutput(TokenOutput, BaseModelOutputWithPooling):
    """Hidden states, and what was selected and why: see `TokenOutput` and `SelectionOutput`.

    Attributes:
        last_hidden_state: `(B, 1 + registers + thumbnail + M, D)`: CLS, registers, the tokens of the thumbnail with
            `thumbnail_context`, and the tokens that stand for patches: the K kept ones in raster order, or what a
            token reducer made of them. All of them after the last norm, unless `final_norm` says otherwise: also of a
            converted CLIP, whose original normalizes only what it pools (`model.post_layernorm` of it gives ours).
        pooler_output: `(B, D)`, or `(B, pooler_output_size)` of a dense layer; see `pooler` of the configuration.
        patch_mask: `(B, K)` bool, False where an image had fewer patches than the batch is wide; None if all count.
        restored_hidden_state: `(B, R*S, D)` for the full grid in raster order; see `restore` of the model.
        selection_log_prob: `(B,)` mean log-probability of the patches that a policy drew; None if none did.
        greedy_patches: `(B, K)` int64 raster indices of those it would have kept without drawing, -1 for none.
        dense_hidden_state: `(B, 1 + registers + thumbnail + K, D)` last hidden state without reduction and gradient;
            only while training a reducer that learns from it.
    """

    patch_mask: torch.BoolTensor | None = None
    restored_hidden_state: torch.FloatTensor | None = None
    selection_log_prob: torch.FloatTensor | None = None
    greedy_patches: torch.LongTensor | None = None
    dense_hidden_state: torch.FloatTensor | None = None


@dataclass
class AdaptiveViTImageClassifierOutput(TokenOutput, ImageClassifierOutput):
    """Logits `(B, num_labels)`, and what was selected."""


@dataclass
class AdaptiveViTMaskedImageModelingOutput(SelectionOutput, MaskedImageModelingOutput):
    """Reconstruction `(B, C, H, W)` in pixels, and the grid it was made on."""


@dataclass
class AdaptiveViTForPreTrainingOutput(SelectionOutput):
    """Reconstruction of the dropped patches; fields as in transformers' ViTMAE, and the kept patches.

    Attributes:
        loss: mean squared error over the pixels of dropped patches.
        logits: `(B, N, P*P*C)` pixels of all patches, channel last in each.
        mask: `(B, N)` float, 1 for patches that were dropped, 0 for those that were kept (and for padding).
        ids_restore: `(B, N)` int64, where each patch is in a sequence of first the kept, then the dropped ones.
        hidden_states, attentions: of the encoder, whose last K tokens are the kept patches in that order.
        selected_patches: `(B, K)` int64 raster indices of the kept patches, in that order; -1 where an image had fewer.
        spatial_shapes: `(B, 2)` int64 rows and columns of each image's full grid.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    mask: torch.FloatTensor | None = None
    ids_restore: torch.LongTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    selected_patches: torch.LongTensor | None = None
    spatial_shapes: torch.LongTensor | None = None


@dataclass
class AdaptiveViTSemanticSegmenterOutput(TokenOutput, SemanticSegmenterOutput):
    """Logits `(B, num_labels, h, w)` for the whole image, and what was selected."""


@dataclass
class AdaptiveViTBackboneOutput(TokenOutput, BackboneOutput):
    """Feature maps, and what was selected."""
