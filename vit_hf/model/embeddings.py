"""From patches to the sequence that the encoder reads. Shape legend: `tokens.py`."""

import torch
from torch import nn

from .convolutional import ConvolutionalPatchEmbeddings
from .hybrid import HybridPatchEmbeddings
from .options import type_of
from .patch_embeddings import PatchEmbeddings
from .patches import ImagePatches
from .tokens import PatchTokens
from .user_classes import find_class


PATCH_EMBEDDINGS: dict[str, type[nn.Module]] = {
    "linear": PatchEmbeddings,
    "convolutional": ConvolutionalPatchEmbeddings,
}


class AdaptiveViTEmbeddings(nn.Module):
    """Patch embeddings with their positions, and the tokens that have no place in the image."""

    def __init__(self, config, use_mask_token: bool = False):
        super().__init__()
        stem = PATCH_EMBEDDINGS[type_of(config.patch_embedding)]
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
        indices: torch.Tensor | None = None,
        bool_masked_pos: torch.BoolTensor | None = None,
        weights: torch.Tensor | None = None,
        thumbnails: ImagePatches | None = None,
        alone: bool = False,
    ) -> tuple[torch.Tensor | None, PatchTokens, PatchTokens | None]:
        """The sequence `(B, 1 + registers + thumbnail + K, D)`, its patch tokens, and those of the thumbnail.

        Args:
            patches: all patches of the batch.
            indices: `(B, K)` of those to embed; None for all.
            bool_masked_pos: `(B, N)` True for patches that the mask token replaces.
            weights: `(B, K, N)`, to embed means of patches instead.
            thumbnails: patches of the images made small, which go along as context.
            alone: whether the patch tokens are all that is wanted.
        """
        tokens = self.patch_embeddings(patches, indices, weights)
        if bool_masked_pos is not None:
            tokens = self._mask(
                tokens, bool_masked_pos if indices is None else bool_masked_pos.gather(1, indices)
            )
        tokens = self._add_positions(tokens)
        if alone:
            return None, tokens, None
        parts = []
        if self.cls_token is not None:
            # By name, as torch cannot count the FLOPs of a module that is given a parameter by place.
            parts.append(self.position_encoding("add_to_cls", cls_token=self.cls_token))
        if self.register_tokens is not None:
            parts.append(self.register_tokens)
        parts = [part.expand(tokens.features.shape[0], -1, -1) for part in parts]
        context = None
        if thumbnails is not None:
            context = self._add_positions(self.patch_embeddings(thumbnails))
            parts.append(context.features + self.scale_embedding)
        parts.append(tokens.features)
        return self.dropout(torch.cat(parts, dim=1)), tokens, context

    def _add_positions(self, tokens: PatchTokens) -> PatchTokens:
        placed = self.position_encoding("add", tokens)
        shape = getattr(getattr(placed, "features", None), "shape", None)
        if shape != tokens.features.shape:
            raise ValueError(
                f"{type(self.position_encoding).__name__}.add must return the tokens with features of the shape "
                f"{tuple(tokens.features.shape)}, by tokens.with_features(...), got "
                f"{type(placed).__name__ if shape is None else tuple(shape)}."
            )
        return placed

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
