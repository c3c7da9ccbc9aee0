"""Feed-forward network and block. Shape legend: `tokens.py`; T is the tokens of a sequence.

Modules and parameters carry the names of transformers' ViT.
"""

from typing import Literal

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer

from .attention import AdaptiveViTAttention, AttentionInputs, AttentionStates
from .reduction_base import Reduction, TokenReducer
from .tokens import PatchTokens


NORMS = {"layernorm": nn.LayerNorm, "rmsnorm": nn.RMSNorm}


def make_norm(config) -> nn.Module:
    return NORMS[config.norm_type](config.hidden_size, eps=config.layer_norm_eps)


def split_prefix(hidden_states: torch.Tensor, tokens: PatchTokens) -> tuple[torch.Tensor, torch.Tensor]:
    """The sequence's tokens before those of patches, and these."""
    num_tokens = tokens.coordinates.shape[1]
    return hidden_states[:, :-num_tokens], hidden_states[:, -num_tokens:]


class AdaptiveViTMLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.activation_fn = ACT2FN[config.hidden_act]
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.activation_fn(self.fc1(hidden_states)))


class LayerScale(nn.Module):
    """A learned scale of a residual branch (Touvron et al., 2021), named as in transformers' DINOv2."""

    def __init__(self, config):
        super().__init__()
        self.lambda1 = nn.Parameter(torch.full((config.hidden_size,), float(config.layerscale_value)))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states * self.lambda1


class StochasticDepth(nn.Module):
    """Drops a residual branch for whole images in training (Huang et al., 2016)."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return hidden_states
        keep = 1 - self.rate
        kept = hidden_states.new_empty(hidden_states.shape[0], 1, 1).bernoulli_(keep)
        return hidden_states * kept / keep


class AdaptiveViTLayer(GradientCheckpointingLayer):
    """A pre-norm block: attention, then the feed-forward network, each on a residual branch."""

    def __init__(self, config, layer_index: int):
        super().__init__()
        self.attention = AdaptiveViTAttention(config)
        self.layernorm_before = make_norm(config)
        self.layernorm_after = make_norm(config)
        self.mlp = AdaptiveViTMLP(config)
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
            return states(self.layernorm_before(hidden_states), inputs)
        attention, _, states = self.attention(
            self.layernorm_before(hidden_states), inputs, return_states=reducer is not None
        )
        hidden_states = hidden_states + self._branch(attention, self.layer_scale1)
        if reducer is None:
            return self._feed_forward(hidden_states)
        prefix, patches = split_prefix(hidden_states, tokens)
        reduction = reducer(tokens.with_features(patches), states, relaxation)
        hidden_states = torch.cat((prefix, reduction.tokens.features), dim=1)
        return self._feed_forward(hidden_states), reduction, patches

    def _feed_forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        mlp = self.mlp(self.layernorm_after(hidden_states))
        return hidden_states + self._branch(mlp, self.layer_scale2)

    def _branch(self, states: torch.Tensor, layer_scale: LayerScale | None) -> torch.Tensor:
        states = self.dropout(states)
        if layer_scale is not None:
            states = layer_scale(states)
        return states if self.drop_path is None else self.drop_path(states)
