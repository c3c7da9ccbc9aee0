"""A small network that scores patches from a thumbnail. Shape legend: `tokens.py`."""

import torch
from torch import nn

from .patches import ImagePatches, to_pair
from .selection_attention import read_map


class ThumbnailScorer(nn.Module):
    """Patches of 4 pixels, a strided convolution, two residual ones and a global mean, on the image resized to
    `scorer_image_size`.

    Its map has an eighth of the thumbnail's side. Less than 1 % of the work of a ViT-B at 224 pixels.
    """

    def __init__(self, config):
        super().__init__()
        self.size = to_pair(config.scorer_image_size or config.image_size)
        width = config.scorer_hidden_size
        self.stem = nn.ModuleList(
            [
                nn.Conv2d(config.num_channels, width, kernel_size=4, stride=4),
                nn.Conv2d(width, width, kernel_size=3, stride=2, padding=1),
            ]
        )
        self.body = nn.ModuleList(nn.Conv2d(width, width, kernel_size=3, padding=1) for _ in range(2))
        # One group: statistics of one image alone, so that its scores do not depend on the batch.
        self.norms = nn.ModuleList(nn.GroupNorm(1, layer.out_channels) for layer in [*self.stem, *self.body])
        self.context = nn.Linear(width, width)
        self.activation = nn.GELU()
        # No bias: what is added to every score changes no choice.
        self.output = nn.Conv2d(width, 1, kernel_size=1, bias=False)

    def forward(self, patches: ImagePatches) -> torch.Tensor:
        """Raw scores `(B, N)` float32 of all patches."""
        states = patches.thumbnails(self.size).to(self.output.weight.dtype)
        for index, (layer, norm) in enumerate(zip([*self.stem, *self.body], self.norms, strict=True)):
            out = self.activation(norm(layer(states)))
            states = out if index < len(self.stem) else states + out
        states = states + self.context(states.mean(dim=(2, 3)))[:, :, None, None]
        return read_map(self.output(self.activation(states)).squeeze(1).float(), patches)
