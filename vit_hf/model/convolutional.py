"""Patches to embeddings by a small CNN, each by itself. Shape legend: `tokens.py`.

For patches that hold more than a matrix can tell apart, such as the 50x50 pixels in which IPS looks for a digit
("Iterative Patch Selection for High-Resolution Image Recognition", Bergner et al., 2023).
"""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .axes import has_frames, to_pair
from .options import check_positive, read_options
from .patch_embeddings import PatchEmbeddingOptions, PatchProjection
from .patches import ImagePatches
from .tokens import PatchTokens


# Patches that go through the CNN at a time where no gradient is wanted: all patches of large images would not fit.
CHUNK = 512


@strict
@dataclass(kw_only=True)
class ConvolutionalOptions(PatchEmbeddingOptions):
    """Options of `"convolutional"`, named as in transformers' ResNet; by default the first half of ResNet-18 (IPS).

    Args:
        hidden_sizes, depths: channels and residual blocks of the stages. The stem leaves a quarter of a
            patch's side, and each stage but the first half of that.
        num_groups: groups of the group norms, a divisor of each width.
    """

    hidden_sizes: list[int] | tuple[int, ...] = field(default_factory=lambda: [64, 128])
    depths: list[int] | tuple[int, ...] = field(default_factory=lambda: [2, 2])
    num_groups: int = 32

    def __post_init__(self):
        sizes, depths = list(self.hidden_sizes), list(self.depths)
        if not sizes or len(sizes) != len(depths) or min(*sizes, *depths) < 1:
            raise ValueError(
                f"hidden_sizes={sizes} and depths={depths} must give each stage of the CNN its channels and residual blocks, "
                "at least 1 each: lists of one length."
            )
        check_positive(self, "num_groups")
        if any(size % self.num_groups for size in sizes):
            raise ValueError(f"num_groups={self.num_groups} must divide each of hidden_sizes={sizes}.")


class PatchConvolution(nn.Conv2d):
    """A convolution with standardised filters, and without bias, as a norm follows.

    A filter of mean zero does not answer to a plain background, which would make up most of what a group norm divides
    by: on digits in black patches the CNN learns without this far slower, and with it as fast as with batch norms
    ("Micro-Batch Training with Batch-Channel Normalization and Weight Standardization", Qiao et al., 2019).

    A stride s leaves the s-th part of the cells, rounded up.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1):
        super().__init__(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, bias=False)

    def forward(self, cells: torch.Tensor) -> torch.Tensor:
        return self._conv_forward(cells, self.standardised(), None)

    def standardised(self) -> torch.Tensor:
        """The weight, each filter of it with mean 0 and variance 1."""
        return nn.functional.layer_norm(self.weight, self.weight.shape[1:], eps=1e-8)


class ResidualBlock(GradientCheckpointingLayer):
    """Two convolutions beside a shortcut ("Deep Residual Learning for Image Recognition", He et al., 2015)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, num_groups: int):
        super().__init__()
        self.conv1 = PatchConvolution(in_channels, out_channels, 3, stride)
        self.norm1 = nn.GroupNorm(num_groups, out_channels)
        self.conv2 = PatchConvolution(out_channels, out_channels, 3)
        self.norm2 = nn.GroupNorm(num_groups, out_channels)
        self.shortcut = None
        if stride > 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                PatchConvolution(in_channels, out_channels, 1, stride), nn.GroupNorm(num_groups, out_channels)
            )

    def forward(self, cells: torch.Tensor) -> torch.Tensor:
        inner = self.norm2(self.conv2(self.norm1(self.conv1(cells)).relu()))
        return (inner + (cells if self.shortcut is None else self.shortcut(cells))).relu()


class ConvolutionalPatchEmbeddings(nn.Module):
    """A residual CNN reads each patch that is embedded, and the mean of its last feature map is projected.

    By default the stem and first two stages of ResNet-18, as in IPS, but with standardised filters and group norms ("Group
    Normalization", Wu and He, 2018) where that has batch norms: what becomes of a patch must not depend on which others
    were selected, on padding, or on whether a scout looked first. The cost follows the number of patches embedded.
    """

    Options: ClassVar[type] = ConvolutionalOptions

    def __init__(self, config):
        super().__init__()
        options = read_options(self.Options, "patch_embedding", config.patch_embedding)
        self.patch_size = to_pair(config.patch_size)
        self.num_channels = config.num_channels
        sizes, num_groups = options.hidden_sizes, options.num_groups
        self.stem = nn.Sequential(
            PatchConvolution(config.num_channels, sizes[0], 7, stride=2),
            nn.GroupNorm(num_groups, sizes[0]),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        blocks, channels = [], sizes[0]
        for stage, (size, depth) in enumerate(zip(sizes, options.depths, strict=True)):
            for index in range(depth):
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(ResidualBlock(channels, size, stride, num_groups))
                channels = size
        self.blocks = nn.Sequential(*blocks)
        self.projection = PatchProjection(channels, config.hidden_size, kernel_size=1, bias=options.bias)

    @classmethod
    def check(cls, config, options: ConvolutionalOptions) -> None:
        """Checks the embedding against the rest of the configuration.

        Raises:
            ValueError: for videos, a hybrid, and stages that leave a norm a single number.
        """
        if has_frames(config):
            raise ValueError(
                f"patch_embedding='convolutional' reads patches of images, and num_frames={config.num_frames} makes them "
                "videos or volumes: use 'linear'."
            )
        if config.backbone_config is not None:
            raise ValueError(
                "patch_embedding='convolutional' reads patches one by one, and the CNN of backbone_config whole images: give "
                "one of them."
            )
        for stage, size in enumerate(options.hidden_sizes):
            # The stem leaves a quarter of the side, and each stage but the first halves it, rounded up.
            rows, columns = (-(-side // 2 ** (stage + 2)) for side in to_pair(config.patch_size))
            if rows * columns * size // options.num_groups == 1:
                raise ValueError(
                    f"Stage {stage + 1} of the CNN would have one cell for each patch of patch_size={config.patch_size}, and "
                    f"num_groups={options.num_groups} a norm for each channel of it, which sets it to zero: take fewer groups "
                    "or stages."
                )

    def forward(
        self,
        patches: ImagePatches,
        indices: torch.Tensor | None = None,
        weights: torch.Tensor | None = None,
    ) -> PatchTokens:
        """Embeds the patches at `indices` `(B, K)`, or means of patches by `weights` `(B, K, N)`, or all of them."""
        tokens = patches.take(indices) if weights is None else patches.mix(weights)
        pixels = tokens.features.to(self.projection.weight.dtype)
        pixels = pixels.unflatten(2, (self.num_channels, *self.patch_size))  # (B, K, C, P, P)
        read = self._read(pixels.flatten(0, 1)).unflatten(0, pixels.shape[:2])  # (B, K, F)
        tokens = tokens.with_features(self.projection(read))
        if indices is None and weights is None:
            tokens.full_grid = patches.full_grid
        return tokens

    def _read(self, pixels: torch.Tensor) -> torch.Tensor:
        """What the CNN makes of patches `(B*K, C, P, P)`, `(B*K, F)`."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return self.blocks(self.stem(pixels)).mean(dim=(2, 3))
        return torch.cat([self.blocks(self.stem(part)).mean(dim=(2, 3)) for part in pixels.split(CHUNK)])
