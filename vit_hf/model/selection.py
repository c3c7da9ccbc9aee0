"""Before the encoder: score N patches, keep K of them. Shape legend: `tokens.py`.

A pixel heuristic is one function and one line in `PIXEL_SCORERS` (`pixel_scorers.py`). Any other selector is one
class and one line in `PATCH_SELECTORS`. The highest scores are kept.
"""

import torch

from .patches import ImagePatches
from .pixel_scorers import PIXEL_SCORERS, pixel_scores
from .selection_attention import AttentionSelector, DistilledSelector
from .selection_base import PatchSelector, Scout
from .selection_perturbed import PerturbedSelector
from .selection_policy import PolicySelector


class PixelSelector(PatchSelector):
    """A heuristic of `PIXEL_SCORERS`."""

    def __init__(self, config):
        super().__init__(config)
        self.name = config.patch_selector
        self.seed = config.random_selector_seed

    def score(self, patches: ImagePatches, num_selected: int | torch.Tensor, scout: Scout) -> torch.Tensor:
        return pixel_scores(self.name, patches, num_selected, None if self.training else self.seed)


PATCH_SELECTORS: dict[str, type[PatchSelector]] = {
    **dict.fromkeys(PIXEL_SCORERS, PixelSelector),
    "attention": AttentionSelector,
    "distilled": DistilledSelector,
    "policy": PolicySelector,
    "perturbed": PerturbedSelector,
}
