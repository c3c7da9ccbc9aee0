"""A block of the encoder. Shape legend: `tokens.py`; T is the tokens of a sequence.

Modules and parameters carry the names of transformers' ViT.
"""

from typing import Literal

import torch
from torch import nn

from .attention import AdaptiveViTAttention, AttentionInputs, AttentionStates
from .blocks import FEED_FORWARDS, LayerScale, StochasticDepth, make_norm, normalise
from .checkpointing import CheckpointedBlock
from .layer_sizes import head_dim_of, heads_of, intermediate_size_of
from .options import type_of
from .reduction_base import Reduction, TokenReducer
from .tokens import PatchTokens


def split_prefix(hidden_states: torch.Tensor, tokens: PatchTokens) -> tuple[torch.Tensor, torch.Tensor]:
    """The sequence's tokens before those of patches, and these."""
    num_tokens = tokens.coordinates.shape[1]
    return hidden_states[:, :-num_tokens], hidden_states[:, -num_tokens:]


class AdaptiveViTLayer(CheckpointedBlock):
    """A pre-norm block: attention, then the feed-forward network, each on a residual branch."""

    def __init__(self, config, layer_index: int):
        super().__init__()
        self.attention = AdaptiveViTAttention(config, heads_of(config, layer_index), head_dim_of(config))
        self.layernorm_before = make_norm(config)
        self.layernorm_after = make_norm(config)
        self.mlp = FEED_FORWARDS[type_of(config.feed_forward)](
            config, intermediate_size_of(config, layer_index)
        )
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        scaled = config.layerscale_value is not None
        self.layer_scale1 = LayerScale(config) if scaled else None
        self.layer_scale2 = LayerScale(config) if scaled else None
        last = config.num_hidden_layers - 1
        rate = config.drop_path_rate * (layer_index / last if last else 1)
        self.drop_path = StochasticDepth(rate) if rate else None

    def forward(
        self,
        hidden_states: torch.Tensor,
        inputs: AttentionInputs,
        reducer: TokenReducer | None = None,
        tokens: PatchTokens | None = None,
        relaxation: float = 0.0,
        look: Literal["cls", "all"] | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Reduction, torch.Tensor] | AttentionStates:
        """Hidden states `(B, T, D)`.

        With a `reducer`, which thins the last tokens of the sequence (described by `tokens`) before the feed-forward
        network: hidden states `(B, T', D)`, the reduction, and the hidden states `(B, M, D)` of what was thinned.

        With `look`, only the queries (of the CLS token, or of all) and keys of the block's attention. That goes
        through `forward` so that whatever wraps the block (sharding, offloading) is there.
        """
        if look is not None:
            states = self.attention.cls_states if look == "cls" else self.attention.states
            return states(normalise(self.layernorm_before, hidden_states, inputs.key_mask), inputs)
        normed = normalise(self.layernorm_before, hidden_states, inputs.key_mask)
        attention, _, states = self.attention(normed, inputs, return_states=reducer is not None)
        hidden_states = hidden_states + self._branch(attention, self.layer_scale1)
        if reducer is None:
            return self._feed_forward(hidden_states, inputs.key_mask)
        prefix, patches = split_prefix(hidden_states, tokens)
        reduction = reducer(tokens.with_features(patches), states, relaxation)
        hidden_states = torch.cat((prefix, reduction.tokens.features), dim=1)
        return self._feed_forward(hidden_states, reduction.tokens.mask), reduction, patches

    def _feed_forward(self, hidden_states: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        mlp = self.mlp(normalise(self.layernorm_after, hidden_states, mask))
        return hidden_states + self._branch(mlp, self.layer_scale2)

    def _branch(self, states: torch.Tensor, layer_scale: LayerScale | None) -> torch.Tensor:
        states = self.dropout(states)
        if layer_scale is not None:
            states = layer_scale(states)
        return states if self.drop_path is None else self.drop_path(states)
