"""Before the encoder: score N patches, keep K of them. Shape legend: `tokens.py`.

A pixel heuristic is one function and one line in `PIXEL_SCORERS` (`pixel_scorers.py`). Any other selector is one
class and one line in `PATCH_SELECTORS`. The highest scores are kept.
"""

from dataclasses import dataclass

import torch
from huggingface_hub.dataclasses import strict

from .options import Options, type_of
from .patches import ImagePatches
from .pixel_scorers import (
    LOCAL_SCORERS,
    PIXEL_SCORERS,
    VOLUME_SCORERS,
    RandomOptions,
    check_scorer,
    pixel_scores,
)
from .selection_attention import AttentionSelector, DistilledSelector
from .selection_base import PatchSelector, Scout, Selection, SelectorOptions
from .selection_cross_attention import CrossAttentionSelector
from .selection_perturbed import PerturbedSelector
from .selection_policy import PolicySelector


class PixelSelector(PatchSelector):
    """A heuristic of `PIXEL_SCORERS` or `VOLUME_SCORERS`."""

    def __init__(self, config):
        super().__init__(config)
        self.name = type_of(config.patch_selector)
        self.sees_one_patch = self.name in LOCAL_SCORERS
        self.uses_number = self.name == "uniform"
        self.seed = getattr(self.options, "seed", 0)

    @classmethod
    def check(cls, config, options: Options) -> None:
        check_scorer(type_of(config.patch_selector), config)

    def score(self, patches: ImagePatches, num_selected: int | torch.Tensor, scout: Scout) -> torch.Tensor:
        return pixel_scores(self.name, patches, num_selected, self.seed)


@strict
@dataclass(kw_only=True)
class RandomSelectorOptions(RandomOptions, SelectorOptions):
    """Options of `"random"` in the model."""


class RandomSelector(PixelSelector):
    """Random patches: fixed per image in evaluation, fresh in training."""

    Options = RandomSelectorOptions

    def select(
        self, scores: torch.Tensor, num_selected: int, counts: torch.Tensor | None, sample: bool
    ) -> Selection:
        if sample:
            scores = torch.rand_like(scores).masked_fill(scores == -torch.inf, -torch.inf)
        return super().select(scores, num_selected, counts, sample)


PATCH_SELECTORS: dict[str, type[PatchSelector]] = {
    **dict.fromkeys(PIXEL_SCORERS, PixelSelector),
    "random": RandomSelector,
    "attention": AttentionSelector,
    "distilled": DistilledSelector,
    "policy": PolicySelector,
    "perturbed": PerturbedSelector,
    "cross_attention": CrossAttentionSelector,
}
# For videos and volumes alone.
VOLUME_SELECTORS: dict[str, type[PatchSelector]] = dict.fromkeys(VOLUME_SCORERS, PixelSelector)
