"""Self-attention, through whichever implementation transformers was asked for. Shape legend: `tokens.py`; T is the
tokens of a sequence, d the channels of a head.

Parameters carry the names of transformers' ViT.
"""

from dataclasses import dataclass, replace

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .blocks import make_inner_norm
from .options import Options, read_options, type_of
from .positions_rotary import rotate_half_pairs
from .tokens import move_fields


# Below this a token of size 0 weighs nothing, and yet passes a gradient on.
SMALLEST_SIZE = 1e-6


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


@dataclass
class AttentionInputs:
    """What attention needs to know beside the hidden states.

    Attributes:
        mask: in the form that the implementation wants, with `key_bias` in it where that is possible; None for none.
        key_mask: `(B, T)` bool, False for padding; None without any.
        key_bias: `(B, T)` float added to the logits of each key; None for none.
        rotation: cosines and sines, see `PositionEncoding.rotation`.
        bias: `(B or 1, heads, T, T)` added to the logits, see `PositionEncoding.bias`.
        show_weights: whether the weights are asked for. Fused implementations have none to show.
    """

    mask: torch.Tensor | None = None
    key_mask: torch.Tensor | None = None
    key_bias: torch.Tensor | None = None
    rotation: tuple[torch.Tensor, torch.Tensor] | None = None
    bias: torch.Tensor | None = None
    show_weights: bool = False

    def to(self, device: torch.device, non_blocking: bool = False) -> "AttentionInputs":
        """The same on another device; what accelerate calls where a model is spread over several."""
        return move_fields(self, device, non_blocking)

    @classmethod
    def build(
        cls,
        config,
        hidden_states: torch.Tensor,
        mask: torch.Tensor | None,
        sizes: torch.Tensor | None,
        show_weights: bool,
    ) -> "AttentionInputs":
        """Without positions, for a sequence `(B, T, D)` whose last tokens have a mask `(B, M)` and sizes `(B, M)`, or not.

        Tokens that stand for several patches weigh as much as these (proportional attention of ToMe, Bolya et al.,
        2023).
        """
        implementation = "eager" if show_weights else config._attn_implementation
        key_mask = key_bias = attention_mask = None
        length = hidden_states.shape[1]
        if mask is not None:
            key_mask = nn.functional.pad(mask, (length - mask.shape[1], 0), value=True)
        if sizes is not None:
            key_bias = nn.functional.pad((sizes + SMALLEST_SIZE).log(), (length - sizes.shape[1], 0))
        if key_bias is not None and not needs_bias_channel(implementation):
            attention_mask = key_bias.to(hidden_states.dtype)
            if key_mask is not None:
                attention_mask = attention_mask.masked_fill(
                    ~key_mask, torch.finfo(attention_mask.dtype).min / 2
                )
            attention_mask = attention_mask[:, None, None]
        elif key_mask is not None and implementation in ("eager", "sdpa"):
            attention_mask = key_mask[:, None, None]
        elif key_mask is not None:
            attention_mask = create_bidirectional_mask(
                config=config, inputs_embeds=hidden_states, attention_mask=key_mask
            )
        return cls(attention_mask, key_mask, key_bias, show_weights=show_weights)

    def of_heads(self, num_heads: int) -> "AttentionInputs":
        """The same for a block that has only the first heads of those that the position encoding counts."""
        rotation, bias = self.rotation, self.bias
        if rotation is not None and rotation[0].shape[1] > num_heads:
            rotation = tuple(part[:, :num_heads] for part in rotation)
        if bias is not None and bias.shape[1] > num_heads:
            bias = bias[:, :num_heads]
        if rotation is self.rotation and bias is self.bias:
            return self
        return replace(self, rotation=rotation, bias=bias)

    def with_positions(
        self,
        config,
        rotation: tuple[torch.Tensor, torch.Tensor] | None,
        bias: torch.Tensor | None,
    ) -> "AttentionInputs":
        """The same with what a position encoding says of a block.

        Raises:
            ValueError: for a bias beside flash attention.
        """
        implementation = "eager" if self.show_weights else config._attn_implementation
        if bias is not None and "flash" in implementation:
            raise ValueError(
                f"position_encoding={type_of(config.position_encoding)!r} adds a bias to attention, which {implementation!r} "
                "does not take: use attn_implementation='sdpa' or 'flex_attention'."
            )
        return replace(self, rotation=rotation, bias=bias)


