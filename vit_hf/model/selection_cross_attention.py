"""Selection by what a learned query finds in the model's own patch embeddings. Shape legend: `tokens.py`."""

import math
from dataclasses import dataclass

import torch
from huggingface_hub.dataclasses import strict
from torch import nn

from .options import check_positive
from .patches import ImagePatches
from .selection_base import PatchSelector, Scout, SelectorOptions
from .tokens import PatchTokens


@strict
@dataclass(kw_only=True)
class CrossAttentionOptions(SelectorOptions):
    """Options of `"cross_attention"`.

    Args:
        hidden_size: width of the network that makes keys of patch embeddings, which goes over every patch.
        num_heads: heads of the learned query, a divisor of the width.
    """

    hidden_size: int = 256
    num_heads: int = 8

    def __post_init__(self):
        super().__post_init__()
        check_positive(self, "hidden_size", "num_heads")
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size={self.hidden_size} must be a multiple of num_heads={self.num_heads}."
            )


class CrossAttentionSelector(PatchSelector):
    """Keeps the patches that a learned query attends to most, in the manner of Iterative Patch Selection.

    Bergner et al. (2023): all patches are embedded and scored without gradient, a chunk at a time if the image is
    streamed; those that are kept are scored again with gradient, and weighed by the query's attention, so that the
    loss of the task reaches it. There it pools what an encoder made of each patch alone. Here an encoder follows
    whose blocks relate the patches: each of its blocks attends to a patch so many times as much as the query's softmax
    over the kept ones says, in training and afterwards, and so does pooling by mean or by attention. At first
    these weights are nearly 1. Keys come from a small network on the embeddings, positions included.
    """

    Options = CrossAttentionOptions
    sees_one_patch = True

    def __init__(self, config):
        super().__init__(config)
        width, heads = self.options.hidden_size, self.options.num_heads
        self.norm = nn.LayerNorm(config.hidden_size)
        self.hidden = nn.Linear(config.hidden_size, width)
        self.activation = nn.GELU()
        # No bias: what is added to every score changes no choice.
        self.key = nn.Linear(width, width, bias=False)
        self.query = nn.Parameter(torch.empty(heads, width // heads))

    def score(self, patches: ImagePatches, num_selected: int | torch.Tensor, scout: Scout) -> torch.Tensor:
        with torch.no_grad():
            return self._attend(scout.embed(patches))

    def weigh(self, tokens: PatchTokens) -> torch.Tensor:
        scores = self._attend(tokens.features)
        if tokens.mask is None:
            return scores.softmax(dim=-1) * scores.shape[1]
        scores = scores.masked_fill(~tokens.mask, -torch.inf)
        return scores.softmax(dim=-1) * tokens.mask.sum(dim=-1, keepdim=True)

    def _attend(self, embeddings: torch.Tensor) -> torch.Tensor:
        """The log of the mean over heads of exp(q k / sqrt(d)), `(B, N)` float32, of embeddings `(B, N, D)`.

        Not divided by its sum over patches, so that it depends on one patch alone.
        """
        keys = self.key(self.activation(self.hidden(self.norm(embeddings))))
        keys = keys.unflatten(-1, self.query.shape)  # (B, N, heads, d)
        logits = torch.einsum("bnhd,hd->bnh", keys, self.query).float() * self.query.shape[1] ** -0.5
        return logits.logsumexp(dim=-1) - math.log(logits.shape[-1])
