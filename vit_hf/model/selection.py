"""Patch selection: how many patches to keep, keeping the best, and the interface of selectors."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from .patches import ImagePatches, PatchTokens, check_finite, move_fields


def resolve_num_selected(num_selected: int | float | None, num_patches: int) -> int:
    """Number of patches that a budget keeps of `num_patches`: all (None), a number (int) or a fraction (float).

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


def count_selected(
    patches: ImagePatches, budget: int | float, dense_fraction: float
) -> tuple[int, torch.Tensor | None]:
    """Numbers of patches that the batch keeps, K, and each image, `(B,)` or None if all keep K.

    Args:
        patches: all patches of the batch.
        budget: a number, or a share of each image's patches.
        dense_fraction: 0 for the budget, 1 for all patches, linear between.
    """
    if patches.is_whole:
        target = resolve_num_selected(budget, patches.num_patches)
        return target + round(dense_fraction * (patches.num_patches - target)), None
    # Where there may be fewer than K patches, the image processor says so by a mask.
    resolve_num_selected(budget, patches.num_patches if patches.mask is None else max(1, budget))
    present = patches.grid.prod(dim=1)  # (B,)
    target = (present.double() * budget).round().clamp(min=1).long() if isinstance(budget, float) else budget
    counts = target + ((present - target).clamp(min=0) * dense_fraction).round().long()
    if patches.mask is not None:
        counts = counts.minimum(patches.mask.sum(dim=1))
    if isinstance(budget, int) and dense_fraction == 0:
        return budget, None if patches.mask is None else counts
    return int(counts.max()), counts


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
    # By the lowest score that is kept: ONNX has no stable sort, and this is faster.
    best = scores.topk(num_selected, dim=-1).values  # (B, K)
    lowest, limit = best[:, -1:], num_selected
    if counts is not None:
        limit = counts[:, None]
        lowest = best.gather(1, (limit - 1).clamp(min=0))
    better, tied = ~(scores <= lowest), scores == lowest  # NaN is better than anything, as in sorting
    # An image may have a million patches: half the memory of int64, until few are left.
    rank = tied.cumsum(dim=-1, dtype=torch.int32)
    kept = better | (tied & (rank <= limit - better.sum(dim=-1, keepdim=True)))
    place = (kept.cumsum(dim=-1, dtype=torch.int32) - 1).masked_fill(~kept, num_selected)
    place = place.clamp(max=num_selected).long()
    index = torch.arange(scores.shape[1], device=scores.device).expand(scores.shape)
    indices = index.new_zeros(scores.shape[0], num_selected + 1).scatter(1, place, index)[:, :num_selected]
    if counts is None:
        return indices, None
    return indices, torch.arange(num_selected, device=scores.device) < limit


def explore(scores: torch.Tensor, share: float, counts: torch.Tensor) -> torch.Tensor:
    """Ranks `(B, N)` of which the first `counts` are the best patches but for a `share`, which is drawn at random.

    Args:
        scores: `(B, N)`, minus infinity for patches that are padding.
        share: of the kept patches.
        counts: `(B,)` how many an image keeps.
    """
    rank = scores.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    exploited = counts - (counts * share).round().long()
    drawn = torch.rand_like(scores, dtype=torch.float32).masked_fill(scores == -torch.inf, -torch.inf)
    return torch.where(rank < exploited[:, None], 1.0 + scores.shape[1] - rank, drawn)


@dataclass
class Selection:
    """Selected patches.

    Attributes:
        indices: `(B, K)` int64, ascending places among the N patches that were offered; None for all of them.
        mask: `(B, K)` bool, False where an image keeps fewer than the batch; None if all count.
        scores: `(B, N)`; None if nobody scored.
        weights: `(B, K, N)` float, where a patch that the encoder gets is a mean of several; None if it is one.
        log_prob: `(B,)` log-probability of a selection that was drawn, with gradient; None if it was not drawn.
        greedy: what would have been kept without drawing; None if nothing was drawn.
        loss: what the selector adds to the loss without knowing the answer; None for nothing.
    """

    indices: torch.Tensor | None
    mask: torch.Tensor | None = None
    scores: torch.Tensor | None = None
    weights: torch.Tensor | None = None
    log_prob: torch.Tensor | None = None
    greedy: "Selection | None" = None
    loss: torch.Tensor | None = None

    def to(self, device: torch.device, non_blocking: bool = False) -> "Selection":
        """Moves all tensors; accelerate calls this where a model is spread over several devices."""
        return move_fields(self, device, non_blocking)


