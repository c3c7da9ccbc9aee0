"""Patches to embeddings: a matrix, a small CNN for each patch, or a CNN over the image (the hybrid stem).

F is the channels of a feature map.
"""

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import MODEL_FOR_BACKBONE_MAPPING, AutoBackbone
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer

from .layers import Initialized
from .options import Options, check_positive, read_options
from .patches import ImagePatches, PatchTokens, raster_indices
from .sizes import has_frames, patch_sides, to_pair


class PatchProjection(nn.Conv2d):
    """Linear embedding of patches, from whole images or from patches that were taken out.

    The weight is that of transformers' ViT, a convolution with stride P, so stock checkpoints fit. Patches
    taken out go through the same weight as a matrix product: a convolution over many tiny images is several
    times slower.
    """

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """`(B, N, D)` of images `(B, C, H, W)` or of patches `(B, N, C*P*P)`."""
        if pixels.ndim == 3:
            return nn.functional.linear(pixels, self.weight.flatten(1), self.bias)
        return super().forward(pixels).flatten(2).transpose(1, 2)


class VolumeProjection(nn.Conv3d):
    """Linear embedding of patches of videos; the weight `(D, C, t, P, P)` is that of transformers' ViViT
    and VideoMAE."""

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
        """Raises: ValueError if the embedding does not fit the rest of the configuration; this one always
        does."""

    def forward(
        self,
        patches: ImagePatches,
        indices: torch.Tensor | None = None,
        weights: torch.Tensor | None = None,
    ) -> PatchTokens:
        """Embeds the patches at `indices` `(B, K)`, or means of patches by `weights` `(B, K, N)`, or all
        of them."""
        dtype = self.projection.weight.dtype
        if indices is None and weights is None and patches.image is not None:
            features = self.projection(patches.image.to(dtype))
            return PatchTokens(features, patches.coordinates, patches.grid, full_grid=patches.full_grid)
        tokens = patches.gather(indices) if weights is None else patches.weighted_mean(weights)
        return tokens.with_features(self.projection(tokens.features.to(dtype)))


# Patches that go through the CNN at a time where there is no gradient: all patches of large images would not
# fit.
CHUNK = 512


@strict
@dataclass(kw_only=True)
class ConvolutionalOptions(PatchEmbeddingOptions):
    """Options of `"convolutional"`, named as in transformers' ResNet; by default the first half of ResNet-18
    (IPS).

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
                f"hidden_sizes={sizes} and depths={depths} must give each stage of the CNN its "
                "channels and residual blocks, "
                "at least 1 each: lists of one length."
            )
        check_positive(self, "num_groups")
        if any(size % self.num_groups for size in sizes):
            raise ValueError(f"num_groups={self.num_groups} must divide each of hidden_sizes={sizes}.")


class PatchConvolution(Initialized, nn.Conv2d):
    """A convolution with standardized filters, and without bias, as a norm follows.

    A filter of mean zero does not answer to a plain background, which would make up most of what a group norm
    divides by: on digits in black patches the CNN learns without this far slower, and with it as fast as with
    batch norms ("Micro-Batch Training with Batch-Channel Normalization and Weight Standardization", Qiao et
    al., 2019).

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
        return self._conv_forward(cells, self.standardized(), None)

    def standardized(self) -> torch.Tensor:
        """Weight with mean 0 and variance 1 in each filter."""
        return nn.functional.layer_norm(self.weight, self.weight.shape[1:], eps=1e-8)


