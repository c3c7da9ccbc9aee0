"""A small network that scores patches from a thumbnail. Shape legend: `tokens.py`."""

from dataclasses import dataclass

import torch
from huggingface_hub.dataclasses import strict
from torch import nn

from .axes import check_thumbnail, has_frames, native_sides, thumbnail_sides
from .options import Options, check_positive
from .patches import ImagePatches
from .selection_attention import read_map


@strict
@dataclass(kw_only=True)
class ScorerOptions(Options):
    """Options of the network that scores a thumbnail.

    Args:
        thumbnail_size: pixels of a side of the thumbnail, (height, width), or of a video (frames, height,
            width); by default `image_size`.
        hidden_size: channels of the network.
    """

    thumbnail_size: int | list[int] | tuple[int, ...] | None = None
    hidden_size: int = 64

    def __post_init__(self):
        check_positive(self, "hidden_size")


def check_scorer_size(config, options: ScorerOptions) -> None:
    """Raises: ValueError for a thumbnail that is too small for the network."""
    least = [1] * len(native_sides(config))
    least[-2:] = 4, 4
    if has_frames(config):
        least[0] = config.tubelet_size
    check_thumbnail(config, "thumbnail_size", options.thumbnail_size, tuple(least))


class ThumbnailScorer(nn.Module):
    """Patches of 4 pixels, a strided convolution, two residual ones and a global mean, on the image resized to
    `thumbnail_size`.

    Its map has an eighth of the thumbnail's side. Less than 1 % of the work of a ViT-B at 224 pixels.

    For videos and volumes it reads patches of `tubelet_size` frames, and has three axes throughout.
    """

    def __init__(self, config, options: ScorerOptions):
        super().__init__()
        self.size = thumbnail_sides(config, options.thumbnail_size)
        if has_frames(config):  # whole tubelets
            frames, *sides = self.size
            self.size = (frames - frames % config.tubelet_size, *sides)
        width = options.hidden_size
        convolution, first, stride = nn.Conv2d, (4, 4), (2, 2)
        if has_frames(config):
            convolution, first, stride = nn.Conv3d, (config.tubelet_size, 4, 4), (1, 2, 2)
        self.stem = nn.ModuleList(
            [
                convolution(config.num_channels, width, kernel_size=first, stride=first),
                convolution(width, width, kernel_size=3, stride=stride, padding=1),
            ]
        )
        self.body = nn.ModuleList(convolution(width, width, kernel_size=3, padding=1) for _ in range(2))
        # One group: statistics of one image alone, so that its scores do not depend on the batch.
        self.norms = nn.ModuleList(nn.GroupNorm(1, layer.out_channels) for layer in [*self.stem, *self.body])
        self.context = nn.Linear(width, width)
        self.activation = nn.GELU()
        # No bias: what is added to every score changes no choice.
        self.output = convolution(width, 1, kernel_size=1, bias=False)

    def forward(self, patches: ImagePatches) -> torch.Tensor:
        """Raw scores `(B, N)` float32 of all patches."""
        states = patches.thumbnails(self.size).to(self.output.weight.dtype)
        for index, (layer, norm) in enumerate(zip([*self.stem, *self.body], self.norms, strict=True)):
            out = self.activation(norm(layer(states)))
            states = out if index < len(self.stem) else states + out
        context = self.context(states.mean(dim=tuple(range(2, states.ndim))))
        states = states + context.view(*context.shape, *[1] * (states.ndim - 2))
        return read_map(self.output(self.activation(states)).squeeze(1).float(), patches)