class Probe(Protocol):
    """Passes through the model's own blocks, for selectors. No gradient reaches the model."""

    def attention(self, patches: ImagePatches, num_layers: int, reduction: str) -> torch.Tensor:
        """CLS attention `(B, N)` over `patches` in block `num_layers`; see `scout_reduction` of the configuration."""

    def features(self, patches: ImagePatches, num_layers: int) -> torch.Tensor:
        """Hidden states `(B, N, D)` of `patches` after `num_layers` blocks."""

    def embed(self, patches: ImagePatches) -> torch.Tensor:
        """Embeddings `(B, N, D)` of `patches` with their positions, each of one patch alone, without dropout."""


class PatchSelector(nn.Module, ABC):
    """Scores every patch of an image; the highest are kept."""

    # Whether a patch's score depends on its own pixels and place alone, so that bands of an image may be scored apart,
    # then without gradient; what learns from the task does so by `token_weights`.
    is_pointwise = False

    # Whether scores depend on how many will be kept, so that they are asked for again for another number.
    uses_number = True

    def __init__(self, config):
        super().__init__()
        self.exploration = config.exploration

    def forward(
        self,
        patches: ImagePatches,
        num_selected: int,
        counts: torch.Tensor | None,
        probe: Probe,
        sample: bool = False,
        learn: bool = False,
    ) -> Selection:
        """Scores all patches and keeps the best.

        Args:
            patches: all patches of the batch.
            num_selected: K, how many the batch keeps.
            counts: `(B,)` how many each image keeps; None if all keep K.
            probe: the model's own blocks.
            sample: whether chance may play a part, as it does in training.
            learn: whether to compute the selector's loss.

        Raises:
            ValueError: if `score` returned another shape, or scores that are not finite.
        """

        def score(patches: ImagePatches) -> torch.Tensor:
            return self.score(patches, num_selected if counts is None else counts, probe)

        scores = patches.score_chunked(score, num_selected) if self.is_pointwise else score(patches)
        self.check_scores(scores, patches)
        if patches.mask is not None:
            scores = scores.masked_fill(~patches.mask, -torch.inf)
        selection = self.select(scores, num_selected, counts, sample)
        if learn:
            selection.loss = self.loss(patches, scores, probe)
        return selection

    def check_scores(self, scores: torch.Tensor, patches: ImagePatches) -> None:
        """
        Raises:
            ValueError: if there is not one finite score for each patch.
        """
        if scores.shape != patches.coordinates.shape[:2]:
            raise ValueError(
                f"{type(self).__name__}.score returned the shape {tuple(scores.shape)}, and must give a score for "
                f"each patch, {tuple(patches.coordinates.shape[:2])}."
            )
        check_finite(scores, "pixel_values, or the weights of the patch selector,")

    @abstractmethod
    def score(self, patches: ImagePatches, num_selected: int | torch.Tensor, probe: Probe) -> torch.Tensor:
        """Scores `(B, N)` float32.

        Args:
            patches: all patches of the batch, and the images if there are any.
            num_selected: K, how many will be kept; `(B,)` if images keep different numbers.
            probe: the model's own blocks.
        """

    def select(
        self, scores: torch.Tensor, num_selected: int, counts: torch.Tensor | None, sample: bool
    ) -> Selection:
        """Keeps K patches by scores `(B, N)` in which padding has minus infinity; see `keep_top`.

        `sample` is whether chance may play a part, as it does while training.
        """
        ranks = scores
        if sample and self.exploration:
            same = scores.new_full(scores.shape[:1], num_selected, dtype=torch.long)
            ranks = explore(scores, self.exploration, same if counts is None else counts)
        indices, mask = keep_top(ranks, num_selected, counts)
        return Selection(indices, mask, scores)

    def token_weights(self, tokens: PatchTokens) -> torch.Tensor | None:
        """Weights `(B, K)` of the kept patches in the encoder's attention and in pooling, 0 or more; None for 1 each.

        Args:
            tokens: embeddings `(B, K, D)` of what was kept, with positions and a gradient.
        """
        return None

    def loss(self, patches: ImagePatches, scores: torch.Tensor, probe: Probe) -> torch.Tensor | None:
        """Loss that training adds, given the patches and their scores; None for none."""
        return None
