"""From patches to the sequence that the encoder reads. Shape legend: `tokens.py`."""

from dataclasses import replace

import torch
from torch import nn
from transformers import initialization as init

from .blocks import Initialized
from .convolutional import ConvolutionalPatchEmbeddings
from .hybrid import HybridPatchEmbeddings
from .patch_embeddings import PatchEmbeddings
from .patches import ImagePatches
from .selection_base import Selection
from .tokens import PatchTokens, TokenSequence
from .user_classes import find_class


PATCH_EMBEDDINGS: dict[str, type[nn.Module]] = {
    "linear": PatchEmbeddings,
    "convolutional": ConvolutionalPatchEmbeddings,
}


class AdaptiveViTEmbeddings(Initialized, nn.Module):
    """Patch embeddings with their positions, and the tokens that have no place in the image."""

    def __init__(self, config, use_mask_token: bool = False):
        super().__init__()
        stem = PATCH_EMBEDDINGS[config.patch_embedding]
        if config.backbone_config is not None:
            stem = HybridPatchEmbeddings
        self.patch_embeddings = stem(config)
        self.position_encoding = find_class(config, "position_encoding")(config)
        self.cls_token = nn.Parameter(torch.empty(1, 1, config.hidden_size)) if config.use_cls_token else None
        self.register_tokens = (
            nn.Parameter(torch.empty(1, config.num_register_tokens, config.hidden_size))
            if config.num_register_tokens
            else None
        )
        self.mask_token = nn.Parameter(torch.empty(1, 1, config.hidden_size)) if use_mask_token else None
        # Tells a thumbnail's tokens from those of patches. It starts at zero: nothing changes until it is trained.
        self.scale_embedding = (
            nn.Parameter(torch.empty(1, 1, config.hidden_size)) if config.thumbnail_context else None
        )
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self,
        patches: ImagePatches,
        selection: Selection | None = None,
        bool_masked_pos: torch.BoolTensor | None = None,
        thumbnails: ImagePatches | None = None,
    ) -> TokenSequence:
        """CLS, registers, the tokens of thumbnails and those of the selected patches, with positions added.

        Args:
            patches: all patches of the batch.
            selection: which of them to embed, or means of them; None for all.
            bool_masked_pos: `(B, N)` True for patches that the mask token replaces.
            thumbnails: patches of the images made small, which serve as context.
        """
        selection = Selection(None, patches.mask) if selection is None else selection
        tokens = self.patch_embeddings(patches, selection.indices, selection.weights)
        if bool_masked_pos is not None:
            if selection.indices is not None:
                bool_masked_pos = bool_masked_pos.gather(1, selection.indices)
            tokens = self._mask(tokens, bool_masked_pos)
        # By name, as torch cannot count the FLOPs of a module that is given a parameter by place.
        positions = self.position_encoding(tokens, cls_token=self.cls_token)
        parts = [part for part in (positions.cls_token, self.register_tokens) if part is not None]
        parts = [part.expand(tokens.features.shape[0], -1, -1) for part in parts]
        context = context_grid = None
        if thumbnails is not None:
            context, context_grid = thumbnails.coordinates, thumbnails.view_grid
            parts.append(self.embed_patches(thumbnails).features + self.scale_embedding)
        hidden_states = self.dropout(torch.cat((*parts, positions.features), dim=1))
        tokens = replace(tokens, features=positions.features, mask=selection.mask)
        return TokenSequence(hidden_states, tokens, context, context_grid)

    def embed_patches(self, patches: ImagePatches) -> PatchTokens:
        """All patches with their positions, without CLS, registers and dropout."""
        tokens = self.patch_embeddings(patches)
        return tokens.with_features(self.position_encoding(tokens).features)

    def reset_parameters(self, std: float) -> None:
        for tokens in (self.cls_token, self.register_tokens):
            if tokens is not None:
                init.trunc_normal_(tokens, mean=0.0, std=std)
        for tokens in (self.mask_token, self.scale_embedding):
            if tokens is not None:
                init.zeros_(tokens)

    def _mask(self, tokens: PatchTokens, masked: torch.Tensor) -> PatchTokens:
        if masked.shape != tokens.features.shape[:2]:
            raise ValueError(
                f"bool_masked_pos has the shape {tuple(masked.shape)}, but there are {tuple(tokens.features.shape[:2])} "
                "patches (images, patches of each)."
            )
        if self.mask_token is None:
            raise ValueError(
                "bool_masked_pos needs a mask token: use AdaptiveViTForMaskedImageModeling, or build "
                "AdaptiveViTModel(config, use_mask_token=True)."
            )
        return tokens.with_features(
            torch.where(masked.bool().unsqueeze(-1), self.mask_token, tokens.features)
        )
