"""Blocks and stages of Swin. Shape legend: `swin_windows.py`.

Attention and feed-forward network are those of the ViT, given what a stage's configuration says. Modules and parameters
carry the names of transformers' Swin.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer

from .attention import AdaptiveViTAttention, AttentionInputs, AttentionStates
from .blocks import AdaptiveViTMLP, StochasticDepth
from .swin_positions import WINDOW_BIASES
from .swin_windows import WindowLayout, fit_window, lay_out
from .tokens import PatchTokens


# A temperature of at least 0.01 (Liu et al., 2022, "Swin Transformer V2", section 3.3).
MAX_LOGIT_SCALE = math.log(100)

# Which windows of a layout to compute on, `(B, K)`, given the number of the stage; None for all.
Choose = Callable[[int, WindowLayout, tuple[int, int]], torch.Tensor | None]


class StageConfig:
    """A stage's configuration as the ViT's parts read it: what is not here, the model's own configuration says."""

    use_cls_token, attention = False, None
    feed_forward, patch_embedding = "mlp", "linear"

    def __init__(self, config, stage: int):
        self.model_config = config
        self.stage = stage
        self.hidden_size = config.embed_dim * 2**stage
        self.intermediate_size = int(config.mlp_ratio * self.hidden_size)
        self.num_attention_heads = config.num_heads[stage]
        self.window = config.window_of(stage)
        self.pretrained_window = config.pretrained_window_of(stage)

    def __getattr__(self, name: str):
        if name.startswith("__") or name == "model_config":  # what copying asks for before there is one
            raise AttributeError(name)
        return getattr(self.model_config, name)


class AdaptiveSwinAttention(AdaptiveViTAttention):
    """Self-attention inside windows, by products of queries and keys or by their cosines."""

    def __init__(self, config: StageConfig):
        super().__init__(config)
        self.relative_position_bias = WINDOW_BIASES[config.position_encoding](config)
        self.logit_scale = None
        if config.cosine_attention:
            self.logit_scale = nn.Parameter(torch.empty(config.num_attention_heads, 1, 1))
            self.scaling = 1.0

    def states(self, hidden_states: torch.Tensor, inputs: AttentionInputs) -> AttentionStates:
        states = super().states(hidden_states, inputs)
        if self.logit_scale is None:
            return states
        scale = self.logit_scale.clamp(max=MAX_LOGIT_SCALE).exp()
        query, key = directions(states.query) * scale, directions(states.key)
        return replace(states, query=query.to(states.query.dtype), key=key.to(states.key.dtype))

    def reset_parameters(self) -> None:
        if self.logit_scale is not None:
            init.constant_(self.logit_scale, math.log(10))


def directions(vectors: torch.Tensor) -> torch.Tensor:
    """Vectors of length 1, in float32; of zeros, such as the key of padding, zeros.

    In float16 `normalize` would divide those by 0, and their gradient would not fit.
    """
    vectors = vectors.float()
    length = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return vectors / length.masked_fill(length == 0, 1)


