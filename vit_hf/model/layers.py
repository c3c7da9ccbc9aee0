"""Layers of the encoder: norms, feed-forward networks, attention, and the block made of them.

Shape legend: `patches.py`; T is the tokens of a sequence, d the channels of a head. Modules and parameters
carry the names of transformers' ViT.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .options import Options, check_range, read_options, type_of
from .patches import PatchTokens, TokenSequence, move_fields
from .sizes import head_dim_of, heads_of, intermediate_size_of


class CheckpointedBlock(GradientCheckpointingLayer):
    """A block that trains the same with reentrant checkpointing, see `checkpoint_nested`."""

    @property
    def _gradient_checkpointing_func(self) -> Callable:
        return self._checkpoint

    @_gradient_checkpointing_func.setter
    def _gradient_checkpointing_func(self, checkpoint: Callable) -> None:
        # Set by whichever model of transformers holds the block, such as a detector.
        self._checkpoint = partial(checkpoint_nested, checkpoint)

    @_gradient_checkpointing_func.deleter
    def _gradient_checkpointing_func(self) -> None:
        del self._checkpoint


def checkpoint_nested(checkpoint: Callable, function: Callable, *args: Any) -> Any:
    """Checkpoints `function(*args)`; the reentrant variant, too, passes on the gradient of every tensor.

    That variant knows only of tensors that are arguments or results by themselves. Those inside of
    dataclasses (the bias of a position encoding, sizes of tokens) would keep their graph, which a second
    block cannot go through.

    Args:
        checkpoint: `torch.utils.checkpoint.checkpoint` with its options.
    """
    if getattr(checkpoint, "keywords", {}).get("use_reentrant") is False:
        return checkpoint(function, *args)
    tensors: list[torch.Tensor] = []
    shape = _take(args, tensors)
    result_shape = None

    def flat(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        nonlocal result_shape
        results: list[torch.Tensor] = []
        result_shape = _take(function(*_put(shape, tensors)), results)
        return tuple(results)

    results = checkpoint(flat, *tensors)
    return _put(result_shape, results)


class _Slot(int):
    """Stands for the tensor of that number."""


def _take(value: Any, tensors: list[torch.Tensor]) -> Any:
    """`value` with a `_Slot` for each tensor in it, which is appended to `tensors`."""
    if isinstance(value, torch.Tensor):
        tensors.append(value)
        return _Slot(len(tensors) - 1)
    if type(value) in (tuple, list):
        return type(value)(_take(item, tensors) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        items = {field.name: _take(getattr(value, field.name), tensors) for field in fields(value)}
        return replace(value, **items)
    return value


def _put(value: Any, tensors: tuple[torch.Tensor, ...]) -> Any:
    """`value` with the tensors in the places of their slots."""
    if isinstance(value, _Slot):
        return tensors[value]
    if type(value) in (tuple, list):
        return type(value)(_put(item, tensors) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        items = {field.name: _put(getattr(value, field.name), tensors) for field in fields(value)}
        return replace(value, **items)
    return value


# Activations of transformers, and one that it lacks.
ACTIVATIONS = {**{name: partial(ACT2FN.__getitem__, name) for name in ACT2FN}, "elu": nn.ELU}


class Initialized:
    """A module that initializes its own parameters, with functions of `transformers.initialization`.

    These skip what a checkpoint brought.
    """

    def reset_parameters(self, std: float) -> None:
        """Initializes the module's own parameters.

        Args:
            std: `initializer_range` of the configuration.
        """


def initialize_dense(module: nn.Module, initializer: str, std: float) -> None:
    """Initializes the weight of a dense layer or a convolution by `initializer` of the configuration."""
    if isinstance(module, Initialized) or not isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d):
        return
    if initializer == "xavier_uniform":
        # A convolution with the stride of its kernel is a matrix.
        bound = (6 / (module.weight[0].numel() + module.weight.shape[0])) ** 0.5
        init.uniform_(module.weight, -bound, bound)
    elif initializer == "truncated_normal":
        init.trunc_normal_(module.weight, mean=0.0, std=std, a=-2 * std, b=2 * std)


class TokenBatchNorm(nn.BatchNorm1d):
    """Batch normalization over all tokens of all images, `(B, T, D)`; tokens that are padding do not count.

    There to be compared with: transformers normalize layers, as statistics of a batch vary with what is in it
    (Shen et al., 2020, "PowerNorm"). Ioffe & Szegedy (2015).
    """

    def forward(self, hidden_states: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Args: `mask` `(B, T)`, False for padding; None if all count."""
        if not self.training or mask is None:
            return super().forward(hidden_states.flatten(0, 1)).view_as(hidden_states)
        weights = mask.unsqueeze(-1).float()
        count = weights.sum().clamp(min=2)
        states = hidden_states.float()
        mean = (states * weights).sum(dim=(0, 1)) / count
        variance = ((states - mean).square() * weights).sum(dim=(0, 1)) / count
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean.to(self.running_mean), self.momentum)
            self.running_var.lerp_((variance * count / (count - 1)).to(self.running_var), self.momentum)
        normed = (states - mean) * (variance + self.eps).rsqrt()
        return (normed * self.weight + self.bias).to(hidden_states.dtype)


