"""Before the encoder: score N patches, keep K of them. Shape legend: `tokens.py`.

A pixel heuristic is one function and one line in `PIXEL_SCORERS` (`pixel_scorers.py`). Any other selector is one
class and one line in `PATCH_SELECTORS`. The highest scores are kept.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import nn

from .patches import ImagePatches, to_pair
from .pixel_scorers import PIXEL_SCORERS, pixel_scores
from .positions import interpolation_weights


# Runs the model's first blocks on thumbnails (B, C, h, w) and returns the CLS row of the attention, averaged
# over heads, as (B, rows, columns) of the thumbnail's grid.
Scout = Callable[[torch.Tensor, int], torch.Tensor]


def resolve_num_selected(num_selected: int | float | None, num_patches: int) -> int:
    """How many of `num_patches` patches `num_selected` asks for: all (None), a number (int) or a share (float).

    Raises:
        ValueError: if a number lies outside 1..num_patches, or a share outside (0, 1].
    """
    if num_selected is None:
        return num_patches
    if isinstance(num_selected, float):
        if not 0 < num_selected <= 1:
            raise ValueError(
                f"num_selected_patches={num_selected} as a float is a share and must lie in (0, 1]."
            )
        return max(1, round(num_selected * num_patches))
    if not 1 <= num_selected <= num_patches:
        raise ValueError(
            f"num_selected_patches={num_selected} does not fit an image of {num_patches} patches: it must be a whole "
            f"number from 1 to {num_patches}, or a share in (0, 1]. Lower it, or give larger images."
        )
    return num_selected


def keep_top(
    scores: torch.Tensor, num_selected: int, counts: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Indices `(B, K)` int64, ascending, of the highest of `scores` `(B, N)`, and which of them count.

    Ties go to the lower index, on every device and in every batch: flat regions tie often.

    Args:
        scores: patches that are padding must score minus infinity.
        num_selected: K.
        counts: `(B,)` how many an image really keeps, where that may be fewer than K; the rest is padding at the
            end, index 0, and False in the returned mask `(B, K)`. None: every image keeps K, and there is no mask.
    """
    order = scores.argsort(dim=-1, descending=True, stable=True)[:, :num_selected]
    if counts is None:
        return order.sort(dim=-1).values, None
    mask = torch.arange(num_selected, device=scores.device) < counts[:, None]
    order = order.masked_fill(~mask, scores.shape[1]).sort(dim=-1).values  # padding sorts last
    return order.masked_fill(~mask, 0), mask


class PatchSelector(nn.Module, ABC):
    """Scores every patch of an image; the highest are kept."""

    def __init__(self, config):
        super().__init__()

    @abstractmethod
    def score(self, patches: ImagePatches, num_selected: int | torch.Tensor, scout: Scout) -> torch.Tensor:
        """Scores `(B, N)` float32.

        Args:
            patches: all patches of the batch, and the images if there are any.
            num_selected: K, how many will be kept; `(B,)` if images keep different numbers.
            scout: runs the model's own first blocks on thumbnails.
        """


class PixelSelector(PatchSelector):
    """A heuristic of `PIXEL_SCORERS`."""

    def __init__(self, config):
        super().__init__(config)
        self.name = config.patch_selector
        self.seed = config.random_selector_seed

    def score(self, patches: ImagePatches, num_selected: int | torch.Tensor, scout: Scout) -> torch.Tensor:
        return pixel_scores(self.name, patches, num_selected, None if self.training else self.seed)


class AttentionSelector(PatchSelector):
    """The model's own attention in a scout pass: where does the CLS token look in a thumbnail?

    The first `scout_num_layers` blocks see the image resized to `scout_image_size`; the CLS row of the last of
    them, averaged over heads, is interpolated to the full grid. In training the pass has the model's dropout, if any.
    In the spirit of LookWhere (2025), without its training.
    """

    def __init__(self, config):
        super().__init__(config)
        self.num_layers = config.scout_num_layers
        self.size = to_pair(config.scout_image_size or config.image_size)

    def score(self, patches: ImagePatches, num_selected: int | torch.Tensor, scout: Scout) -> torch.Tensor:
        if patches.image is not None:
            thumbnails = self._resize(patches.image)
        else:
            thumbnails = torch.cat([self._resize(image[None]) for image in patches.to_images()])
        attention = scout(thumbnails, self.num_layers).float()  # (B, r, s)
        # Bilinear sampling at the patches' coordinates, whatever the grid of each image.
        weights = interpolation_weights(patches.coordinates, patches.grid, attention.shape[1:], "linear")
        return (weights @ attention.flatten(1).unsqueeze(-1).to(weights.device)).squeeze(-1)

    def _resize(self, images: torch.Tensor) -> torch.Tensor:
        if images.shape[-2:] == self.size:
            return images
        # In float32, since half precision has no such kernel on a CPU; the embedding casts back.
        return nn.functional.interpolate(images.float(), self.size, mode="bilinear", antialias=True)


PATCH_SELECTORS: dict[str, type[PatchSelector]] = {
    **dict.fromkeys(PIXEL_SCORERS, PixelSelector),
    "attention": AttentionSelector,
}
