"""Attention, feed-forward network and block. Shape legend: `tokens.py`; T is the tokens of a sequence.

Modules and parameters carry the names of transformers' ViT.
"""

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .positions import rotate_half_pairs


NORMS = {"layernorm": nn.LayerNorm, "rmsnorm": nn.RMSNorm}

Rotation = tuple[torch.Tensor, torch.Tensor]


def make_norm(config) -> nn.Module:
    return NORMS[config.norm_type](config.hidden_size, eps=config.layer_norm_eps)


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention `(B, T, heads, d)` and its weights `(B, heads, T, T)`.

    The mask may be additive, or boolean with True where attention is allowed.
    """
    logits = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        logits = logits.masked_fill(~attention_mask, torch.finfo(logits.dtype).min)
    elif attention_mask is not None:
        logits = logits + attention_mask
    weights = logits.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class AdaptiveViTAttention(nn.Module):
    """Multi-head self-attention, through whichever implementation transformers was asked for."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.num_attention_heads = config.num_attention_heads
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.attention_dropout = config.attention_probs_dropout_prob
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        rotation: Rotation | None = None,
        output_attentions: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        query = self._split_heads(self.q_proj(hidden_states))
        key = self._split_heads(self.k_proj(hidden_states))
        value = self._split_heads(self.v_proj(hidden_states))
        if rotation is not None:
            query, key = rotate_half_pairs(query, rotation), rotate_half_pairs(key, rotation)

        # Fused implementations have no weights to show, so a call that asks for them computes them.
        implementation = "eager" if output_attentions else self.config._attn_implementation
        attention_interface = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
        attention, weights = attention_interface(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
        )
        attention = attention.reshape(hidden_states.shape).contiguous()
        return self.o_proj(attention), weights

    def cls_attention(self, hidden_states: torch.Tensor, rotation: Rotation | None = None) -> torch.Tensor:
        """What the CLS token attends to, averaged over heads, `(B, T)`: softmax(q_cls K^T), linear in T."""
        query = self._split_heads(self.q_proj(hidden_states[:, :1]))  # (B, heads, 1, d)
        key = self._split_heads(self.k_proj(hidden_states))
        if rotation is not None:
            key = rotate_half_pairs(key, rotation)
        logits = (query @ key.transpose(2, 3)).squeeze(2).float() * self.scaling  # (B, heads, T)
        return logits.softmax(dim=-1).mean(dim=1)

    def _split_heads(self, states: torch.Tensor) -> torch.Tensor:
        return states.unflatten(-1, (self.num_attention_heads, self.head_dim)).transpose(1, 2)


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
        attention_mask: torch.Tensor | None = None,
        rotation: Rotation | None = None,
        output_attentions: bool = False,
        cls_attention_only: bool = False,
    ) -> torch.Tensor:
        """Hidden states `(B, T, D)`; or, with `cls_attention_only`, the CLS row `(B, T)` of this block's attention.

        The latter goes through `forward` so that whatever wraps the block (sharding, offloading) is there.
        """
        if cls_attention_only:
            return self.attention.cls_attention(self.layernorm_before(hidden_states), rotation)
        attention, _ = self.attention(
            self.layernorm_before(hidden_states), attention_mask, rotation, output_attentions
        )
        hidden_states = hidden_states + self._branch(attention, self.layer_scale1)
        mlp = self.mlp(self.layernorm_after(hidden_states))
        return hidden_states + self._branch(mlp, self.layer_scale2)

    def _branch(self, states: torch.Tensor, layer_scale: LayerScale | None) -> torch.Tensor:
        states = self.dropout(states)
        if layer_scale is not None:
            states = layer_scale(states)
        return states if self.drop_path is None else self.drop_path(states)