NORMS = {"layernorm": nn.LayerNorm, "rmsnorm": nn.RMSNorm, "batchnorm": TokenBatchNorm}


def make_norm(config, eps: float | None = None) -> nn.Module:
    return NORMS[config.norm_type](config.hidden_size, eps=config.layer_norm_eps if eps is None else eps)


@strict
@dataclass(kw_only=True)
class FinalNormOptions(Options):
    """Options of `final_norm="pooled"`.

    Args:
        eps: epsilon, by default `layer_norm_eps`; VideoMAE has 1e-5 there.
    """

    eps: float | None = None

    def __post_init__(self):
        check_range(self, "eps", "in (0, 1), or None", self.eps is None or 0 < self.eps < 1)


# Where the last norm stands: on the tokens, on what the classifier pools from them (BEiT), or nowhere.
FINAL_NORMS: dict[str, type[Options]] = {"tokens": Options, "pooled": FinalNormOptions, "none": Options}


def make_final_norm(config) -> nn.Module | None:
    """The last norm; None for none."""
    name = type_of(config.final_norm)
    if name == "none":
        return None
    options = read_options(FINAL_NORMS[name], "final_norm", config.final_norm)
    return make_norm(config, getattr(options, "eps", None))


def make_inner_norm(config, size: int, enabled: bool) -> nn.Module:
    """A layer norm before the last dense layer of a branch, as NormFormer and EVA-02; or nothing."""
    return nn.LayerNorm(size, eps=config.layer_norm_eps) if enabled else nn.Identity()


def normalize(norm: nn.Module, hidden_states: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Normalizes hidden states `(B, T, D)`, whose last tokens have a mask `(B, M)`, or all `(B, T)`."""
    if not isinstance(norm, TokenBatchNorm) or mask is None:
        return norm(hidden_states)
    return norm(
        hidden_states, nn.functional.pad(mask, (hidden_states.shape[1] - mask.shape[1], 0), value=True)
    )


@strict
@dataclass(kw_only=True)
class FeedForwardOptions(Options):
    """Options of feed-forward networks.

    Args:
        bias: whether the dense layers have biases.
        norm: whether a layer norm stands before the last dense layer (EVA-02 base and large, and its CLIP
            variant).
    """

    bias: bool = True
    norm: bool = False


def read_feed_forward_options(config) -> FeedForwardOptions:
    """Options of `config.feed_forward`."""
    return read_options(FeedForwardOptions, "feed_forward", config.feed_forward)


class AdaptiveViTMLP(nn.Module):
    """Two dense layers, named as in transformers' ViT; `size` wide, or as the configuration says."""

    def __init__(self, config, size: int | None = None):
        super().__init__()
        size, options = size or config.intermediate_size, read_feed_forward_options(config)
        self.activation_fn = ACTIVATIONS[config.hidden_act]()
        self.fc1 = nn.Linear(config.hidden_size, size, bias=options.bias)
        self.norm = make_inner_norm(config, size, options.norm)
        self.fc2 = nn.Linear(size, config.hidden_size, bias=options.bias)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.norm(self.activation_fn(self.fc1(hidden_states))))


