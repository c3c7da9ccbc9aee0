"""Reduction by a predictor that learns which tokens to keep. Shape legend: `reduction_base.py`."""

import math
from dataclasses import dataclass

import torch
from huggingface_hub.dataclasses import strict
from torch import nn

from .attention import AttentionStates
from .options import Options, check_range
from .reduction_base import Reduction, TokenReducer, counts_kept, new_places, num_kept
from .selection_base import keep_top
from .tokens import PatchTokens


@strict
@dataclass(kw_only=True)
class GumbelOptions(Options):
    """Weights of the losses of `"gumbel"`, as in DynamicViT (2021).

    Args:
        ratio_weight: of the distance from the keep rate.
        distillation_weight: of the divergence from the model's own dense prediction.
        token_weight: of the distance of hidden states from those of the dense pass.
    """

    ratio_weight: float | int = 2.0
    distillation_weight: float | int = 0.5
    token_weight: float | int = 0.5

    def __post_init__(self):
        for name in ("ratio_weight", "distillation_weight", "token_weight"):
            check_range(self, name, "0 or more", 0 <= getattr(self, name) < math.inf)


class GumbelReducer(TokenReducer):
    """A predictor at each stage gives every token a chance to stay, from the token and the mean of those present.

    DynamicViT (Rao et al., 2021), sections 3.2 and 3.3. Training draws with hard Gumbel-softmax and hides what was
    dropped from the others (a size of 0 hides a token from attention and pooling), so that the choice has a
    gradient; otherwise the likeliest are gathered. The loss here is that of the keep rate; those of distillation
    are added by the model.
    """

    inside_block = False
    learns_from_dense = True
    Options = GumbelOptions

    def __init__(self, config, layer_index: int):
        super().__init__(config, layer_index)
        dim = config.hidden_size
        self.stage = sorted(config.reduction_layers).index(layer_index) + 1
        self.ratio_weight = self.options.ratio_weight / len(config.reduction_layers)
        self.distillation_weight = self.options.distillation_weight
        self.token_weight = self.options.token_weight
        self.norm = nn.LayerNorm(dim)
        self.input = nn.Linear(dim, dim)
        self.hidden1 = nn.Linear(dim, dim // 2)
        self.hidden2 = nn.Linear(dim // 2, max(1, dim // 4))
        self.output = nn.Linear(max(1, dim // 4), 2)
        self.activation = nn.GELU()

    @classmethod
    def check(cls, config, options: Options) -> None:
        if config.hidden_size % 2:
            raise ValueError(f"token_reducer='gumbel' needs an even hidden_size, got {config.hidden_size}.")

    def forward(self, tokens: PatchTokens, states: AttentionStates | None, relaxation: float) -> Reduction:
        keep_rate = self.keep_rate(relaxation)
        logits = self.predict(tokens)  # (B, M, 2)
        if self.training:
            return self._draw(tokens, logits, keep_rate)
        num_tokens = logits.shape[1]
        scores = logits[..., 0] - logits[..., 1]
        if tokens.mask is not None:
            scores = scores.masked_fill(~tokens.mask, -torch.inf)
        indices, mask = keep_top(scores, num_kept(num_tokens, keep_rate), counts_kept(tokens.mask, keep_rate))
        reduced = tokens.gather(indices)
        reduced.mask = mask
        return Reduction(reduced, new_places(indices, mask, num_tokens))

    def keeps_all(self, relaxation: float) -> bool:
        # While training the predictor learns, even that all may stay.
        return not self.training and super().keeps_all(relaxation)

    def predict(self, tokens: PatchTokens) -> torch.Tensor:
        """Logits `(B, M, 2)` float32 of staying and of going."""
        states = self.activation(self.input(self.norm(tokens.features)))
        local, context = states.chunk(2, dim=-1)
        weights = torch.ones_like(states[..., :1])
        if tokens.mask is not None:
            weights = weights * tokens.mask.unsqueeze(-1)
        if tokens.sizes is not None:
            weights = weights * tokens.sizes.unsqueeze(-1).to(weights.dtype)
        context = (context * weights).sum(dim=1, keepdim=True) / weights.sum(dim=1, keepdim=True).clamp(min=1)
        states = torch.cat((local, context.expand_as(local)), dim=-1)
        states = self.activation(self.hidden2(self.activation(self.hidden1(states))))
        return self.output(states).float()

    def _draw(self, tokens: PatchTokens, logits: torch.Tensor, keep_rate: float) -> Reduction:
        kept = nn.functional.gumbel_softmax(logits, tau=1.0, hard=True)[..., 0]  # (B, M)
        if tokens.sizes is not None:
            kept = kept * tokens.sizes  # gone once is gone for good
        present = torch.ones_like(kept) if tokens.mask is None else tokens.mask.to(kept.dtype)
        # (B,) of the tokens that entered the encoder
        share = (kept * present).sum(dim=1) / present.sum(dim=1).clamp(min=1)
        loss = self.ratio_weight * (share - keep_rate**self.stage).square().mean()
        place = torch.arange(logits.shape[1], device=logits.device).expand(logits.shape[:2])
        reduced = PatchTokens(
            tokens.features, tokens.coordinates, tokens.grid, tokens.mask, kept, tokens.full_grid
        )
        return Reduction(reduced, place, loss)
