"""Selection by what a learned query finds in the model's own patch embeddings. Shape legend: `tokens.py`."""

import math

import torch
from torch import nn

from .patches import ImagePatches
from .selection_base import PatchSelector, Scout
from .tokens import PatchTokens


class CrossAttentionSelector(PatchSelector):
    """Keeps the patches that a learned query attends to most, in the manner of Iterative Patch Selection.

    Bergner et al. (2023): all patches are embedded and scored without gradient, a chunk at a time if the image is
    streamed; those that are kept are scored again with gradient, and these scores weigh them, so that the loss of
    the task tells the query which of them it should have attended to. There the query's own attention pools what
    the patches' encoder makes of them. Here patches are embedded linearly, and an encoder whose every block attends
    to them follows: keys come from a small network on the embeddings, positions included, and the scores are added to
    the logits of the encoder's attention as a zero that has their gradient. So a patch's score rises where the loss
    would fall if every block looked at it more, and the answer is that of the plain encoder, in training as well.
    """

    sees_one_patch = True

    def __init__(self, config):
        super().__init__(config)
        width, heads = config.cross_attention_hidden_size, config.cross_attention_num_heads
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
        return (scores - scores.detach()).exp()

    def _attend(self, embeddings: torch.Tensor) -> torch.Tensor:
        """The log of the mean over heads of exp(q k / sqrt(d)), `(B, N)` float32, of embeddings `(B, N, D)`.

        Not divided by its sum over patches, so that it depends on one patch alone.
        """
        keys = self.key(self.activation(self.hidden(self.norm(embeddings))))
        keys = keys.unflatten(-1, self.query.shape)  # (B, N, heads, d)
        logits = torch.einsum("bnhd,hd->bnh", keys, self.query).float() * self.query.shape[1] ** -0.5
        return logits.logsumexp(dim=-1) - math.log(logits.shape[-1])