class ResidualBlock(GradientCheckpointingLayer):
    """Two convolutions beside a shortcut ("Deep Residual Learning for Image Recognition", He et al.,
    2015)."""

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

    By default the stem and first two stages of ResNet-18, as in IPS, but with standardized filters and group
    norms ("Group Normalization", Wu and He, 2018) where that has batch norms: what becomes of a patch must
    not depend on which others were selected, on padding, or on whether a probe looked first. The cost follows
    the number of patches embedded.
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
                "patch_embedding='convolutional' reads patches of images, and "
                f"num_frames={config.num_frames} makes them "
                "videos or volumes: use 'linear'."
            )
        if config.backbone_config is not None:
            raise ValueError(
                "patch_embedding='convolutional' reads patches one by one, and the CNN of "
                "backbone_config whole images: give "
                "one of them."
            )
        for stage, size in enumerate(options.hidden_sizes):
            # The stem leaves a quarter of the side, and each stage but the first halves it, rounded up.
            rows, columns = (-(-side // 2 ** (stage + 2)) for side in to_pair(config.patch_size))
            if rows * columns * size // options.num_groups == 1:
                raise ValueError(
                    f"Stage {stage + 1} of the CNN would have one cell for each patch of "
                    f"patch_size={config.patch_size}, and "
                    f"num_groups={options.num_groups} a norm for each channel of it, which sets "
                    "it to zero: take fewer groups "
                    "or stages."
                )

    def forward(
        self,
        patches: ImagePatches,
        indices: torch.Tensor | None = None,
        weights: torch.Tensor | None = None,
    ) -> PatchTokens:
        """Embeds the patches at `indices` `(B, K)`, or means of patches by `weights` `(B, K, N)`, or all
        of them."""
        tokens = patches.gather(indices) if weights is None else patches.weighted_mean(weights)
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
        """Runs the CNN on patches `(B*K, C, P, P)`, to `(B*K, F)`."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return self.blocks(self.stem(pixels)).mean(dim=(2, 3))
        return torch.cat([self.blocks(self.stem(part)).mean(dim=(2, 3)) for part in pixels.split(CHUNK)])


class HybridPatchEmbeddings(nn.Module):
    """Projects cells of a CNN's feature map to the hidden size, one for each patch of pixels.

    Which cells, selectors say by the patches; the CNN itself sees whole images, whatever is selected, and
    thumbnails as the images that they are. Where it has batch norms, training counts these in their
    statistics as well.
    """

    def __init__(self, config):
        super().__init__()
        self.patch_size = to_pair(config.patch_size)
        # Without attention it refuses every implementation of it but this, whichever the encoder has.
        has_attention = MODEL_FOR_BACKBONE_MAPPING[type(config.backbone_config)].has_attentions
        options = {} if has_attention else {"attn_implementation": "eager"}
        self.backbone = AutoBackbone.from_config(config.backbone_config, **options)
        bias = read_options(PatchEmbeddingOptions, "patch_embedding", config.patch_embedding).bias
        self.projection = PatchProjection(
            self.backbone.channels[-1], config.hidden_size, kernel_size=1, bias=bias
        )

    def forward(
        self,
        patches: ImagePatches,
        indices: torch.Tensor | None = None,
        weights: torch.Tensor | None = None,
    ) -> PatchTokens:
        """Embeds the cells at `indices` `(B, K)`, or means of cells by `weights` `(B, K, N)`, or all of them.

        Raises:
            ValueError: if patches of an image are missing, or the feature map has not one cell for each
                patch.
        """
        if patches.features is None:
            patches.features = self._read(patches)
        tokens = patches.gather(indices) if weights is None else patches.weighted_mean(weights)
        tokens = tokens.with_features(self.projection(tokens.features.to(self.projection.weight.dtype)))
        if indices is None and weights is None:
            tokens.full_grid = patches.full_grid
        return tokens

    def reset_missing(self) -> None:
        """Gives torch's initial values to what a file lacked of a backbone of timm; transformers leaves it as
        it is.

        Raises:
            ValueError: if a part has none.
        """
        if self.backbone.config.model_type != "timm_backbone":
            return
        for name, part in self.backbone.named_modules():
            values = part.parameters(recurse=False)
            if all(getattr(value, "_is_hf_initialized", False) for value in values):
                continue
            if not hasattr(part, "reset_parameters"):
                raise ValueError(
                    f"The file has no weights for {name} of the backbone "
                    f"{self.backbone.config.backbone!r} of timm, and "
                    "there is no way to initialize it. Build the model from its configuration "
                    "and load the file by "
                    "load_state_dict(strict=False)."
                )
            part.reset_parameters()

    def _read(self, patches: ImagePatches) -> torch.Tensor:
        """The cell of each patch, `(B, N, F)`."""
        if patches.image is not None:
            return self._map(patches.image)
        try:
            images = patches.to_images()
        except ValueError as error:
            raise ValueError(
                f"{error} The CNN of a hybrid (backbone_config) reads whole images, so the image "
                "processor must not "
                "select patches: leave out its patch_selector, and let the model select."
            ) from error
        raster = raster_indices(patches.coordinates, patches.grid)  # (B, N)
        if patches.mask is not None:
            raster = raster.masked_fill(~patches.mask, 0)
        # One by one, as they may differ in size.
        return torch.stack(
            [self._map(image[None])[0][cells] for image, cells in zip(images, raster, strict=True)]
        )

    def _map(self, images: torch.Tensor) -> torch.Tensor:
        """Cells `(B, R*S, F)` of images `(B, C, R*P, S*P)`."""
        cells = self.backbone(images.to(self.projection.weight.dtype)).feature_maps[-1]  # (B, F, R, S)
        height, width = images.shape[-2:]
        expected = (height // self.patch_size[0], width // self.patch_size[1])
        if tuple(cells.shape[-2:]) != expected:
            self._refuse((height, width), tuple(cells.shape[-2:]), expected)
        return cells.flatten(2).transpose(1, 2)

    def _refuse(self, size: tuple[int, int], got: tuple[int, int], expected: tuple[int, int]) -> None:
        # Strides of CNNs are powers of two, and a map may have a cell more or less than fit.
        strides = [2 ** round(math.log2(side / cells)) for side, cells in zip(size, got, strict=True)]
        stride = strides[0] if strides[0] == strides[1] else strides
        remedy = f"set patch_size={stride}"
        if tuple(strides) == self.patch_size:
            remedy = (
                "give it padding that keeps the border (for BiT global_padding='same' and "
                "embedding_dynamic_padding=True)"
            )
        raise ValueError(
            f"The feature map of the backbone has {got[0]}x{got[1]} cells for an image of "
            f"{size[0]}x{size[1]} pixels, a "
            f"stride of {stride}, and patch_size={self.patch_size} needs "
            f"{expected[0]}x{expected[1]}: {remedy}, or choose "
            "another stage as the last of out_features in backbone_config."
        )


PATCH_EMBEDDINGS: dict[str, type[nn.Module]] = {
    "linear": PatchEmbeddings,
    "convolutional": ConvolutionalPatchEmbeddings,
}
