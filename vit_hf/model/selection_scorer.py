"""A small network that scores patches from a thumbnail. Shape legend: `tokens.py`."""

import torch
from torch import nn

from .axes import has_frames, scorer_sides
from .patches import ImagePatches
from .selection_attention import read_map


class ThumbnailScorer(nn.Module):
    """Patches of 4 pixels, a strided convolution, two residual ones and a global mean, on the image resized to
    `scorer_image_size`.

    Its map has an eighth of the thumbnail's side. Less than 1 % of the work of a ViT-B at 224 pixels.

    Of videos and volumes, of `num_frames` frames, it reads patches of `tubelet_size` frames, and has three axes
    throughout.
    """

    def __init__(self, config):
        super().__init__()
        self.size = scorer_sides(config)
        width = config.scorer_hidden_size
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
