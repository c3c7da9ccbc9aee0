"""What every patch selector shares: keeping the highest scores, and the interface. Shape legend: `tokens.py`."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from huggingface_hub.dataclasses import strict
from torch import nn

from .budget import Budget
from .options import Options, check_range, read_options, type_of
from .patches import ImagePatches
from .tokens import PatchTokens, gather_tokens, raster_indices


def count_selected(
    patches: ImagePatches, wanted: int | float, relaxation: float
) -> tuple[int, torch.Tensor | None]:
    """How many patches the batch keeps, and each image of it: K, and `(B,)` or None if all keep K.

    Args:
        patches: all patches of the batch.
        wanted: see `num_selected_patches`.
        relaxation: 0 for what is wanted, 1 for all patches, linear between.
    """
    budget = Budget(wanted)
    if patches.is_whole:
        target = budget.resolve(patches.num_patches)
        return target + round(relaxation * (patches.num_patches - target)), None
    if patches.mask is None:  # where there may be fewer than K patches, the image processor says so by a mask
        budget.resolve(patches.num_patches)
    present = patches.grid.prod(dim=1)  # (B,)
    target = wanted
    if budget.is_fraction:
        target = (present.double() * wanted).round().clamp(min=1).long()
    counts = target + ((present - target).clamp(min=0) * relaxation).round().long()
    if patches.mask is not None:
        counts = counts.minimum(patches.mask.sum(dim=1))
    if not budget.is_fraction and relaxation == 0:
        return wanted, None if patches.mask is None else counts
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
    lowest, wanted = best[:, -1:], num_selected
    if counts is not None:
        wanted = counts[:, None]
        lowest = best.gather(1, (wanted - 1).clamp(min=0))
    better, tied = ~(scores <= lowest), scores == lowest  # NaN is better than anything, as in sorting
    # An image may have a million patches: half the memory of int64, until few are left.
    rank = tied.cumsum(dim=-1, dtype=torch.int32)
    kept = better | (tied & (rank <= wanted - better.sum(dim=-1, keepdim=True)))
    place = (kept.cumsum(dim=-1, dtype=torch.int32) - 1).masked_fill(~kept, num_selected)
    place = place.clamp(max=num_selected).long()
    index = torch.arange(scores.shape[1], device=scores.device).expand(scores.shape)
    indices = index.new_zeros(scores.shape[0], num_selected + 1).scatter(1, place, index)[:, :num_selected]
    if counts is None:
        return indices, None
    return indices, torch.arange(num_selected, device=scores.device) < wanted


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
    """Which patches the encoder gets.

    Attributes:
        indices: `(B, K)` int64, ascending places among the N patches that were offered; None for all of them.
        mask: `(B, K)` bool, False where an image keeps fewer than the batch; None if all count.
        scores: `(B, N)`; None if nobody scored.
        weights: `(B, K, N)` float, where a patch that the encoder gets is a mean of several; None if it is one.
        log_prob: `(B,)` log-probability of a selection that was drawn, with gradient; None if it was not drawn.
        favourites: what would have been kept without drawing; None if nothing was drawn.
        loss: what the selector adds to the loss without knowing the answer; None for nothing.
    """

    indices: torch.Tensor | None
    mask: torch.Tensor | None = None
    scores: torch.Tensor | None = None
    weights: torch.Tensor | None = None
    log_prob: torch.Tensor | None = None
    favourites: "Selection | None" = None
    loss: torch.Tensor | None = None

    def raster_indices(self, patches: ImagePatches) -> torch.Tensor:
        """`(B, K)` int64 raster indices in each image's full grid, -1 for none."""
        coordinates = patches.coordinates
        if self.indices is not None:
            coordinates = gather_tokens(coordinates, self.indices)
        raster = raster_indices(coordinates, patches.grid)
        return raster if self.mask is None else raster.masked_fill(~self.mask, -1)