class AdaptiveSwinLayer(GradientCheckpointingLayer):
    """Attention inside windows, then the feed-forward network, each on a residual branch.

    Given the windows to compute on, both see these alone, and other cells keep their states.
    """

    def __init__(self, config: StageConfig, drop_path_rate: float):
        super().__init__()
        self.attention = AdaptiveSwinAttention(config)
        self.layernorm_before = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.layernorm_after = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = AdaptiveViTMLP(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.drop_path = StochasticDepth(drop_path_rate) if drop_path_rate else None
        self.post_norm = config.post_norm

    def forward(
        self,
        hidden_states: torch.Tensor,
        layout: WindowLayout,
        indices: torch.Tensor | None = None,
        show_weights: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Hidden states `(B, N, D)`, and attention weights `(B * K, heads, L, L)` if they are to be shown.

        Args:
            hidden_states: `(B, N, D)` of a grid.
            layout: windows of the grid.
            indices: `(B, K)` of those to compute on; None for all.
            show_weights: whether attention weights are wanted.
        """
        windows = layout.take(hidden_states, indices)  # (B, K * L, D)
        attention, weights = self._attend(windows, layout, indices, show_weights)
        windows = windows + attention
        mlp = self.mlp(windows if self.post_norm else self.layernorm_after(windows))
        windows = windows + self._branch(mlp, self.layernorm_after)
        return layout.put(hidden_states, windows, indices), weights

    def _attend(
        self, windows: torch.Tensor, layout: WindowLayout, indices: torch.Tensor | None, show_weights: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        states = windows
        if not self.post_norm:
            # Padding is zero also after the norm: it takes part in attention, as in Swin's own code.
            states = layout.without_padding(self.layernorm_before(windows), indices)
        length = layout.cells.shape[1]
        inputs = AttentionInputs(
            mask=layout.mask(windows.shape[0], indices, windows.dtype),
            bias=self._bias(states, layout),
            show_weights=show_weights,
        )
        attention, weights, _ = self.attention(states.unflatten(1, (-1, length)).flatten(0, 1), inputs)
        attention = attention.view(windows.shape)
        return self._branch(attention, self.layernorm_before), weights if show_weights else None

    def _bias(self, states: torch.Tensor, layout: WindowLayout) -> torch.Tensor:
        """`(1, heads, L, L)`, the same in all windows."""
        coordinates = layout.coordinates()[None]
        grid = torch.tensor([layout.window], device=coordinates.device)
        cells = PatchTokens(states[:1, : coordinates.shape[1]], coordinates, grid, full_grid=layout.window)
        return self.attention.relative_position_bias("bias", cells, 0, 0)

    def _branch(self, states: torch.Tensor, norm: nn.LayerNorm) -> torch.Tensor:
        states = self.dropout(states)
        if self.post_norm:
            states = norm(states)
        return states if self.drop_path is None else self.drop_path(states)


class AdaptiveSwinPatchMerging(nn.Module):
    """Four neighbouring cells become one of twice their channels."""

    def __init__(self, config: StageConfig):
        super().__init__()
        size = config.hidden_size
        self.post_norm = config.post_norm
        self.reduction = nn.Linear(4 * size, 2 * size, bias=False)
        self.norm = nn.LayerNorm(2 * size if self.post_norm else 4 * size)

    def forward(self, hidden_states: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """`(B, N / 4, 2D)`; a grid of odd sides is padded with zeros."""
        states = hidden_states.unflatten(1, grid)
        states = nn.functional.pad(states, (0, 0, 0, grid[1] % 2, 0, grid[0] % 2))
        states = states.unflatten(2, (-1, 2)).unflatten(1, (-1, 2))  # (B, R / 2, 2, S / 2, 2, D)
        states = states.permute(0, 1, 3, 4, 2, 5).flatten(3).flatten(1, 2)  # column by column
        if self.post_norm:
            return self.norm(self.reduction(states))
        return self.reduction(self.norm(states))


@dataclass
class StageResult:
    """What a stage leaves.

    Attributes:
        states, grid: `(B, N, D)` after the blocks, and its rows and columns.
        merged, merged_grid: the same for the next stage; of the last, no other.
        weights: attention `(B * K, heads, L, L)` of the last block; None if it was not asked for.
        layouts, chosen: windows of unshifted blocks and, if there are such, of shifted ones, and those of them that
            were computed on, `(B, K)` or None for all.
    """

    states: torch.Tensor
    grid: tuple[int, int]
    merged: torch.Tensor
    merged_grid: tuple[int, int]
    weights: torch.Tensor | None
    layouts: list[WindowLayout]
    chosen: list[torch.Tensor | None]


class AdaptiveSwinStage(nn.Module):
    """Blocks on one grid, of which every other has shifted windows, and what makes the next grid of it."""

    def __init__(self, config, stage: int, drop_path_rates: list[float]):
        super().__init__()
        stage_config = StageConfig(config, stage)
        self.stage = stage
        self.window, self.shift = config.window_of(stage), config.shift_of(stage)
        self.is_fixed = config.window_fit == "fixed"
        self.pad_before_shift = config.pad_before_shift
        self.blocks = nn.ModuleList(AdaptiveSwinLayer(stage_config, rate) for rate in drop_path_rates)
        last = stage == config.num_layers - 1
        self.downsample = None if last else AdaptiveSwinPatchMerging(stage_config)

    def forward(
        self,
        hidden_states: torch.Tensor,
        grid: tuple[int, int],
        choose: Choose,
        always_partition: bool,
        show_weights: bool,
    ) -> StageResult:
        """
        Args:
            hidden_states: `(B, N, D)`.
            grid: rows and columns.
            choose: which windows to compute on.
            always_partition: whether windows stay what they are on a grid that is not larger.
            show_weights: whether attention weights are wanted.
        """
        window, shift = fit_window(grid, self.window, self.shift, self.is_fixed or always_partition)
        layouts, chosen = [], []
        for step in dict.fromkeys(((0, 0), shift)):
            layouts.append(lay_out(grid, window, step, self.pad_before_shift, hidden_states.device))
            chosen.append(choose(self.stage, layouts[-1], grid))
        weights = None
        for number, block in enumerate(self.blocks):
            which = number % len(layouts)
            # By place, as checkpointing wants it.
            hidden_states, weights = block(hidden_states, layouts[which], chosen[which], show_weights)
        merged, next_grid = hidden_states, grid
        if self.downsample is not None:
            merged = self.downsample(hidden_states, grid)
            next_grid = ((grid[0] + 1) // 2, (grid[1] + 1) // 2)
        return StageResult(hidden_states, grid, merged, next_grid, weights, layouts, chosen)
