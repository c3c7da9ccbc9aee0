"""Positions of Swin: a bias on attention for the difference of places in a window. Shape legend: `swin_windows.py`.

Each block has its own. On grids smaller than a window, what belongs to differences that occur there is read.
"""

import torch
from torch import nn
from transformers import initialization as init

from .positions_base import source_grid
from .positions_bias import (
    AttentionBias,
    ask_bias_network,
    bias_network,
    num_differences,
    resample_differences,
)


class WindowBias(AttentionBias):
    """A learned number for each difference of places and head (Liu et al., 2021, "Swin Transformer", section 3.2)."""

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
        table = ask_bias_network(self.continuous_position_bias_mlp, places, self.pretrained_window)
        return read_table(table, differences, self.window)


def read_table(table: torch.Tensor, differences: torch.Tensor, window: tuple[int, int]) -> torch.Tensor:
    """`(1, heads, L, L)`: a table `((2h - 1) * (2w - 1), heads)` at whole differences `(1, L, L, 2)` of places."""
    row, column = differences.long().unbind(-1)
    index = (row + window[0] - 1) * (2 * window[1] - 1) + column + window[1] - 1
    return table[index].permute(0, 3, 1, 2)


WINDOW_BIASES: dict[str, type[AttentionBias]] = {
    "relative_bias": WindowBias,
    "relative_bias_continuous": WindowBiasContinuous,
}
