"""Selection by a policy that learns from rewards. Shape legend: `tokens.py`."""

import math
from dataclasses import dataclass

import torch
from huggingface_hub.dataclasses import strict

from .options import check_range
from .patches import ImagePatches
from .selection_base import PatchSelector, Scout, Selection, keep_top
from .selection_scorer import ScorerOptions, ThumbnailScorer, check_scorer_size


# Standard deviation of an image's scores. Fixed, so that a policy can neither become certain by accident, which
# would end its learning, nor stay undecided; what is rare in an image still stands out by many times this.
SPREAD = 1.0


def standardise(scores: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Scores `(B, N)` with mean 0 and deviation `SPREAD` over the patches of each image that `mask` `(B, N)` has."""
    present = torch.ones_like(scores) if mask is None else mask.to(scores.dtype)
    count = present.sum(dim=-1, keepdim=True)
    centred = scores - (scores * present).sum(dim=-1, keepdim=True) / count
    variance = (centred.square() * present).sum(dim=-1, keepdim=True) / count
    return SPREAD * centred / (variance + 1e-8).sqrt()


def draw_plackett_luce(scores: torch.Tensor) -> torch.Tensor:
    """An order `(B, N)` of patches drawn one after the other without replacement, in proportion to exp(score).

    Plackett-Luce by the Gumbel-top-K trick (Kool et al., 2019). Patches with a score of minus infinity come last.
    """
    uniform = torch.rand_like(scores).clamp(min=torch.finfo(scores.dtype).tiny)
    return (scores.detach() - (-uniform.log()).log()).argsort(dim=-1, descending=True)


def plackett_luce_log_prob(
    scores: torch.Tensor, order: torch.Tensor, num_selected: int, counts: torch.Tensor | None = None
) -> torch.Tensor:
    """Log-probability `(B,)` that the first patches of `order` `(B, N)` are drawn in that order.

    Args:
        scores: `(B, N)`, minus infinity for padding, which must come last in `order`.
        num_selected: K, how many are drawn.
        counts: `(B,)`, if images draw different numbers.
    """
    ordered = scores.gather(1, order)
    # log of what is left to draw from at each step
    remaining = ordered.flip(-1).logcumsumexp(dim=-1).flip(-1)
    steps = ordered[:, :num_selected] - remaining[:, :num_selected]
    if counts is not None:
        drawn = torch.arange(num_selected, device=scores.device) < counts[:, None]
        steps = torch.where(drawn, steps, 0)
    return steps.sum(dim=-1)


@strict
@dataclass(kw_only=True)
class PolicyOptions(ScorerOptions):
    """Options of `"policy"`.

    As the number of patches is fixed, a cost for each would be equal for every choice and change nothing.

    Args:
        loss_weight: weight of the policy's loss beside that of the task.
        entropy_weight: weight of the bonus for an undecided policy.
    """

    loss_weight: float | int = 1.0
    entropy_weight: float | int = 0.01

    def __post_init__(self):
        super().__post_init__()
        for name in ("loss_weight", "entropy_weight"):
            check_range(self, name, "0 or more", 0 <= getattr(self, name) < math.inf)


class PolicySelector(PatchSelector):
    """A small network on the thumbnail draws patches while training, and keeps its favourites otherwise.

    The head rewards what was drawn by how much better the answer is than with the favourites (REINFORCE with a
    self-critical baseline: Rennie et al., 2017; PatchDrop, Uzkent & Ermon, 2020). The entropy bonus is that of the
    first draw, as a share of the greatest possible.
    """

    Options = PolicyOptions

    def __init__(self, config):
        super().__init__(config)
        self.scorer = ThumbnailScorer(config, self.options)
        self.entropy_weight = self.options.entropy_weight
        self.policy_loss_weight = self.options.loss_weight

    @classmethod
    def check(cls, config, options: Options) -> None:
        check_scorer_size(config, options)

    def score(self, patches: ImagePatches, num_selected: int | torch.Tensor, scout: Scout) -> torch.Tensor:
        return standardise(self.scorer(patches), patches.mask)

    def select(
        self, scores: torch.Tensor, num_selected: int, counts: torch.Tensor | None, sample: bool
    ) -> Selection:
        favourites = super().select(scores, num_selected, counts, sample=False)
        # Where all are kept there is nothing to choose, and a reward would be noise.
        if not sample or (counts is None and num_selected == scores.shape[1]):
            return favourites
        order = draw_plackett_luce(scores)
        indices, mask = keep_top(-order.argsort(dim=-1).to(scores.dtype), num_selected, counts)
        log_prob = plackett_luce_log_prob(scores, order, num_selected, counts)
        # A mean over draws, so that a learning rate suits any K.
        log_prob = log_prob / (num_selected if counts is None else counts)
        return Selection(indices, mask, scores, log_prob=log_prob, favourites=favourites)

    def loss(self, patches: ImagePatches, scores: torch.Tensor, scout: Scout) -> torch.Tensor:
        present = scores != -torch.inf
        log_probs = scores.log_softmax(dim=-1).masked_fill(~present, 0)
        entropy = -(log_probs.exp() * log_probs * present).sum(dim=-1)
        greatest = present.sum(dim=-1).clamp(min=2).log()
        return -self.entropy_weight * (entropy / greatest).mean()


def reinforce_loss(log_prob: torch.Tensor, reward: torch.Tensor, baseline: torch.Tensor) -> torch.Tensor:
    """-(R - b) log pi, averaged over images; `(B,)` each. Its gradient is that of -E[R], whatever the baseline.

    The mean of R - b over the other images of the batch is subtracted as well, which biases nothing either: at
    first favourites are worse than chance, and a difference that all images share would be nothing but noise.
    """
    advantage = reward - baseline
    if len(advantage) > 1:
        others = (advantage.sum() - advantage) / (len(advantage) - 1)
        advantage = advantage - others
    return -(advantage.detach() * log_prob).mean()
