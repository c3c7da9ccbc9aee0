"""From patches to the sequence that the encoder reads. Shape legend: `tokens.py`."""

import torch
from torch import nn

from .patches import ImagePatches, PatchEmbeddings
from .positions import POSITION_ENCODINGS
from .tokens import PatchTokens


class AdaptiveViTEmbeddings(nn.Module):
    """Patch embeddings with their positions, and the tokens that have no place in the image."""

    def __init__(self, config, use_mask_token: bool = False):
        super().__init__()
        self.patch_embeddings = PatchEmbeddings(config)
        self.position_encoding = POSITION_ENCODINGS[config.position_encoding](config)
        self.cls_token = nn.Parameter(torch.empty(1, 1, config.hidden_size))
        self.register_tokens = (
            nn.Parameter(torch.empty(1, config.num_register_tokens, config.hidden_size))
            if config.num_register_tokens
            else None
        )
        self.mask_token = nn.Parameter(torch.empty(1, 1, config.hidden_size)) if use_mask_token else None
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self,
        patches: ImagePatches,
        indices: torch.Tensor | None = None,
        bool_masked_pos: torch.BoolTensor | None = None,
    ) -> tuple[torch.Tensor, PatchTokens]:
        """The sequence `(B, 1 + registers + K, D)`, and its patch tokens with their coordinates."""
        tokens = self.patch_embeddings(patches, indices)
        if bool_masked_pos is not None:
            tokens = self._mask(
                tokens, bool_masked_pos if indices is None else bool_masked_pos.gather(1, indices)
            )
        tokens = self.position_encoding.add(tokens)
        prefix = self.position_encoding.add_to_cls(self.cls_token)
        if self.register_tokens is not None:
            prefix = torch.cat((prefix, self.register_tokens), dim=1)
        sequence = torch.cat((prefix.expand(tokens.features.shape[0], -1, -1), tokens.features), dim=1)
        return self.dropout(sequence), tokens

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
