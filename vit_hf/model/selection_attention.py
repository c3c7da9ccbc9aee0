"""Selection by what the model itself finds in a thumbnail. Shape legend: `tokens.py`."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from huggingface_hub.dataclasses import strict
from torch import nn

from .axes import check_thumbnail, patch_sides, thumbnail_sides
from .options import check_range
from .patches import ImagePatches
from .selection_base import PatchSelector, Scout, SelectorOptions, check_cls_for_selector


def read_map(values: torch.Tensor, patches: ImagePatches) -> torch.Tensor:
    """A map `(B, r, c)` over the images, read bilinearly at the patches' places, `(B, N)`, whatever their grids.

    One `(B, f, r, c)` over videos is read trilinearly.
    """
    # In [-1, 1] from border to border, column first, as grid_sample wants it.
    places = ((patches.coordinates + 0.5) / patches.grid.unsqueeze(1) * 2 - 1).flip(-1)
    for _ in range(patches.num_axes - 1):
        places = places.unsqueeze(1)
    read = nn.functional.grid_sample(
        values.unsqueeze(1).float(), places, padding_mode="border", align_corners=False
    )  # (B, 1, 1, N)
    return read.flatten(1).to(values.dtype)


def small_images(patches: ImagePatches, size: tuple[int, ...]) -> ImagePatches:
    """The images resized to `size`, as images of their own: positions are those the model knows at that size."""
    thumbnails = patches.thumbnail_patches(size)
    return ImagePatches.from_images(thumbnails.image, patches.patch_size)


@strict
@dataclass(kw_only=True)
class ScoutOptions(SelectorOptions):
    """Options of selectors that send a thumbnail through the model's own first blocks.

    Args:
        num_layers: blocks that the thumbnail goes through.
        thumbnail_size: pixels of a side of the thumbnail, (height, width), or of a video (frames, height,
            width); by default `image_size`.
    """

    num_layers: int = 3
    thumbnail_size: int | list[int] | tuple[int, ...] | None = None


@strict
@dataclass(kw_only=True)
class AttentionOptions(ScoutOptions):
    """Options of `"attention"`.

    Args:
        reduction: how heads and blocks make a score: "mean" or "max" over heads of the CLS attention of the
            last scout block, or "rollout", attention rollout through all of them.
    """

    reduction: Literal["mean", "max", "rollout"] = "mean"


@strict
@dataclass(kw_only=True)
class DistilledOptions(ScoutOptions):
    """Options of `"distilled"`.

    Args:
        loss_weight: weight of the selector's loss, as in LookWhere (2025).
        batch_fraction: fraction in (0, 1] of a batch that this loss is computed on, for each image of which
            training pays a dense forward pass.
    """

    loss_weight: float | int = 0.1
    batch_fraction: float | int = 1.0

    def __post_init__(self):
        super().__post_init__()
        check_range(self, "loss_weight", "0 or more", 0 <= self.loss_weight < math.inf)
        check_range(self, "batch_fraction", "in (0, 1]", 0 < self.batch_fraction <= 1)


def check_scout(config, options: ScoutOptions) -> None:
    """Raises: ValueError if the scout pass does not fit the model."""
    check_cls_for_selector(config)
    if not 1 <= options.num_layers <= config.num_hidden_layers:
        raise ValueError(
            f"num_layers={options.num_layers} of the scout pass must lie between 1 and "
            f"num_hidden_layers={config.num_hidden_layers}."
        )
    check_thumbnail(config, "thumbnail_size", options.thumbnail_size, patch_sides(config))


class AttentionSelector(PatchSelector):
    """The model's own attention in a scout pass: where does the CLS token look in a thumbnail?

    The first `num_layers` blocks see the image resized to `thumbnail_size`; what CLS attends to is
    interpolated to the full grid. In training the pass has the model's dropout, if any.
    In the spirit of LookWhere (2025), without its training.
    """

    Options = AttentionOptions

    def __init__(self, config):
        super().__init__(config)
        self.num_layers = self.options.num_layers
        self.reduction = self.options.reduction
        self.size = thumbnail_sides(config, self.options.thumbnail_size)

    @classmethod
    def check(cls, config, options: Options) -> None:
        check_scout(config, options)

    def score(self, patches: ImagePatches, num_selected: int | torch.Tensor, scout: Scout) -> torch.Tensor:
        thumbnails = small_images(patches, self.size)
        attention = scout.attention(thumbnails, self.num_layers, self.reduction).float()
        return read_map(attention.unflatten(1, thumbnails.full_grid), patches)


class DistilledSelector(PatchSelector):
    """Learns to foresee, from a thumbnail, what the model's last block would attend to in the whole image.

    Scores are those of a small network on the hidden states of the scout pass, `2 x 2` for each patch of the
    thumbnail; the loss is the divergence of their softmax from the CLS attention of a dense pass over the
    image, which costs training what a dense forward costs. After LookWhere (2025), whose scout is a copy of the
    first blocks that learns with it; here the blocks are the model's own and do not learn from this loss.
    """

    Options = DistilledOptions
    detail = 2

    def __init__(self, config):
        super().__init__(config)
        self.num_layers = self.options.num_layers
        self.last_layer = config.num_hidden_layers
        self.size = thumbnail_sides(config, self.options.thumbnail_size)
        self.weight = self.options.loss_weight
        self.share = self.options.batch_fraction
        self.norm = nn.LayerNorm(config.hidden_size)
        self.hidden = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = nn.GELU()
        self.output = nn.Linear(config.hidden_size, self.detail**2)

    @classmethod
    def check(cls, config, options: Options) -> None:
        check_scout(config, options)

    def score(self, patches: ImagePatches, num_selected: int | torch.Tensor, scout: Scout) -> torch.Tensor:
        thumbnails = small_images(patches, self.size)
        features = scout.features(thumbnails, self.num_layers)
        scores = self.output(self.activation(self.hidden(self.norm(features)))).float()  # (B, n, detail^2)
        scores = scores.transpose(1, 2).unflatten(2, thumbnails.full_grid)  # (B, detail^2, r, c)
        # Of a video a tubelet is one in time.
        detailed = nn.functional.pixel_shuffle(scores.movedim(1, -3), self.detail)
        return read_map(detailed.squeeze(-3), patches)

    def loss(self, patches: ImagePatches, scores: torch.Tensor, scout: Scout) -> torch.Tensor | None:
        if not self.weight:
            return None
        number = math.ceil(self.share * len(scores))
        patches, scores = patches.first(number), scores[:number]
        target = scout.attention(patches, self.last_layer, "mean").float()
        absent = scores == -torch.inf
        target = target.masked_fill(absent, 0)
        target = target / target.sum(dim=-1, keepdim=True)
        log_scores = scores.log_softmax(dim=-1).masked_fill(absent, 0)
        divergence = torch.xlogy(target, target) - target * log_scores
        return self.weight * divergence.sum(dim=-1).mean()