class GatedMLP(nn.Module):
    """A dense layer gated by the activation of another: SwiGLU with `hidden_act="silu"` (Shazeer, 2020).

    Named as in transformers' DINOv3. Three matrices, so `intermediate_size` is usually 2/3 of that of two.
    """

    def __init__(self, config, size: int | None = None):
        super().__init__()
        size, options = size or config.intermediate_size, read_feed_forward_options(config)
        self.act_fn = ACTIVATIONS[config.hidden_act]()
        self.gate_proj = nn.Linear(config.hidden_size, size, bias=options.bias)
        self.up_proj = nn.Linear(config.hidden_size, size, bias=options.bias)
        self.norm = make_inner_norm(config, size, options.norm)
        self.down_proj = nn.Linear(size, config.hidden_size, bias=options.bias)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        gated = self.act_fn(self.gate_proj(hidden_states)) * self.up_proj(hidden_states)
        return self.down_proj(self.norm(gated))


FEED_FORWARDS = {"mlp": AdaptiveViTMLP, "gated": GatedMLP}


class LayerScale(Initialized, nn.Module):
    """A learned scale of a residual branch (Touvron et al., 2021), named as in transformers' DINOv2."""

    def __init__(self, config):
        super().__init__()
        self.initial_value = float(config.layerscale_value)
        self.lambda1 = nn.Parameter(torch.full((config.hidden_size,), self.initial_value))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states * self.lambda1

    def reset_parameters(self, std: float) -> None:
        init.constant_(self.lambda1, self.initial_value)


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
class AttentionContext:
    """Masks and positions for attention.

    Attributes:
        mask: in the form that the implementation wants, with `key_bias` in it where that is possible; None
            for none.
        key_mask: `(B, T)` bool, False for padding; None without any.
        key_bias: `(B, T)` float added to the logits of each key; None for none.
        rotation: cosines and sines, see `PositionEncoding.rotation`.
        bias: `(B or 1, heads, T, T)` added to the logits, see `PositionEncoding.bias`.
        output_attentions: whether the weights are asked for. Fused implementations have none to show.
    """

    mask: torch.Tensor | None = None
    key_mask: torch.Tensor | None = None
    key_bias: torch.Tensor | None = None
    rotation: tuple[torch.Tensor, torch.Tensor] | None = None
    bias: torch.Tensor | None = None
    output_attentions: bool = False

    def to(self, device: torch.device, non_blocking: bool = False) -> "AttentionContext":
        """Moves all tensors; accelerate calls this where a model is spread over several devices."""
        return move_fields(self, device, non_blocking)

    @classmethod
    def build(
        cls,
        config,
        hidden_states: torch.Tensor,
        mask: torch.Tensor | None,
        sizes: torch.Tensor | None,
        output_attentions: bool,
    ) -> "AttentionContext":
        """Without positions, for a sequence `(B, T, D)` whose last tokens have a mask `(B, M)` and sizes `(B,
        M)`, or not.

        Tokens that stand for several patches weigh as much as these (proportional attention of ToMe, Bolya et
        al., 2023).
        """
        implementation = "eager" if output_attentions else config._attn_implementation
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
        return cls(attention_mask, key_mask, key_bias, output_attentions=output_attentions)

    def slice_heads(self, num_heads: int) -> "AttentionContext":
        """Keeps the first heads, for a block with fewer than the position encoding counts."""
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
    ) -> "AttentionContext":
        """Adds a block's rotation and bias.

        Raises:
            ValueError: for a bias beside flash attention.
        """
        implementation = "eager" if self.output_attentions else config._attn_implementation
        if bias is not None and "flash" in implementation:
            raise ValueError(
                f"position_encoding={type_of(config.position_encoding)!r} adds a bias to "
                f"attention, which {implementation!r} "
                "does not take: use attn_implementation='sdpa' or 'flex_attention'."
            )
        return replace(self, rotation=rotation, bias=bias)


class LazyContexts:
    """Attention contexts made on access, one at a time: biases of all blocks together would fill memory."""

    def __init__(self, make: Callable[[int], AttentionContext]):
        self.make = make

    def __getitem__(self, layer: int) -> AttentionContext:
        return self.make(layer)