class Scout(Protocol):
    """The model's own blocks, at the service of a selector. No gradient reaches the model."""

    def attention(self, patches: ImagePatches, num_layers: int, reduction: str) -> torch.Tensor:
        """CLS attention `(B, N)` over `patches` in block `num_layers`; see `AttentionOptions`."""

    def features(self, patches: ImagePatches, num_layers: int) -> torch.Tensor:
        """Hidden states `(B, N, D)` of `patches` after `num_layers` blocks."""

    def embed(self, patches: ImagePatches) -> torch.Tensor:
        """Embeddings `(B, N, D)` of `patches` with their positions, each of one patch alone, without dropout."""


@strict
@dataclass(kw_only=True)
class SelectorOptions(Options):
    """Options of every selector whose choice is not random while training anyway.

    Args:
        exploration: fraction in [0, 1] of the kept patches that are random while training.
    """

    exploration: float | int = 0.0

    def __post_init__(self):
        check_range(self, "exploration", "a fraction in [0, 1]", 0 <= self.exploration <= 1)


class PatchSelector(nn.Module, ABC):
    """Scores every patch of an image; the highest are kept."""

    # Whether a patch's score depends on its own pixels and place alone, so that bands of an image may be scored apart,
    # then without gradient; what learns from the task does so by `weigh`.
    sees_one_patch = False

    # Whether scores depend on how many will be kept, so that they are asked for again for another number.
    uses_number = True

    # Weight of the policy gradient of a selection that was drawn, beside the loss of the task.
    policy_loss_weight = 1.0

    # Dataclass of the options that `patch_selector={"type": ..., ...}` may give.
    Options: ClassVar[type] = SelectorOptions

    def __init__(self, config):
        """Reads the options from `config.patch_selector`."""
        super().__init__()
        self.options = read_options(self.Options, "patch_selector", config.patch_selector)
        self.exploration = getattr(self.options, "exploration", 0.0)

    @classmethod
    def check(cls, config, options: Options) -> None:
        """Raises: ValueError if the selector or its options do not fit the rest of the configuration."""

    @abstractmethod
    def score(self, patches: ImagePatches, num_selected: int | torch.Tensor, scout: Scout) -> torch.Tensor:
        """Scores `(B, N)` float32.

        Args:
            patches: all patches of the batch, and the images if there are any.
            num_selected: K, how many will be kept; `(B,)` if images keep different numbers.
            scout: the model's own blocks.
        """

    def select(
        self, scores: torch.Tensor, num_selected: int, counts: torch.Tensor | None, sample: bool
    ) -> Selection:
        """Keeps K patches by scores `(B, N)` in which padding has minus infinity; see `keep_top`.

        `sample` is whether chance may play a part, as it does while training.
        """
        ranks = scores
        if sample and self.exploration:
            wanted = scores.new_full(scores.shape[:1], num_selected, dtype=torch.long)
            ranks = explore(scores, self.exploration, wanted if counts is None else counts)
        indices, mask = keep_top(ranks, num_selected, counts)
        return Selection(indices, mask, scores)

    def weigh(self, tokens: PatchTokens) -> torch.Tensor | None:
        """Weights `(B, K)` of the kept patches in the encoder's attention and in pooling, 0 or more; None for 1 each.

        Args:
            tokens: embeddings `(B, K, D)` of what was kept, with positions and a gradient.
        """
        return None

    def loss(self, patches: ImagePatches, scores: torch.Tensor, scout: Scout) -> torch.Tensor | None:
        """What training adds to the loss, given the patches and their scores; None for nothing."""
        return None


def check_cls_for_selector(config) -> None:
    """Checks that there is a CLS token for a selector that asks what it attends to.

    Raises:
        ValueError: if there is none.
    """
    if not config.use_cls_token:
        raise ValueError(
            f"patch_selector={type_of(config.patch_selector)!r} needs the CLS token, which use_cls_token=False leaves out: "
            "choose another."
        )
