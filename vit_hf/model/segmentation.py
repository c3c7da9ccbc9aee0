"""Semantic segmentation: from feature maps to a class for every place. L classes."""

from dataclasses import dataclass

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import initialization as init

from .layers import Initialized
from .options import Options, read_options


@strict
@dataclass(kw_only=True)
class SegmentationOptions(Options):
    """Options of every decoder.

    Args:
        ignore_index: label of pixels that do not count in the loss.
    """

    ignore_index: int = 255


def read_segmentation_options(config) -> SegmentationOptions:
    """Options of `config.segmentation_decoder`."""
    return read_options(SegmentationOptions, "segmentation_decoder", config.segmentation_decoder)


class LinearDecoder(nn.Module):
    """A linear classifier on each patch, `(B, L, R, S)`: the linear decoder of Segmenter (Strudel et al.,
    2021)."""

    def __init__(self, config):
        super().__init__()
        self.classifier = nn.Conv2d(config.hidden_size, config.num_labels, kernel_size=1)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Logits of feature maps `(B, D, R, S)`."""
        return self.classifier(maps)


class Upsampling(Initialized, nn.ConvTranspose2d):
    """A transposed convolution that makes 2x2 places of one."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, kernel_size=2, stride=2)

    def reset_parameters(self, std: float | None = None) -> None:
        if std is None:  # called by the constructor of torch
            super(Initialized, self).reset_parameters()
            return
        # From few channels, a deviation of `initializer_range` would leave hardly anything of a map.
        init.normal_(self.weight, std=(2 / self.in_channels) ** 0.5)


class ConvolutionalDecoder(nn.Module):
    """Two transposed convolutions, one that looks across the borders of patches, and a classifier, `(B, L,
    4R, 4S)`.

    In the manner of the progressive upsampling of SETR (Zheng et al., 2021), with the transposed convolutions
    by which ViTDet (Li et al., 2022) makes finer maps of a plain ViT's.
    """

    def __init__(self, config):
        super().__init__()
        half, quarter = max(1, config.hidden_size // 2), max(1, config.hidden_size // 4)
        self.upsampling = nn.Sequential(
            Upsampling(config.hidden_size, half), nn.GELU(), Upsampling(half, quarter), nn.GELU()
        )
        self.fuse = nn.Sequential(nn.Conv2d(quarter, quarter, kernel_size=3, padding=1), nn.GELU())
        self.classifier = nn.Conv2d(quarter, config.num_labels, kernel_size=1)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Logits of feature maps `(B, D, R, S)`."""
        return self.classifier(self.fuse(self.upsampling(maps)))


SEGMENTATION_DECODERS: dict[str, type[nn.Module]] = {
    "linear": LinearDecoder,
    "convolutional": ConvolutionalDecoder,
}


def crop_labels(
    labels: torch.Tensor, grid: tuple[int, int], patch_size: tuple[int, int], num_labels: int, ignored: int
) -> torch.Tensor:
    """Labels `(B, H, W)` without what is beyond whole patches, `(B, R*P, S*P)`.

    Args:
        grid: R and S.
        ignored: label of pixels that do not count.

    Raises:
        ValueError: if they do not fit the images, or are none of the classes.
    """
    covered = tuple(count * side for count, side in zip(grid, patch_size, strict=True))
    excess = [size - needed for size, needed in zip(labels.shape[-2:], covered, strict=True)]
    if labels.ndim != 3 or not all(0 <= more < side for more, side in zip(excess, patch_size, strict=True)):
        raise ValueError(
            f"labels have the shape {tuple(labels.shape)} and must be (B, H, W) of the images, "
            "whose patches cover "
            f"{covered[0]}x{covered[1]} pixels. Resize masks, by nearest neighbors, as the images "
            "are resized."
        )
    labels = labels[:, : covered[0], : covered[1]].long()
    if not torch.compiler.is_compiling():
        wrong = (labels != ignored) & ((labels < 0) | (labels >= max(2, num_labels)))
        if wrong.any():
            raise ValueError(
                f"Label {labels[wrong][0].item()} is outside 0..{max(2, num_labels) - 1} "
                f"({ignored} marks pixels to "
                f"ignore). The model has num_labels={num_labels}: set it when loading, or mend the masks."
            )
    return labels


def segmentation_loss_per_image(
    labels: torch.Tensor, logits: torch.Tensor, ignored: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum of the losses `(B,)` of the pixels that count, and their number `(B,)`.

    Logits `(B, L, h, w)` are resized to the labels `(B, H, W)` bilinearly, as in transformers' SegFormer. A
    single class is a yes or a no.
    """
    logits = nn.functional.interpolate(
        logits.float(), size=labels.shape[-2:], mode="bilinear", align_corners=False
    )
    counting = labels != ignored
    if logits.shape[1] == 1:
        targets = labels.masked_fill(~counting, 0).float()
        losses = nn.functional.binary_cross_entropy_with_logits(logits[:, 0], targets, reduction="none")
        losses = losses * counting
    else:
        losses = nn.functional.cross_entropy(logits, labels, ignore_index=ignored, reduction="none")
    return losses.sum(dim=(1, 2)), counting.sum(dim=(1, 2))