def layer_contexts(
    config, encoding: nn.Module, sequence: TokenSequence, output_attentions: bool = False
) -> list[AttentionContext] | LazyContexts:
    """The attention context of each block, by its index: masks once, positions once or for each block.

    Args:
        config: of the model.
        encoding: the model's position encoding.
        sequence: tokens that the blocks read, until a reducer changes them.
        output_attentions: whether attention weights are returned.
    """
    patches, tokens = sequence.patches, sequence.tokens_with_coordinates()
    masks = AttentionContext.build(
        config, sequence.hidden_states, patches.mask, patches.sizes, output_attentions
    )
    num_prefix = sequence.hidden_states.shape[1] - tokens.coordinates.shape[1]

    def for_layer(layer: int) -> AttentionContext:
        positions = encoding(tokens, layer, num_prefix)
        return masks.with_positions(config, positions.rotation, positions.bias)

    return LazyContexts(for_layer) if encoding.per_layer else [for_layer(0)] * config.num_hidden_layers


@dataclass
class AttentionProjections:
    """Queries, keys and values of a block's attention, for token reducers and probes.

    Attributes:
        query, key, value: `(B, heads, T, d)`, query and key rotated if the position encoding does that.
        unrotated_key: the key before.
        context: masks and positions.
        scaling: of the logits.
    """

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    unrotated_key: torch.Tensor
    context: AttentionContext
    scaling: float

    def cls_attention(self) -> torch.Tensor:
        """Attention of the CLS token, `(B, heads, T)`: softmax(q_cls K^T), at a cost linear in T."""
        # Not a product with a matrix of one row, which reads the keys several times more slowly.
        logits = torch.einsum("bhd,bhtd->bht", self.query[:, :, 0], self.key).float() * self.scaling
        if self.context.bias is not None:
            logits = logits + self.context.bias[:, :, 0]
        if self.context.key_bias is not None:
            logits = logits + self.context.key_bias[:, None]
        if self.context.key_mask is not None:
            logits = logits.masked_fill(~self.context.key_mask[:, None], -torch.inf)
        return logits.softmax(dim=-1)

    def logit_bias(self) -> torch.Tensor | None:
        """Everything that is added to the logits, `(B or 1, heads or 1, T or 1, T)`; None for nothing."""
        bias, key_bias, key_mask = self.context.bias, self.context.key_bias, self.context.key_mask
        if key_bias is not None:
            key_bias = key_bias[:, None, None]
            bias = key_bias if bias is None else bias + key_bias
        if key_mask is not None:
            zeros = torch.zeros_like(key_mask, dtype=torch.float32)[:, None, None]
            bias = add_masks(zeros if bias is None else bias, key_mask[:, None, None])
        return bias

    def propagate(self, row: torch.Tensor) -> torch.Tensor:
        """`row` `(B, T)` times the attention averaged over heads, `(B, T)`; for short sequences, as it is
        quadratic."""
        logits = (self.query @ self.key.transpose(2, 3)).float() * self.scaling
        bias = self.logit_bias()
        if bias is not None:
            logits = logits + bias
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
        num_heads, head_dim: where they are not those of the configuration; all heads together may have
            another width than the hidden states.
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
        self, hidden_states: torch.Tensor, context: AttentionContext
    ) -> tuple[torch.Tensor, torch.Tensor | None, AttentionProjections]:
        """Attention `(B, T, D)`; its weights, None if the implementation has none; and its projections."""
        projections = self.project(hidden_states, context)
        context = projections.context
        query, key, value = projections.query, projections.key, projections.value
        implementation = "eager" if context.output_attentions else self.config._attn_implementation
        if context.key_bias is not None and needs_bias_channel(implementation):
            query, key, value = append_bias_channel(query, key, value, context.key_bias, self.scaling)
        attention_interface = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
        mask, also = context.mask, {}
        if context.bias is not None and "flex" in implementation:
            also["position_bias"] = context.bias.expand(query.shape[0], -1, -1, -1)
        elif context.bias is not None:
            mask = add_masks(context.bias, mask)
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
        return self.o_proj(self.norm(attention)), weights, projections

    def project(self, hidden_states: torch.Tensor, context: AttentionContext) -> AttentionProjections:
        """Projects normalized hidden states to queries, keys and values."""
        context = context.slice_heads(self.num_attention_heads)
        query = self._split_heads(self.q_proj(hidden_states))
        key = unrotated_key = self._split_heads(self.k_proj(hidden_states))
        value = self._split_heads(self.v_proj(hidden_states))
        query, key = self.scale(query, key)
        if context.rotation is not None:
            query, key = rotate_half_pairs(query, context.rotation), rotate_half_pairs(key, context.rotation)
        return AttentionProjections(query, key, value, unrotated_key, context, self.scaling)

    def scale(self, query: torch.Tensor, key: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Queries and keys whose products are compared; for attention that compares their directions."""
        return query, key

    def cls_attention(self, hidden_states: torch.Tensor, context: AttentionContext) -> torch.Tensor:
        """Attention `(B, heads, T)` of the CLS token, from normalized hidden states; without the other
        queries."""
        context = context.slice_heads(self.num_attention_heads)
        query = self._split_heads(self.q_proj(hidden_states[:, :1]))
        key = unrotated_key = self._split_heads(self.k_proj(hidden_states))
        if context.rotation is not None:
            key = rotate_half_pairs(key, context.rotation)
        return AttentionProjections(query, key, key, unrotated_key, context, self.scaling).cls_attention()

    def patch_attention_logits(
        self, hidden_states: torch.Tensor, context: AttentionContext, num_patches: int
    ) -> torch.Tensor:
        """Logits `(B, N)` of the last tokens as keys, averaged over heads and over these tokens as queries.

        The mean of products is the product of the mean, so that it costs what is linear in N.
        """
        projections = self.project(hidden_states, context)
        query, key = (states[:, :, -num_patches:] for states in (projections.query, projections.key))
        key_mask, bias = context.key_mask, projections.context.bias
        if key_mask is None:
            present = query.new_ones(len(query), num_patches, dtype=torch.float32)
        else:
            present = key_mask[:, -num_patches:].float()
        present = present / present.sum(dim=-1, keepdim=True)
        mean_query = torch.einsum("bhnd,bn->bhd", query.float(), present)
        logits = torch.einsum("bhd,bhnd->bn", mean_query, key.float()) * self.scaling
        if bias is not None:
            among = bias[:, :, -num_patches:, -num_patches:].sum(dim=1).float()  # (B or 1, N, N)
            logits = logits + torch.einsum("bn,bnm->bm", present, among.expand(len(query), -1, -1))
        return logits / self.num_attention_heads

    def propagate_rollout(
        self, hidden_states: torch.Tensor, context: AttentionContext, row: torch.Tensor
    ) -> torch.Tensor:
        """A `row` `(B, T)` of attention rollout times this block's attention, averaged over heads, and the
        identity."""
        row = row.to(hidden_states.device)  # the next block may lie on another device
        return (self.project(hidden_states, context).propagate(row) + row) / 2

    def _split_heads(self, states: torch.Tensor) -> torch.Tensor:
        return states.unflatten(-1, (self.num_attention_heads, self.head_dim)).transpose(1, 2)


def rotate_half_pairs(states: torch.Tensor, rotation: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Rotates the last tokens of `states` `(B, heads, T, d)` by cosines and sines `(B, 1 or heads, N, d)`, N
    <= T.

    Tokens before them (CLS, registers) have no place in the image and stay as they are.
    """
    cosine, sine = rotation
    prefix = states.shape[2] - cosine.shape[2]
    first, second = states[:, :, prefix:].chunk(2, dim=-1)
    rotated = states[:, :, prefix:] * cosine + torch.cat((-second, first), dim=-1) * sine
    return torch.cat((states[:, :, :prefix], rotated), dim=2) if prefix else rotated


def add_masks(bias: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """A bias with a mask in it, which may be additive, or boolean with True where attention is allowed."""
    if mask is None:
        return bias
    if mask.dtype == torch.bool:
        return bias.masked_fill(~mask, torch.finfo(bias.dtype).min / 2)
    return bias + mask


def needs_bias_channel(implementation: str) -> bool:
    """Tells whether an implementation takes no additive mask, or (flex) only one for every pair of tokens."""
    return "flash" in implementation or "flex" in implementation


def append_bias_channel(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, key_bias: torch.Tensor, scaling: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Puts a bias of keys `(B, T)` into queries and keys, for implementations that take no additive mask.

    [q, 1 / scaling] . [k, bias] * scaling = q . k * scaling + bias. Heads are padded to a multiple of 8,
    which flash attention wants; the output's first channels are the attention.
    """
    padding = -(query.shape[-1] + 1) % 8
    one = query.new_full((*query.shape[:-1], 1), 1 / scaling)
    bias = key_bias[:, None, :, None].to(key.dtype).expand(*key.shape[:-1], 1)
    query = nn.functional.pad(torch.cat((query, one), dim=-1), (0, padding))
    key = nn.functional.pad(torch.cat((key, bias), dim=-1), (0, padding))
    return query, key, nn.functional.pad(value, (0, padding + 1))


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
        context: AttentionContext,
        run: Callable[..., Any] | None = None,
        *args: Any,
    ) -> torch.Tensor:
        """Hidden states `(B, T, D)`.

        Args:
            hidden_states: `(B, T, D)`.
            context: masks and positions for attention.
            run: what another method of this class runs in the place of the block, with `args`. These go
                through the module's call as well, so that whatever wraps the block (sharding, offloading)
                takes part.
        """
        if run is not None:
            return run(self, hidden_states, context, *args)
        hidden_states = self._attend(hidden_states, context)[0]
        return self._feed_forward(hidden_states, context.key_mask)

    def reduce(
        self,
        hidden_states: torch.Tensor,
        context: AttentionContext,
        reducer: nn.Module,
        tokens: PatchTokens,
        dense_fraction: float,
    ) -> tuple[torch.Tensor, Any, torch.Tensor]:
        """Runs the block with a `reducer` between attention and the feed-forward network.

        Returns:
            Hidden states `(B, T', D)`, and the others as `TokenReducer.reduce_sequence` returns them.
        """
        return self(hidden_states, context, AdaptiveViTLayer._reduce, reducer, tokens, dense_fraction)

    def cls_attention(self, hidden_states: torch.Tensor, context: AttentionContext) -> torch.Tensor:
        """Attention of the CLS token in this block, `(B, heads, T)`, at a cost linear in T."""
        return self(hidden_states, context, AdaptiveViTLayer._probe, AdaptiveViTAttention.cls_attention)

    def patch_attention_logits(
        self, hidden_states: torch.Tensor, context: AttentionContext, num_patches: int
    ) -> torch.Tensor:
        """Attention of patches to patches, `(B, N)`; see `AdaptiveViTAttention.patch_attention_logits`."""
        read = AdaptiveViTAttention.patch_attention_logits
        return self(hidden_states, context, AdaptiveViTLayer._probe, read, num_patches)

    def propagate_rollout(
        self, hidden_states: torch.Tensor, context: AttentionContext, row: torch.Tensor
    ) -> torch.Tensor:
        """Carries a `row` `(B, T)` of attention rollout from the block's output to its input."""
        propagate = AdaptiveViTAttention.propagate_rollout
        return self(hidden_states, context, AdaptiveViTLayer._probe, propagate, row)

    def _reduce(
        self,
        hidden_states: torch.Tensor,
        context: AttentionContext,
        reducer: nn.Module,
        tokens: PatchTokens,
        dense_fraction: float,
    ) -> tuple[torch.Tensor, Any, torch.Tensor]:
        hidden_states, projections = self._attend(hidden_states, context)
        hidden_states, reduction, before = reducer.reduce_sequence(
            hidden_states, tokens, projections, dense_fraction
        )
        return self._feed_forward(hidden_states, reduction.tokens.mask), reduction, before

    def _probe(
        self,
        hidden_states: torch.Tensor,
        context: AttentionContext,
        read: Callable[..., torch.Tensor],
        *args: torch.Tensor,
    ) -> torch.Tensor:
        normed = normalize(self.layernorm_before, hidden_states, context.key_mask)
        return read(self.attention, normed, context, *args)

    def _attend(
        self, hidden_states: torch.Tensor, context: AttentionContext
    ) -> tuple[torch.Tensor, AttentionProjections]:
        normed = normalize(self.layernorm_before, hidden_states, context.key_mask)
        attention, _, projections = self.attention(normed, context)
        return hidden_states + self._branch(attention, self.layer_scale1), projections

    def _feed_forward(self, hidden_states: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        mlp = self.mlp(normalize(self.layernorm_after, hidden_states, mask))
        return hidden_states + self._branch(mlp, self.layer_scale2)

    def _branch(self, states: torch.Tensor, layer_scale: LayerScale | None) -> torch.Tensor:
        states = self.dropout(states)
        if layer_scale is not None:
            states = layer_scale(states)
        return states if self.drop_path is None else self.drop_path(states)