@dataclass
class AttentionStates:
    """What a block's attention was computed from, for token reducers.

    Attributes:
        query, key, value: `(B, heads, T, d)`, query and key rotated if the position encoding does that.
        unrotated_key: the key before.
        inputs: what else went in.
        scaling: of the logits.
    """

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    unrotated_key: torch.Tensor
    inputs: AttentionInputs
    scaling: float

    def cls_attention(self) -> torch.Tensor:
        """What the CLS token attends to, `(B, heads, T)`: softmax(q_cls K^T), linear in T beside any attention."""
        # Not a product with a matrix of one row, which reads the keys several times more slowly.
        logits = torch.einsum("bhd,bhtd->bht", self.query[:, :, 0], self.key).float() * self.scaling
        if self.inputs.bias is not None:
            logits = logits + self.inputs.bias[:, :, 0]
        if self.inputs.key_bias is not None:
            logits = logits + self.inputs.key_bias[:, None]
        if self.inputs.key_mask is not None:
            logits = logits.masked_fill(~self.inputs.key_mask[:, None], -torch.inf)
        return logits.softmax(dim=-1)

    def pull_back(self, row: torch.Tensor) -> torch.Tensor:
        """`row` `(B, T)` times the attention averaged over heads, `(B, T)`; for short sequences, as it is quadratic."""
        logits = (self.query @ self.key.transpose(2, 3)).float() * self.scaling
        if self.inputs.bias is not None:
            logits = logits + self.inputs.bias
        return torch.einsum("bt,bhts->bs", row, logits.softmax(dim=-1)) / logits.shape[1]


@strict
@dataclass(kw_only=True)
class AttentionLayerOptions(Options):
    """Options of `attention`.

    Args:
        norm: whether a layer norm stands before the last dense layer (EVA-02's CLIP variant).
        projection_bias: whether that layer has a bias.
    """

    norm: bool = False
    projection_bias: bool = True


def read_attention_options(config) -> AttentionLayerOptions:
    """Options of `config.attention`."""
    return read_options(AttentionLayerOptions, "attention", config.attention)


