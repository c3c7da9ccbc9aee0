"""Patches to embeddings. Shape legend: `tokens.py`."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from huggingface_hub.dataclasses import strict
from torch import nn

from .axes import patch_sides
from .options import Options, read_options
from .patches import ImagePatches
from .tokens import PatchTokens


class PatchProjection(nn.Conv2d):
    """Linear embedding of patches, from whole images or from patches that were taken out.

    The weight is that of transformers' ViT, a convolution with stride P, so stock checkpoints fit. Patches taken
    out go through the same weight as a matrix product: a convolution over many tiny images is several times slower.
    """

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """`(B, N, D)` of images `(B, C, H, W)` or of patches `(B, N, C*P*P)`."""
        if pixels.ndim == 3:
            return nn.functional.linear(pixels, self.weight.flatten(1), self.bias)
        return super().forward(pixels).flatten(2).transpose(1, 2)


class VolumeProjection(nn.Conv3d):
    """The same for videos and volumes: the weight `(D, C, t, P, P)` is that of transformers' ViViT and VideoMAE."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """`(B, N, D)` of videos `(B, C, T, H, W)` or of patches `(B, N, C*t*P*P)`."""
        if pixels.ndim == 3:
            return nn.functional.linear(pixels, self.weight.flatten(1), self.bias)
        return super().forward(pixels).flatten(2).transpose(1, 2)


@strict
@dataclass(kw_only=True)
class PatchEmbeddingOptions(Options):
    """Options of every patch embedding.

    Args:
        bias: whether the projection has a bias.
    """

    bias: bool = True


class PatchEmbeddings(nn.Module):
    """Projects patches to the hidden size."""

    Options: ClassVar[type] = PatchEmbeddingOptions

    def __init__(self, config):
        super().__init__()
        options = read_options(self.Options, "patch_embedding", config.patch_embedding)
        patch_size = patch_sides(config)
        self.patch_size = patch_size
        projection = VolumeProjection if len(patch_size) == 3 else PatchProjection
        self.projection = projection(
            config.num_channels,
            config.hidden_size,
            kernel_size=patch_size,
            stride=patch_size,
            bias=options.bias,
        )

    @classmethod
    def check(cls, config, options: Options) -> None:
        """Raises: ValueError if the embedding does not fit the rest of the configuration; this one always does."""

    def forward(
        self,
        patches: ImagePatches,
        indices: torch.Tensor | None = None,
        weights: torch.Tensor | None = None,
    ) -> PatchTokens:
        """Embeds the patches at `indices` `(B, K)`, or means of patches by `weights` `(B, K, N)`, or all of them."""
        dtype = self.projection.weight.dtype
        if indices is None and weights is None and patches.image is not None:
            features = self.projection(patches.image.to(dtype))
            return PatchTokens(features, patches.coordinates, patches.grid, full_grid=patches.full_grid)
        tokens = patches.take(indices) if weights is None else patches.mix(weights)
        return tokens.with_features(self.projection(tokens.features.to(dtype)))
