"""A block of the encoder. Shape legend: `tokens.py`; T is the tokens of a sequence.

Modules and parameters carry the names of transformers' ViT.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .attention import AdaptiveViTAttention, AttentionInputs, AttentionStates
from .blocks import FEED_FORWARDS, LayerScale, StochasticDepth, make_norm, normalise
from .layer_sizes import head_dim_of, heads_of, intermediate_size_of


# Hidden states `(B, T', D)` and the mask of their patch tokens, of `(B, T, D)` and what attention was computed from.
ReduceTokens = Callable[[torch.Tensor, AttentionStates], tuple[torch.Tensor, torch.Tensor | None]]


class AdaptiveViTLayer(GradientCheckpointingLayer):
    """A pre-norm block: attention, then the feed-forward network, each on a residual branch."""

    def __init__(self, config, layer_index: int):
        super().__init__()
        self.attention = AdaptiveViTAttention(config, heads_of(config, layer_index), head_dim_of(config))
        self.layernorm_before = make_norm(config)
        self.layernorm_after = make_norm(config)
        self.mlp = FEED_FORWARDS[config.mlp_type](config, intermediate_size_of(config, layer_index))
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
        reduce: ReduceTokens | None = None,
        probe: Callable[..., torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Hidden states `(B, T, D)`, or `(B, T', D)` where tokens are reduced.

        Args:
            hidden_states: `(B, T, D)`.
            inputs: masks and positions for attention.
            reduce: thins the last tokens between attention and the feed-forward network.
            probe: a method of the attention that runs instead of the block, see `cls_attention`.
        """
        normed = normalise(self.layernorm_before, hidden_states, inputs.key_mask)
        if probe is not None:
            return probe(self.attention, normed, inputs)
        attention, _, states = self.attention(normed, inputs)
        hidden_states = hidden_states + self._branch(attention, self.layer_scale1)
        mask = inputs.key_mask
        if reduce is not None:
            hidden_states, mask = reduce(hidden_states, states)
        del attention, states  # no need to hold them while the feed-forward network runs
        mlp = self.mlp(normalise(self.layernorm_after, hidden_states, mask))
        return hidden_states + self._branch(mlp, self.layer_scale2)

    def cls_attention(self, hidden_states: torch.Tensor, inputs: AttentionInputs) -> torch.Tensor:
        """What the CLS token would attend to in this block, `(B, heads, T)`, at a cost linear in T."""
        return self._probe(AdaptiveViTAttention.cls_attention, hidden_states, inputs)

    def propagate_rollout(
        self, hidden_states: torch.Tensor, inputs: AttentionInputs, row: torch.Tensor
    ) -> torch.Tensor:
        """Carries a `row` `(B, T)` of attention rollout from the block's output to its input."""
        return self._probe(partial(AdaptiveViTAttention.propagate_rollout, row=row), hidden_states, inputs)

    def _probe(
        self, probe: Callable[..., torch.Tensor], hidden_states: torch.Tensor, inputs: AttentionInputs
    ) -> torch.Tensor:
        # Through the module's call, so that whatever wraps the block (sharding, offloading) takes part.
        return self(hidden_states, inputs, probe=probe)

    def _branch(self, states: torch.Tensor, layer_scale: LayerScale | None) -> torch.Tensor:
        states = self.dropout(states)
        if layer_scale is not None:
            states = layer_scale(states)
        return states if self.drop_path is None else self.drop_path(states)
