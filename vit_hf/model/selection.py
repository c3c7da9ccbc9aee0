"""Patch selection: the number of patches to keep, keeping the best, the interface of selectors, and the pass
through the model's first blocks for selectors that score by attention.
"""

import copy
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers.utils.output_capturing import capture_outputs

from .budget import Budget
from .layers import layer_contexts
from .options import check_range, read_options, type_of
from .patches import ImagePatches, PatchTokens, TokenSequence, check_finite, move_fields
from .pixel_scorers import CoverageOptions, draw_uniform, favor_lattice


def count_selected(
    patches: ImagePatches, budget: int | float, dense_fraction: float
) -> tuple[int, torch.Tensor | None]:
    """Numbers of patches that the batch keeps, K, and each image, `(B,)` or None if all keep K.

    Args:
        patches: all patches of the batch.
        budget: see `num_selected_patches`.
        dense_fraction: 0 for the budget, 1 for all patches, linear between.
    """
    chosen = Budget(budget)
    if patches.is_whole:
        target = chosen.resolve(patches.num_patches)
        return target + round(dense_fraction * (patches.num_patches - target)), None
    if patches.mask is None:  # where there may be fewer than K patches, the image processor says so by a mask
        chosen.resolve(patches.num_patches)
    present = patches.grid.prod(dim=1)  # (B,)
    target = budget
    if chosen.is_fraction:
        target = (present.double() * budget).round().clamp(min=1).long()
    counts = target + ((present - target).clamp(min=0) * dense_fraction).round().long()
    if patches.mask is not None:
        counts = counts.minimum(patches.mask.sum(dim=1))
    if not chosen.is_fraction and dense_fraction == 0:
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
        counts: `(B,)` how many an image really keeps, where that may be fewer than K; the rest is padding at
            the end, index 0, and False in the returned mask `(B, K)`. None: every image keeps K, and there is
            no mask.
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
    """Ranks `(B, N)` of which the first `counts` are the best patches but for a `share`, which is drawn at
    random.

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
        weights: `(B, K, N)` float, where a patch that the encoder gets is a mean of several; None if it is
            one.
        log_prob: `(B,)` log-probability of a selection that was drawn, with gradient; None if it was not
            drawn.
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
        """CLS attention `(B, N)` over `patches` in block `num_layers`; see `AttentionOptions`."""

    def features(self, patches: ImagePatches, num_layers: int) -> torch.Tensor:
        """Hidden states `(B, N, D)` of `patches` after `num_layers` blocks."""

    def embed(self, patches: ImagePatches) -> torch.Tensor:
        """Embeddings `(B, N, D)` of `patches` with their positions, each of one patch alone, without
        dropout."""


@strict
@dataclass(kw_only=True)
class ExplorationOptions(CoverageOptions):
    """Options of every selector whose choice is not random while training anyway.

    Args:
        exploration: fraction in [0, 1] of the kept patches that are random while training.
    """

    exploration: float | int = 0.0

    def __post_init__(self):
        super().__post_init__()
        check_range(self, "exploration", "a fraction in [0, 1]", 0 <= self.exploration <= 1)


@strict
@dataclass(kw_only=True)
class SelectorOptions(ExplorationOptions):
    """Options of selectors whose scores say how much a patch matters.

    Args:
        sampling: power of the scores in proportion to which patches are drawn, without replacement; None
            keeps the highest, 0 draws all alike. The draw is fixed in evaluation and fresh in training.
    """

    sampling: float | int | None = None

    def __post_init__(self):
        super().__post_init__()
        is_legal = self.sampling is None or 0 <= self.sampling < math.inf
        check_range(self, "sampling", "0 or more, or None", is_legal)


def draw_in_proportion(
    log_weights: torch.Tensor, coordinates: torch.Tensor, seed: int | None
) -> torch.Tensor:
    """Ranks `(B, N)` whose K highest are drawn one after the other in proportion to exp(log_weights).

    Without replacement, by the Gumbel-top-K trick (Kool et al., 2019).

    Args:
        log_weights: `(B, N)`, minus infinity for padding, which comes last.
        coordinates: `(B, N, A)`.
        seed: see `draw_uniform`.
    """
    uniform = draw_uniform(coordinates, seed).clamp(min=1e-12, max=1 - 2**-24)
    return log_weights - (-uniform.log()).log()


class PatchSelector(nn.Module, ABC):
    """Scores every patch of an image; the highest are kept."""

    # True if a patch's score depends on its own pixels and place alone, so that bands of an image may be
    # scored apart, then without gradient; what learns from the task does so by `token_weights`.
    is_pointwise = False

    # Whether scores depend on how many will be kept, so that they are asked for again for another number.
    uses_number = True

    # True if `sampling` reads scores as logarithms of weights, rather than as weights.
    has_log_scores = False

    # Weight of the policy gradient of a selection that was drawn, beside the loss of the task.
    policy_loss_weight = 1.0

    # Dataclass of the options that `patch_selector={"type": ..., ...}` may give.
    Options: ClassVar[type] = SelectorOptions

    def __init__(self, config):
        """Reads the options from `config.patch_selector`."""
        super().__init__()
        self.options = read_options(self.Options, "patch_selector", config.patch_selector)
        # A user's own class may have options without these.
        self.exploration = getattr(self.options, "exploration", 0.0)
        self.coverage = getattr(self.options, "coverage", 0.0)
        self.sampling = getattr(self.options, "sampling", None)

    @classmethod
    def check(cls, config, options: Options) -> None:
        """Raises: ValueError if the selector or its options do not fit the rest of the configuration."""

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
        number = num_selected if counts is None else counts
        ranks = self.rank(scores, patches.coordinates, patches.grid, number, sample)
        selection = self.select(ranks, num_selected, counts, sample)
        if ranks is not scores:
            for choice in (selection, selection.greedy):
                if choice is not None:
                    choice.scores = scores
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
                f"{type(self).__name__}.score returned the shape {tuple(scores.shape)}, and must "
                "give a score for "
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

    def rank(
        self,
        scores: torch.Tensor,
        coordinates: torch.Tensor,
        grid: torch.Tensor,
        num_selected: int | torch.Tensor,
        sample: bool,
    ) -> torch.Tensor:
        """Ranks `(B, N)` of which `select` keeps the highest: scores, drawn and spread as the options say.

        Args:
            scores: `(B, N)`, minus infinity for padding.
            coordinates: `(B, N, A)`.
            grid: `(B, A)`.
            num_selected: K; `(B,)` if images keep different numbers.
            sample: whether chance may play a part, as it does while training.
        """
        ranks = scores
        if self.sampling is not None:
            ranks = draw_in_proportion(self.log_weights(scores.detach()), coordinates, None if sample else 0)
        if self.coverage:
            ranks = favor_lattice(ranks, coordinates, grid, num_selected, self.coverage)
        return ranks

    def log_weights(self, scores: torch.Tensor) -> torch.Tensor:
        """Logarithms `(B, N)` of the weights by which `sampling` draws; minus infinity for padding."""
        absent = scores == -torch.inf
        weights = scores
        if not self.has_log_scores:
            lowest = scores.masked_fill(absent, 0).amin(dim=-1, keepdim=True).clamp(max=0)
            weights = (scores - lowest).clamp(min=torch.finfo(torch.float32).tiny).log()
        return (self.sampling * weights.masked_fill(absent, 0)).masked_fill(absent, -torch.inf)

    def select(
        self, scores: torch.Tensor, num_selected: int, counts: torch.Tensor | None, sample: bool
    ) -> Selection:
        """Keeps K patches by ranks `(B, N)`, in which padding has minus infinity; see `rank`, `keep_top`.

        `sample` is whether chance may play a part, as it does while training.
        """
        ranks = scores
        if sample and self.exploration:
            same = scores.new_full(scores.shape[:1], num_selected, dtype=torch.long)
            ranks = explore(scores, self.exploration, same if counts is None else counts)
        indices, mask = keep_top(ranks, num_selected, counts)
        return Selection(indices, mask, scores)

    def token_weights(self, tokens: PatchTokens) -> torch.Tensor | None:
        """Weights `(B, K)` of the kept patches in the encoder's attention and in pooling, 0 or more; None for
        1 each.

        Args:
            tokens: embeddings `(B, K, D)` of what was kept, with positions and a gradient.
        """
        return None

    def loss(self, patches: ImagePatches, scores: torch.Tensor, probe: Probe) -> torch.Tensor | None:
        """Loss that training adds, given the patches and their scores; None for none."""
        return None


def check_cls_for_selector(config) -> None:
    """Checks that there is a CLS token for a selector that asks what it attends to.

    Raises:
        ValueError: if there is none.
    """
    if not config.use_cls_token:
        raise ValueError(
            f"patch_selector={type_of(config.patch_selector)!r} needs the CLS token, which "
            "use_cls_token=False leaves out: "
            "choose another."
        )


# How the attention of several heads (B, heads, T) becomes one.
HEAD_REDUCTIONS = {
    "mean": lambda attention: attention.mean(dim=1),
    "max": lambda attention: attention.amax(dim=1),
}


class ModelProbe:
    """Runs the first blocks of an `AdaptiveViTModel`, without gradient; see `Probe`."""

    # `capture_outputs` reads it, and finds nothing to record: outputs that the caller of the model records do
    # not include those of this pass.
    config = None

    def __init__(self, model):
        self.model = model

    @torch.no_grad()
    @capture_outputs
    def attention(self, patches: ImagePatches, num_layers: int, reduction: str) -> torch.Tensor:
        """CLS attention `(B, N)` in block `num_layers`, its heads reduced to one; or "rollout" through
        all."""
        layers, contexts, states = self._start(patches, num_layers)
        for index, layer in enumerate(layers[:-1]):
            states.append(layer(states[-1], contexts[index]))
        attention = layers[-1].cls_attention(states[-1], contexts[num_layers - 1])  # (B, heads, T)
        if reduction != "rollout":
            return HEAD_REDUCTIONS[reduction](attention)[:, -patches.num_patches :]
        # "Quantifying Attention Flow in Transformers" (Abnar & Zuidema, 2020), for the CLS row alone.
        row = attention.mean(dim=1)
        cls = torch.arange(row.shape[1], device=row.device) == 0
        row = (row + cls) / 2
        for index in reversed(range(num_layers - 1)):
            row = layers[index].propagate_rollout(states[index], contexts[index], row)
        return row[:, -patches.num_patches :]

    @torch.no_grad()
    @capture_outputs
    def features(self, patches: ImagePatches, num_layers: int) -> torch.Tensor:
        """Hidden states `(B, N, D)` of `patches` after `num_layers` blocks."""
        layers, contexts, (states,) = self._start(patches, num_layers)
        for index, layer in enumerate(layers):
            states = layer(states, contexts[index])
        return states[:, -patches.num_patches :]

    @torch.no_grad()
    def embed(self, patches: ImagePatches) -> torch.Tensor:
        """Embeddings `(B, N, D)` of `patches` with their positions."""
        return self.model.embeddings.embed_patches(copy.copy(patches)).features

    def _start(self, patches: ImagePatches, num_layers: int):
        """The blocks, their contexts and what enters the first."""
        model = self.model
        # A copy: what a hybrid's CNN leaves on it has no gradient and is not for the main pass.
        sequence: TokenSequence = model.pre_normalize(model.embeddings(copy.copy(patches)))
        contexts = layer_contexts(model.config, model.embeddings.position_encoding, sequence)
        return model.layers[:num_layers], contexts, [sequence.hidden_states]
