"""Layers of Swin: windows, position bias, the choice of windows, blocks and stages."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_adaptive_swin import num_windows_selected
from .layers import (
    AdaptiveViTAttention,
    AdaptiveViTMLP,
    AttentionContext,
    Initialized,
    StochasticDepth,
)
from .options import type_of
from .patches import ImagePatches, PatchTokens, gather_tokens, grid_coordinates, move_fields, scatter_into
from .positions import (
    AttentionBias,
    bias_network,
    continuous_bias,
    num_differences,
    resample_differences,
    source_grid,
)
from .selection import PatchSelector
from .selection_checks import warn_of_all_kept


# Added to the logits of cells that do not attend to each other, as in Swin's own code.
NOT_ADJACENT = -100.0


@dataclass
class WindowLayout:
    """The windows of a grid.

    Attributes:
        cells: `(n, L)` int64 raster index in the grid of each window's cells, -1 for padding.
        places: `(N,)` int64 where each cell of the grid is in `cells`, flat.
        regions: `(n, L)` int64, different for cells of a window that do not attend to each other; None if all
            do.
        window: rows and columns of a window.
        rows, columns: of windows.
        has_padding: whether some cells are padding.
    """

    cells: torch.Tensor
    places: torch.Tensor
    regions: torch.Tensor | None
    window: tuple[int, int]
    rows: int
    columns: int
    has_padding: bool

    @property
    def num_windows(self) -> int:
        return self.rows * self.columns

    def to(self, device: torch.device, non_blocking: bool = False) -> "WindowLayout":
        """Moves all tensors; accelerate calls this where a model is spread over several devices."""
        return move_fields(self, device, non_blocking)

    def coordinates(self) -> torch.Tensor:
        """`(L, 2)` float row and column of a window's cells in it."""
        return grid_coordinates(*self.window, device=self.cells.device)

    def cells_of(self, indices: torch.Tensor) -> torch.Tensor:
        """Cells `(B, K * L)` of the windows at `indices` `(B, K)`, -1 for padding."""
        return self.cells[indices].flatten(1)

    def take(self, states: torch.Tensor, indices: torch.Tensor | None) -> torch.Tensor:
        """States `(B, K * L, D)` of windows' cells, of `states` `(B, N, D)`; zeros for padding."""
        if indices is None:
            taken = states.index_select(1, self.cells.clamp(min=0).flatten())
        else:
            taken = gather_tokens(states, self.cells_of(indices).clamp(min=0))
        return self.without_padding(taken, indices)

    def without_padding(self, states: torch.Tensor, indices: torch.Tensor | None) -> torch.Tensor:
        """`states` `(B, K * L, D)` of windows' cells, with zeros for padding."""
        if not self.has_padding:
            return states
        cells = self.cells.flatten()[None] if indices is None else self.cells_of(indices)
        return states.masked_fill((cells < 0).unsqueeze(-1), 0)

    def put(self, states: torch.Tensor, windows: torch.Tensor, indices: torch.Tensor | None) -> torch.Tensor:
        """`states` `(B, N, D)` with those of windows' cells, `(B, K * L, D)`, in their places."""
        if indices is None:
            return windows.index_select(1, self.places)
        cells = self.cells_of(indices)
        mask = cells >= 0 if self.has_padding else None
        return scatter_into(states, cells, windows, mask)

    def mask(self, batch_size: int, indices: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
        """Mask added to the logits of windows, `(B * K, 1, L, L)`; None for none."""
        if self.regions is None:
            return None
        regions = self.regions.expand(batch_size, -1, -1) if indices is None else self.regions[indices]
        regions = regions.flatten(0, 1)  # (B * K, L)
        apart = regions.unsqueeze(-1) != regions.unsqueeze(-2)
        return torch.zeros_like(apart, dtype=dtype).masked_fill(apart, NOT_ADJACENT).unsqueeze(1)


def lay_out(
    grid: tuple[int, int],
    window: tuple[int, int],
    shift: tuple[int, int],
    pad_before_shift: bool,
    device: torch.device,
) -> WindowLayout:
    """Windows of `grid` (rows, columns), padded to whole windows at the end and rolled by `shift`."""
    num_cells = grid[0] * grid[1]
    index = torch.arange(num_cells, device=device).view(grid)
    index = arrange(index, window, shift, pad_before_shift, padding=-1)  # (rows of all windows, columns)
    padded = tuple(index.shape)
    cells = split(index, window)
    order = torch.arange(cells.numel(), device=device)
    flat = cells.flatten()
    places = flat.new_zeros(num_cells + 1).scatter(0, flat.masked_fill(flat < 0, num_cells), order)[:-1]
    regions = None
    if any(shift):
        row, column = (
            _regions(side, length, step, device)
            for side, length, step in zip(padded, window, shift, strict=True)
        )
        regions = split(row[:, None] * 3 + column, window)
    return WindowLayout(
        cells=cells,
        places=places,
        regions=regions,
        window=window,
        rows=padded[0] // window[0],
        columns=padded[1] // window[1],
        has_padding=padded != tuple(grid),
    )


def arrange(
    values: torch.Tensor,
    window: tuple[int, int],
    shift: tuple[int, int],
    pad_before_shift: bool,
    padding: float,
) -> torch.Tensor:
    """`values` `(..., R, S)` padded at the end to whole windows, and rolled by `shift`, in the one order
    or the other."""
    rows, columns = values.shape[-2:]
    missing = (0, -columns % window[1], 0, -rows % window[0])
    backwards = (-shift[0], -shift[1])
    if not pad_before_shift:
        values = values.roll(backwards, dims=(-2, -1))
    values = nn.functional.pad(values, missing, value=padding)
    return values.roll(backwards, dims=(-2, -1)) if pad_before_shift else values


def split(values: torch.Tensor, window: tuple[int, int]) -> torch.Tensor:
    """`values` `(..., R, S)` of whole windows, as `(..., n, L)`."""
    parts = values.unflatten(-1, (-1, window[1])).unflatten(-3, (-1, window[0]))  # (..., rows, h, columns, w)
    return parts.transpose(-3, -2).flatten(-2).flatten(-3, -2)


def _regions(side: int, window: int, shift: int, device: torch.device) -> torch.Tensor:
    """Piece, of up to three, to which each cell of a rolled axis belongs, `(side,)`."""
    cell = torch.arange(side, device=device)
    return (cell >= side - window).long() + (cell >= side - shift).long()


def fit_window(
    grid: tuple[int, int], window: tuple[int, int], shift: tuple[int, int], fixed: bool
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Window and shift on a grid; see `window_fit` of the configuration."""
    if fixed or all(side > length for side, length in zip(grid, window, strict=True)):
        return window, shift
    smaller = min(grid)
    return (min(smaller, window[0]), min(smaller, window[1])), (0, 0)


def pool_cells(scores: torch.Tensor, kind: str) -> torch.Tensor:
    """Scores `(B, R, S)` of cells of the next stage, each of up to four."""
    if kind == "max":
        return nn.functional.max_pool2d(scores, 2, ceil_mode=True)
    return nn.functional.avg_pool2d(scores, 2, ceil_mode=True, count_include_pad=False)


def pool_windows(
    scores: torch.Tensor,
    layout: WindowLayout,
    kind: str,
) -> torch.Tensor:
    """Scores `(B, n)` of windows, of those of the grid's cells `(B, R, S)`; padding has none."""
    cells = layout.cells
    taken = scores.flatten(1)[:, cells.clamp(min=0)]  # (B, n, L)
    if kind == "max":
        return taken.masked_fill(cells < 0, -torch.inf).amax(dim=-1)
    present = cells >= 0
    return taken.masked_fill(~present, 0).sum(dim=-1) / present.sum(dim=-1)


class WindowBias(AttentionBias):
    """A learned number for each difference of places and head (Liu et al., 2021, "Swin Transformer",
    section 3.2)."""

    def __init__(self, config):
        super().__init__(config)
        self.stage, self.window = config.stage, config.window
        differences = (2 * self.window[0] - 1) * (2 * self.window[1] - 1)
        self.relative_position_bias_table = nn.Parameter(torch.empty(differences, config.num_attention_heads))

    def pairs(self, differences: torch.Tensor, grid: torch.Tensor, layer: int) -> torch.Tensor:
        return read_table(self.relative_position_bias_table.float(), differences, self.window)

    def reset_parameters(self, std: float) -> None:
        init.trunc_normal_(self.relative_position_bias_table, std=std)

    def grid_in(self, config) -> tuple[int, int]:
        return config.window_of(self.stage)

    def resample_table(self, name: str, table: torch.Tensor, grid: tuple[int, ...] | None) -> torch.Tensor:
        grid = source_grid(table.shape[0], grid, num_differences, 2)
        return resample_differences(table[None], grid, self.window, "bicubic")[0]  # as Microsoft's code does


class WindowBiasContinuous(AttentionBias):
    """A small network tells the number (Liu et al., 2022, "Swin Transformer V2", section 3.3).

    Differences are spread over the window of pretraining: a larger one is extrapolated little.
    """

    def __init__(self, config):
        super().__init__(config)
        self.window = config.window
        self.pretrained_window = config.pretrained_window
        self.continuous_position_bias_mlp = bias_network(config.num_attention_heads)

    def pairs(self, differences: torch.Tensor, grid: torch.Tensor, layer: int) -> torch.Tensor:
        axes = [torch.arange(1 - side, side, device=differences.device).float() for side in self.window]
        places = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 1)
        table = continuous_bias(self.continuous_position_bias_mlp, places, self.pretrained_window)
        return read_table(table, differences, self.window)


def read_table(table: torch.Tensor, differences: torch.Tensor, window: tuple[int, int]) -> torch.Tensor:
    """`(1, heads, L, L)`: a table `((2h - 1) * (2w - 1), heads)` at whole differences `(1, L, L, 2)` of
    places."""
    row, column = differences.long().unbind(-1)
    index = (row + window[0] - 1) * (2 * window[1] - 1) + column + window[1] - 1
    return table[index].permute(0, 3, 1, 2)


WINDOW_BIASES: dict[str, type[AttentionBias]] = {
    "relative_bias": WindowBias,
    "relative_bias_continuous": WindowBiasContinuous,
}


class UnavailableProbe:
    """Stands in for the probe, which Swin does not have; using it raises."""

    def __getattr__(self, name: str):
        raise ValueError(
            f"The patch selector asks for the model's own {name}, and Swin's blocks see windows, "
            "without a CLS token: score "
            "patches by their pixels, or by a network of the selector's own."
        )


class WindowChooser:
    """Chooses windows of one batch, for each stage, and with shift and without, by scores of patches.

    Args:
        config: of the model.
        selector: what scores patches; None to compute on all windows.
        patches: all patches of the batch.
        dense_fraction: 0 for as many windows as the configuration says, 1 for all, linear between.
        sample: whether chance may play a part.

    Attributes:
        scores: `(B, N)` of patches, as the first stage is chosen by; None without a selector.
    """

    def __init__(
        self,
        config,
        selector: PatchSelector | None,
        patches: ImagePatches,
        dense_fraction: float,
        sample: bool,
    ):
        self.config = config
        self.selector = selector
        self.patches = patches
        self.dense_fraction = dense_fraction
        self.sample = sample
        self.scores: torch.Tensor | None = None

    def __call__(self, stage: int, layout: WindowLayout, grid: tuple[int, int]) -> torch.Tensor | None:
        """`(B, K)` int64 ascending windows of a stage's `grid` to compute on; None for all."""
        if self.selector is None:
            return None
        budget = self.config.num_selected_windows
        number = num_windows_selected(budget, stage, layout.num_windows, self.dense_fraction)
        # A stage may lie on another device.
        scores = self._score(number).to(layout.cells.device).unflatten(1, self.patches.full_grid)
        if number == layout.num_windows:
            # Later stages have few windows, and may need all of them.
            if stage == 0 and self.dense_fraction == 0 and not torch.compiler.is_compiling():
                selection = (
                    f"patch_selector={type_of(self.config.patch_selector)!r} with "
                    f"num_selected_windows={budget}"
                )
                warn_of_all_kept(selection, (number,), "windows")
            return None
        for _ in range(stage):
            scores = pool_cells(scores, self.config.window_score)
        windows = pool_windows(scores, layout, self.config.window_score)
        coordinates = grid_coordinates(layout.rows, layout.columns, device=windows.device)
        sides = torch.tensor([layout.rows, layout.columns], device=windows.device)
        ranks = self.selector.rank(
            windows,
            coordinates.expand(windows.shape[0], -1, -1),
            sides.expand(windows.shape[0], -1),
            number,
            self.sample,
        )
        selection = self.selector.select(ranks, number, None, self.sample)
        if selection.weights is not None or selection.log_prob is not None or selection.indices is None:
            raise ValueError(
                f"{type(self.selector).__name__}.select mixes patches, draws them or leaves the "
                "choice open, and windows "
                "can only be kept or not: use it in an AdaptiveViT."
            )
        return selection.indices

    def _score(self, number: int) -> torch.Tensor:
        """Scores `(B, N)` of patches where so many windows will be kept."""
        if self.scores is not None and not self.selector.uses_number:
            return self.scores
        scores = self.selector.score(self.patches, number, UnavailableProbe())
        self.selector.check_scores(scores, self.patches)
        if self.scores is None:
            self.scores = scores
        return scores

    def loss(self) -> torch.Tensor | None:
        """Loss that training the selector adds; None for none."""
        return (
            None if self.scores is None else self.selector.loss(self.patches, self.scores, UnavailableProbe())
        )


# A temperature of at least 0.01 (Liu et al., 2022, "Swin Transformer V2", section 3.3).
MAX_LOGIT_SCALE = math.log(100)

# Which windows of a layout to compute on, `(B, K)`, given the number of the stage; None for all.
Choose = Callable[[int, WindowLayout, tuple[int, int]], torch.Tensor | None]


class StageConfig:
    """Configuration of a stage as the ViT's layers read it; other fields are those of the model's."""

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


class AdaptiveSwinAttention(Initialized, AdaptiveViTAttention):
    """Self-attention inside windows, by products of queries and keys or by their cosines."""

    def __init__(self, config: StageConfig):
        super().__init__(config)
        self.relative_position_bias = WINDOW_BIASES[config.position_encoding](config)
        self.logit_scale = None
        if config.cosine_attention:
            self.logit_scale = nn.Parameter(torch.empty(config.num_attention_heads, 1, 1))
            self.scaling = 1.0

    def scale(self, query: torch.Tensor, key: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self.logit_scale is None:
            return query, key
        scale = self.logit_scale.clamp(max=MAX_LOGIT_SCALE).exp()
        return (directions(query) * scale).to(query.dtype), directions(key).to(key.dtype)

    def reset_parameters(self, std: float) -> None:
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
        output_attentions: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Hidden states `(B, N, D)`, and attention weights `(B * K, heads, L, L)` if they are to be shown.

        Args:
            hidden_states: `(B, N, D)` of a grid.
            layout: windows of the grid.
            indices: `(B, K)` of those to compute on; None for all.
            output_attentions: whether attention weights are returned.
        """
        windows = layout.take(hidden_states, indices)  # (B, K * L, D)
        attention, weights = self._attend(windows, layout, indices, output_attentions)
        windows = windows + attention
        mlp = self.mlp(windows if self.post_norm else self.layernorm_after(windows))
        windows = windows + self._branch(mlp, self.layernorm_after)
        return layout.put(hidden_states, windows, indices), weights

    def _attend(
        self,
        windows: torch.Tensor,
        layout: WindowLayout,
        indices: torch.Tensor | None,
        output_attentions: bool,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        states = windows
        if not self.post_norm:
            # Padding is zero also after the norm: it takes part in attention, as in Swin's own code.
            states = layout.without_padding(self.layernorm_before(windows), indices)
        length = layout.cells.shape[1]
        context = AttentionContext(
            mask=layout.mask(windows.shape[0], indices, windows.dtype),
            bias=self._bias(states, layout),
            output_attentions=output_attentions,
        )
        attention, weights, _ = self.attention(states.unflatten(1, (-1, length)).flatten(0, 1), context)
        attention = attention.view(windows.shape)
        return self._branch(attention, self.layernorm_before), weights if output_attentions else None

    def _bias(self, states: torch.Tensor, layout: WindowLayout) -> torch.Tensor:
        """`(1, heads, L, L)`, the same in all windows."""
        coordinates = layout.coordinates()[None]
        grid = torch.tensor([layout.window], device=coordinates.device)
        cells = PatchTokens(states[:1, : coordinates.shape[1]], coordinates, grid, full_grid=layout.window)
        return self.attention.relative_position_bias(cells, layer=0).bias

    def _branch(self, states: torch.Tensor, norm: nn.LayerNorm) -> torch.Tensor:
        states = self.dropout(states)
        if self.post_norm:
            states = norm(states)
        return states if self.drop_path is None else self.drop_path(states)


class AdaptiveSwinPatchMerging(nn.Module):
    """Four neighboring cells become one of twice their channels."""

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
    """Result of a stage.

    Attributes:
        states, grid: `(B, N, D)` after the blocks, and its rows and columns.
        merged, merged_grid: the same for the next stage; of the last, no other.
        weights: attention `(B * K, heads, L, L)` of the last block; None if it was not asked for.
        layouts, chosen: windows of unshifted blocks and, if there are such, of shifted ones, and those of
            them that were computed on, `(B, K)` or None for all.
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
        output_attentions: bool,
    ) -> StageResult:
        """
        Args:
            hidden_states: `(B, N, D)`.
            grid: rows and columns.
            choose: which windows to compute on.
            always_partition: whether windows stay what they are on a grid that is not larger.
            output_attentions: whether attention weights are returned.
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
            hidden_states, weights = block(hidden_states, layouts[which], chosen[which], output_attentions)
        merged, next_grid = hidden_states, grid
        if self.downsample is not None:
            merged = self.downsample(hidden_states, grid)
            next_grid = ((grid[0] + 1) // 2, (grid[1] + 1) // 2)
        return StageResult(hidden_states, grid, merged, next_grid, weights, layouts, chosen)
