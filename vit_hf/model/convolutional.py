"""Patches to embeddings by a small CNN, each by itself. Shape legend: `tokens.py`.

For patches that hold more than a matrix can tell apart, such as the 50x50 pixels in which IPS looks for a digit
("Iterative Patch Selection for High-Resolution Image Recognition", Bergner et al., 2023).
"""

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer

from .axes import to_pair
from .blocks import Initialized
from .patch_embeddings import PatchProjection
from .patches import ImagePatches
from .tokens import PatchTokens


# Patches that go through the CNN at a time where no gradient is wanted: all patches of large images would not fit.
CHUNK = 512


class PatchConvolution(Initialized, nn.Conv2d):
    """A convolution with standardised filters, and without bias, as a norm follows.

    A filter of mean zero does not answer to a plain background, which would make up most of what a group norm divides
    by: on digits in black patches the CNN learns without this far slower, and with it as fast as with batch norms
    ("Micro-Batch Training with Batch-Channel Normalization and Weight Standardization", Qiao et al., 2019).

    A stride s leaves the s-th part of the cells, rounded up.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1):
        super().__init__(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, bias=False)

    def reset_parameters(self, std: float | None = None) -> None:
        if std is None:  # called by the constructor of torch
            super(Initialized, self).reset_parameters()
            return
        init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")  # as ResNet

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


class ConvolutionalPatchEmbeddings(Initialized, nn.Module):
    """A residual CNN reads each patch that is embedded, and the mean of its last feature map is projected.

    By default the stem and first two stages of ResNet-18, as in IPS, but with standardised filters and group norms ("Group
    Normalization", Wu and He, 2018) where that has batch norms: what becomes of a patch must not depend on which others
    were selected, on padding, or on whether a scout looked first. The cost follows the number of patches embedded.
    """

    def __init__(self, config):
        super().__init__()
        self.patch_size = to_pair(config.patch_size)
        self.num_channels = config.num_channels
        sizes, num_groups = config.convolutional_hidden_sizes, config.convolutional_num_groups
        self.stem = nn.Sequential(
            PatchConvolution(config.num_channels, sizes[0], 7, stride=2),
            nn.GroupNorm(num_groups, sizes[0]),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        blocks, channels = [], sizes[0]
        for stage, (size, depth) in enumerate(zip(sizes, config.convolutional_depths, strict=True)):
            for index in range(depth):
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(ResidualBlock(channels, size, stride, num_groups))
                channels = size
        self.blocks = nn.Sequential(*blocks)
        self.projection = PatchProjection(channels, config.hidden_size, kernel_size=1, bias=config.patch_bias)

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

    def reset_parameters(self, std: float) -> None:
        # From few channels, a deviation of `initializer_range` would leave hardly anything beside sinusoids.
        init.normal_(self.projection.weight, std=self.projection.in_channels**-0.5)

    def _read(self, pixels: torch.Tensor) -> torch.Tensor:
        """What the CNN makes of patches `(B*K, C, P, P)`, `(B*K, F)`."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return self.blocks(self.stem(pixels)).mean(dim=(2, 3))
        return torch.cat([self.blocks(self.stem(part)).mean(dim=(2, 3)) for part in pixels.split(CHUNK)])


def check_convolutional(config) -> None:
    """Checks `patch_embedding` and the options of a convolutional one.

    Raises:
        ValueError: if they do not fit together.
    """
    sizes, depths = config.convolutional_hidden_sizes, config.convolutional_depths
    num_groups = config.convolutional_num_groups
    if not sizes or len(sizes) != len(depths) or min(*sizes, *depths) < 1:
        raise ValueError(
            f"convolutional_hidden_sizes={sizes} and convolutional_depths={depths} must give each stage of the CNN its "
            "channels and residual blocks, at least 1 each: lists of one length."
        )
    if num_groups < 1 or any(size % num_groups for size in sizes):
        raise ValueError(
            f"convolutional_num_groups={num_groups} must divide each of convolutional_hidden_sizes={sizes}."
        )
    if config.patch_embedding != "convolutional":
        return
    if config.backbone_config is not None:
        raise ValueError(
            "patch_embedding='convolutional' reads patches one by one, and the CNN of backbone_config whole images: give "
            "one of them."
        )
    for stage, size in enumerate(sizes):
        # The stem leaves a quarter of the side, and each stage but the first halves it, rounded up.
        rows, columns = (-(-side // 2 ** (stage + 2)) for side in to_pair(config.patch_size))
        if rows * columns * size // num_groups == 1:
            raise ValueError(
                f"Stage {stage + 1} of the CNN would have one cell for each patch of patch_size={config.patch_size}, and "
                f"convolutional_num_groups={num_groups} a norm for each channel of it, which sets it to zero: take fewer "
                "groups or stages."
            )