class AdaptiveViTAttention(nn.Module):
    """Multi-head self-attention.

    Args:
        config: of the model.
        num_heads, head_dim: where they are not those of the configuration; all heads together may have another width than
            the hidden states.
    """

    def __init__(self, config, num_heads: int | None = None, head_dim: int | None = None):
        super().__init__()
        self.config = config
        self.num_attention_heads = num_heads or config.num_attention_heads
        self.head_dim = head_dim or config.hidden_size // config.num_attention_heads
        self.attention_dropout = config.attention_probs_dropout_prob
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        width = self.num_attention_heads * self.head_dim
        self.q_proj = nn.Linear(config.hidden_size, width, bias=config.qkv_bias)
        # A bias of keys changes no attention; DINOv3 and BEiT have none.
        options = read_attention_options(config)
        key_bias = config.qkv_bias and config.key_bias
        self.k_proj = nn.Linear(config.hidden_size, width, bias=key_bias)
        self.v_proj = nn.Linear(config.hidden_size, width, bias=config.qkv_bias)
        self.norm = make_inner_norm(config, width, options.norm)
        self.o_proj = nn.Linear(width, config.hidden_size, bias=options.projection_bias)

    def forward(
        self, hidden_states: torch.Tensor, inputs: AttentionInputs, return_states: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor | None, AttentionStates | None]:
        """Attention `(B, T, D)`; its weights, if the implementation has them; what it was computed from, if asked."""
        inputs = inputs.of_heads(self.num_attention_heads)
        states = self.states(hidden_states, inputs)
        query, key, value = states.query, states.key, states.value
        implementation = "eager" if inputs.show_weights else self.config._attn_implementation
        if inputs.key_bias is not None and needs_bias_channel(implementation):
            query, key, value = append_bias_channel(query, key, value, inputs.key_bias, self.scaling)
        attention_interface = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
        mask, also = inputs.mask, {}
        if inputs.bias is not None and "flex" in implementation:
            also["position_bias"] = inputs.bias.expand(query.shape[0], -1, -1, -1)
        elif inputs.bias is not None:
            mask = add_masks(inputs.bias, mask)
        attention, weights = attention_interface(
            self,
            query,
            key,
            value,
            mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **also,
        )
        attention = attention[..., : self.head_dim]
        if torch.compiler.is_exporting():
            # Exporters replace fused attention by steps that leave other strides, which a view would not fit.
            attention = attention.clone(memory_format=torch.contiguous_format)
        width = self.num_attention_heads * self.head_dim
        attention = attention.reshape(*hidden_states.shape[:2], width).contiguous()
        return self.o_proj(self.norm(attention)), weights, states if return_states else None

    def states(self, hidden_states: torch.Tensor, inputs: AttentionInputs) -> AttentionStates:
        """Queries, keys and values of normalised hidden states."""
        inputs = inputs.of_heads(self.num_attention_heads)
        query = self._split_heads(self.q_proj(hidden_states))
        key = unrotated_key = self._split_heads(self.k_proj(hidden_states))
        value = self._split_heads(self.v_proj(hidden_states))
        if inputs.rotation is not None:
            query, key = rotate_half_pairs(query, inputs.rotation), rotate_half_pairs(key, inputs.rotation)
        return AttentionStates(query, key, value, unrotated_key, inputs, self.scaling)

    def cls_states(self, hidden_states: torch.Tensor, inputs: AttentionInputs) -> AttentionStates:
        """The same for the CLS query alone, without values: all that `cls_attention` needs."""
        inputs = inputs.of_heads(self.num_attention_heads)
        query = self._split_heads(self.q_proj(hidden_states[:, :1]))
        key = unrotated_key = self._split_heads(self.k_proj(hidden_states))
        if inputs.rotation is not None:
            key = rotate_half_pairs(key, inputs.rotation)
        return AttentionStates(query, key, key, unrotated_key, inputs, self.scaling)

    def _split_heads(self, states: torch.Tensor) -> torch.Tensor:
        return states.unflatten(-1, (self.num_attention_heads, self.head_dim)).transpose(1, 2)


def add_masks(bias: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """A bias with a mask in it, which may be additive, or boolean with True where attention is allowed."""
    if mask is None:
        return bias
    if mask.dtype == torch.bool:
        return bias.masked_fill(~mask, torch.finfo(bias.dtype).min / 2)
    return bias + mask


def needs_bias_channel(implementation: str) -> bool:
    """Whether it takes no additive mask, or (flex attention) only one with a value for every pair of tokens."""
    return "flash" in implementation or "flex" in implementation


def append_bias_channel(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, key_bias: torch.Tensor, scaling: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Puts a bias of keys `(B, T)` into queries and keys, for implementations that take no additive mask.

    [q, 1 / scaling] . [k, bias] * scaling = q . k * scaling + bias. Heads are padded to a multiple of 8, which
    flash attention wants; the output's first channels are the attention.
    """
    padding = -(query.shape[-1] + 1) % 8
    one = query.new_full((*query.shape[:-1], 1), 1 / scaling)
    bias = key_bias[:, None, :, None].to(key.dtype).expand(*key.shape[:-1], 1)
    query = nn.functional.pad(torch.cat((query, one), dim=-1), (0, padding))
    key = nn.functional.pad(torch.cat((key, bias), dim=-1), (0, padding))
    return query, key, nn.functional.pad(value, (0, padding + 1))
